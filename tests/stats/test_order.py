"""The order of slots: an effect that was planted is found, none is found where none is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl
import pytest

from llama_bench.stats.order import DRAWS
from llama_bench.stats.order import order as of_draws

Plant = Callable[[int, str | None, str], float]
"""(position, arm before, arm) → what is added to ln seconds."""

order = partial(of_draws, draws=499)

ARMS = ("original", "fused", "int8", "control")


def slots(
    plant: Plant = lambda *_: 0.0, *, seed: int = 0, restarts: int = 6, blocks: int = 4, arms: tuple[str, ...] = ARMS
) -> pl.DataFrame:
    """Slots in random order, with noise of 1 %, drift between blocks and processes of different speed."""
    rng = np.random.default_rng(seed)
    rows = []
    for restart in range(restarts):
        speed = dict(zip(arms, rng.normal(0, 0.1, len(arms)), strict=True))
        for block in range(blocks):
            drift, before = rng.normal(0, 0.2), None
            for position, arm in enumerate(rng.permutation(list(arms)).tolist()):
                log = -5 + speed[arm] + drift + rng.normal(0, 0.01) + plant(position, before, arm)
                place = {"restart": restart, "group": 0, "block": block, "position": position}
                rows.append({**place, "recipe": arm, "log_seconds": log})
                before = arm
    return pl.DataFrame(rows)


def test_a_first_slot_that_is_slower_is_found_and_sized() -> None:
    found = of_draws(slots(lambda position, *_: 0.03 * (position == 0)), "fused", "original")
    assert found is not None
    assert found.position.p == 1 / (DRAWS + 1)
    means = {level.name: level.mean for level in found.position.levels}
    assert means["0"] - np.mean([means["1"], means["2"], means["3"]]) == pytest.approx(0.03, abs=0.006)
    assert {level.slots for level in found.position.levels} == {24}


def test_what_positions_are_worth_is_what_they_did_to_the_ratio() -> None:
    def first_is_slow(position: int, *_: object) -> float:
        return 0.05 * (position == 0)

    rows = slots(first_is_slow)
    found = order(rows, "fused", "original")
    assert found is not None
    at = {name: rows.filter(recipe=name)["position"].to_numpy() for name in ("fused", "original")}
    truth = 0.05 * (np.mean(at["fused"] == 0) - np.mean(at["original"] == 0))
    assert found.bias == pytest.approx(truth, abs=0.003)
    assert (found.mean_position, found.baseline_position) == (at["fused"].mean(), at["original"].mean())


def test_an_arm_that_slows_whoever_follows_it_is_named() -> None:
    found = order(slots(lambda _, before, __: 0.03 * (before == "int8")), "fused", "original")
    assert found is not None
    assert found.after is not None
    assert found.after.p < 0.005
    assert max(found.after.levels, key=lambda level: level.mean).name == "int8"
    assert found.own is not None
    assert max(found.own.levels, key=lambda level: level.mean).name == "int8"


def test_an_arm_that_alone_suffers_from_another_is_told_from_the_rest() -> None:
    rows = slots(lambda _, before, arm: 0.04 * (before == "int8" and arm == "fused"), blocks=8)
    suffers, other = order(rows, "fused", "original"), order(rows, "control", "original")
    assert suffers is not None
    assert other is not None
    assert suffers.own is not None
    assert other.own is not None
    assert suffers.own.p < 0.005 < 0.05 < other.own.p


def test_without_an_effect_small_p_values_are_as_rare_as_they_say() -> None:
    found = [order(slots(seed=seed, restarts=3), "fused", "original", draws=199) for seed in range(60)]
    p = np.array([[one.position.p, one.after.p] for one in found if one and one.after])
    assert len(p) == 60
    assert (p < 0.05).mean() < 0.11  # of 120, 6 are expected; 13 or fewer in 99.6 % of all tries
    assert 0.4 < p.mean() < 0.6


def test_one_block_a_restart_is_enough_and_two_arms_are_not() -> None:
    found = order(slots(lambda position, *_: 0.4 * (position == 0), blocks=1, restarts=12), "fused", "original")
    assert found is not None
    assert found.position.p < 0.01
    assert order(slots(arms=("original", "fused")), "fused", "original") is None
    assert order(slots(restarts=1, blocks=1), "fused", "original") is None


def test_blocks_that_were_dropped_or_lack_an_arm_do_not_count() -> None:
    rows = slots().with_columns(kept=pl.col("block") != 3)
    dropped = order(rows, "fused", "original")
    lacking = order(slots().filter(~((pl.col("block") == 3) & (pl.col("recipe") == "fused"))), "fused", "original")
    assert dropped is not None
    assert lacking is not None
    assert (dropped.blocks, lacking.blocks) == (18, 18)


def test_the_same_rows_give_the_same_p_values() -> None:
    assert order(slots(), "fused", "original") == order(slots(), "fused", "original")
