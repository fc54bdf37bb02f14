"""Orders and groups."""

from __future__ import annotations

from collections import Counter

import pytest

from llama_bench.bench.schedule import block_orders, groups, start_order

ARMS = ["original", "a", "b", "c", "control"]


def test_every_block_times_every_arm_once() -> None:
    for order in block_orders(7, "cell", 0, 0, 20, ARMS):
        assert sorted(order) == sorted(ARMS)


def test_the_same_seed_draws_the_same_orders_and_another_restart_draws_others() -> None:
    assert block_orders(7, "cell", 0, 0, 8, ARMS) == block_orders(7, "cell", 0, 0, 8, ARMS)
    others = [block_orders(8, "cell", 0, 0, 8, ARMS), block_orders(7, "other", 0, 0, 8, ARMS)]
    others += [block_orders(7, "cell", 1, 0, 8, ARMS), block_orders(7, "cell", 0, 1, 8, ARMS)]
    assert all(other != block_orders(7, "cell", 0, 0, 8, ARMS) for other in others)


def test_the_orders_are_pinned_so_that_a_sweep_is_measured_alike_everywhere() -> None:
    assert block_orders(7, "cell", 0, 0, 2, ["a", "b", "c", "d"]) == PINNED


PINNED = [["c", "a", "b", "d"], ["d", "b", "c", "a"]]


def test_no_arm_is_first_more_often_than_chance_allows() -> None:
    first = Counter(order[0] for order in block_orders(1, "cell", 0, 0, 2000, ARMS))
    assert all(abs(count - 400) < 90 for count in first.values())  # 5 standard deviations


def test_the_order_of_starting_is_drawn_too_so_that_the_baseline_is_not_always_first() -> None:
    orders = [start_order(7, "cell", restart, 0, ARMS) for restart in range(200)]
    assert all(sorted(order) == sorted(ARMS) for order in orders)
    assert {order[0] for order in orders} == set(ARMS)
    assert orders == [start_order(7, "cell", restart, 0, ARMS) for restart in range(200)]


def test_arms_that_fit_together_are_one_group() -> None:
    assert groups(ARMS, ["original", "control"], dict.fromkeys(ARMS, 2), 10) == [["original", "control", "a", "b", "c"]]


def test_groups_are_evened_out_and_each_has_the_baseline_and_the_control() -> None:
    arms = ["original", "a", "b", "c", "d", "control"]
    found = groups(arms, ["original", "control"], dict.fromkeys(arms, 2), 10)
    assert found == [["original", "control", "a", "b"], ["original", "control", "c", "d"]]


def test_what_cannot_fit_says_how_much_is_missing() -> None:
    with pytest.raises(ValueError, match=r"needs 3\.0 GB of memory, 2\.0 GB are there"):
        groups(["original", "a", "control"], ["original", "control"], dict.fromkeys(ARMS, 10**9), 2 * 10**9)


def test_a_sweep_of_the_baseline_alone_is_one_group() -> None:
    assert groups(["original", "control"], ["original", "control"], dict.fromkeys(ARMS, 1), 2) == [
        ["original", "control"]
    ]
