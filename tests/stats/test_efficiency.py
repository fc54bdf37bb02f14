"""The view `efficiency` on runs whose power and memory are known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.stats import views


def efficiency(world: Any) -> dict[str, dict[str, Any]]:
    rows = views.make(world.run, world.datasets()).efficiency.collect().to_dicts()
    return {row["recipe"]: row for row in rows}


def test_energy_is_the_counters_over_slots_that_are_long_enough_for_it(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    for row in world.rows["blocks"]:
        short = row["recipe"] == "fast" or row["block"] == 3  # whose joules are their neighbours' as much
        row |= {"energy_j": 9e9 if short else 100.0 + 200.0 * row["block"], "energy_s": 0.2 if short else 1.0}
        row |= {"power_w": 7e9, "washout_s": 2.0, "timed_s": 2.0}  # the block's, and never asked where joules are
    found = efficiency(world)
    assert found["fast"]["power_w"] is None
    assert found["original"]["power_w"] == pytest.approx(300)
    assert found["original"]["joules_per_token"] == pytest.approx(300 / found["original"]["tokens_per_s"])
    assert found["original"]["tokens_per_joule"] == pytest.approx(1 / found["original"]["joules_per_token"])


def test_longer_slots_count_for_as_long_as_they_are(synthetic: ModuleType) -> None:
    world = synthetic.world({})
    for row in world.rows["blocks"]:
        long = row["block"] == 0
        row |= {"energy_j": 3000.0 if long else 100.0, "energy_s": 5.0 if long else 1.0}
    assert efficiency(world)["original"]["power_w"] == pytest.approx((3000 + 3 * 100) / 8)


def test_without_a_counter_power_is_that_of_the_slot_which_ends_a_block(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    arms = 3
    for row in world.rows["blocks"]:
        last = next(
            other["recipe"] for other in world.rows["blocks"]
            if other["position"] == arms - 1 and (other["restart"], other["block"]) == (row["restart"], row["block"])
        )  # fmt: skip
        row |= {"power_w": {"original": 115.0, "fast": 300.0}.get(last, 50.0), "washout_s": 0.1, "timed_s": 1.9}
        row["timed_s"] = 0.2 if row["recipe"] == "fast" else 1.9
    found = efficiency(world)
    assert found["fast"]["power_w"] is None  # its slots are too short
    assert found["original"]["power_w"] == pytest.approx(115)
    assert found["original"]["tokens_per_joule"] == pytest.approx(found["original"]["tokens_per_s"] / 115)


def test_memory_is_the_gpus_where_an_arm_holds_any_there(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, text=True)
    for row in world.rows["machines"]:
        row |= {"device_bytes": 2_000_000_000 if row["recipe"] == "fast" else None}
    found = efficiency(world)
    assert (found["fast"]["memory_bytes"], found["fast"]["memory_of"]) == (2e9, "GPU")
    assert found["fast"]["tokens_per_s_per_gb"] == pytest.approx(found["fast"]["tokens_per_s"] / 2)
    assert found["original"]["memory_of"] == "host"


def test_tokens_a_second_are_those_of_the_speedups(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa"), "broken": synthetic.Truth(failure="no")})
    frames = views.make(world.run, world.datasets())
    both = frames.efficiency.collect().join(frames.speedups.collect(), on=["cell", "recipe"])
    assert both["recipe"].to_list() == ["original", "fast", "control"]
    assert (both["tokens_per_s"] - both["tokens_per_s_right"]).abs().max() < 1e-6
    assert both.filter(pl.col("control"))["recipe"].to_list() == ["control"]
