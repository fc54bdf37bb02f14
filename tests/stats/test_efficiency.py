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


def test_power_counts_only_in_slots_that_are_long_enough_to_be_the_arms_alone(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    for row in world.rows["blocks"]:
        short = row["recipe"] == "fast"
        watts = 100.0 + 10 * row["block"]
        row |= {"power_w": watts, "washout_s": 0.1, "timed_s": 0.2 if short else 1.9}
    found = efficiency(world)
    assert found["fast"]["power_w"] is None
    assert found["fast"]["tokens_per_joule"] is None
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
