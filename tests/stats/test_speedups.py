from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.stats.speedups import SCHEMA, speedups


def table(world: Any) -> dict[tuple[str, str, str], dict[str, Any]]:
    found = speedups(world.run, world.datasets())
    assert dict(found.schema) == SCHEMA
    return {(row["model"], row["target"], row["recipe"]): row for row in found.to_dicts()}


def test_every_arm_has_a_row_with_the_true_ratio_inside_its_interval(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fast": Truth(0.8, executed="aa", changed=9),
            "slow": Truth(1.25, executed="bb", changed=3),
            "idle": Truth(removed={"Identity": 4}),
            "false": Truth(0.5, executed="cc", within_bound=False),
            "broken": Truth(failure="differs from torch by 0.4"),
        },
        sizes=(512, 1024),
    )
    rows = table(world)
    assert len(rows) == 2 * 7
    for model in ("h512-a4-l2", "h1024-a4-l2"):
        arm = {recipe: row for (m, _, recipe), row in rows.items() if m == model}
        assert list(arm) == ["original", "fast", "slow", "idle", "false", "broken", "control"]
        assert [row["verdict"] for row in arm.values()] == [
            "baseline", "faster", "slower", "no-op", "wrong", "failed", "control",
        ]  # fmt: skip
        assert arm["fast"]["low"] < 1.25 < arm["fast"]["high"]
        assert arm["fast"]["saved_low"] < 0.2 < arm["fast"]["saved_high"]
        assert arm["slow"]["low"] < 0.8 < arm["slow"]["high"]
        assert arm["original"]["speedup"] == 1.0
        assert arm["original"]["low"] is None
        assert (arm["idle"]["no_op"], arm["idle"]["nodes_changed"]) == (True, 4)
        assert "that ONNX Runtime removes itself" in arm["idle"]["evidence"]
        assert arm["idle"]["low"] < arm["idle"]["speedup"] < arm["idle"]["high"]
        assert (arm["broken"]["mean_s"], arm["broken"]["speedup"], arm["broken"]["restarts"]) == (None, None, 0)
        assert "differs from torch by 0.4" in arm["broken"]["evidence"]
        assert arm["fast"]["restarts"] == 6
        assert arm["fast"]["runs"] == 6 * 4 * 5
        assert arm["fast"]["tokens_per_s"] == pytest.approx(32 / arm["fast"]["mean_s"])
        assert arm["fast"]["time_low_s"] < arm["fast"]["time_s"] < arm["fast"]["time_high_s"]


def test_a_target_that_no_node_serves_has_its_arms_as_unserved_in_the_sweeps_order(synthetic: ModuleType) -> None:
    world = synthetic.world(
        {"fast": synthetic.Truth(0.8, executed="aa")},
        targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"},
        unserved={"A": "no node offers bench_A"},
    )
    found = speedups(world.run, world.datasets())
    assert found["target"].unique(maintain_order=True).to_list() == ["A", "B"]
    unserved = found.filter(pl.col("target") == "A")
    assert set(unserved["verdict"]) == {"unserved"}
    assert set(unserved["evidence"]) == {"no node offers bench_A"}
    assert unserved["recipe"].to_list()[:2] == ["original", "fast"]
    assert unserved["mean_s"].null_count() == len(unserved)


def test_a_gpu_has_the_narrower_margin(synthetic: ModuleType) -> None:
    truth = {"near": synthetic.Truth(1.012, executed="aa", changed=1)}
    words = {}
    for provider in ("CPUExecutionProvider", "CUDAExecutionProvider"):
        world = synthetic.world(truth, targets={"T": provider}, spread=0.004, seed=2)
        row = table(world)["h512-a4-l2", "T", "near"]
        words[provider] = (row["verdict"], row["evidence"])
    assert "inside the ±2%" in words["CPUExecutionProvider"][1]
    assert "±" not in words["CUDAExecutionProvider"][1]


def test_one_restart_gives_times_but_no_ratio(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, restarts=1)
    row = table(world)["h512-a4-l2", "B", "fast"]
    assert (row["verdict"], row["speedup"], row["low"]) == ("inconclusive", None, None)
    assert "one restart" in row["evidence"]
    assert row["mean_s"] > 0


def test_an_infinite_timing_makes_its_arm_failed_and_shows_no_number(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa"), "other": synthetic.Truth(0.9, executed="bb")})
    next(row for row in world.rows["timings"] if row["recipe"] == "fast")["seconds"] = float("inf")
    rows = table(world)
    fast = rows["h512-a4-l2", "B", "fast"]
    assert fast["verdict"] == "failed"
    assert "1 of 120 timed runs" in fast["evidence"]
    assert [fast[key] for key in ("mean_s", "speedup", "low", "saved", "tokens_per_s")] == [None] * 5
    assert rows["h512-a4-l2", "B", "other"]["verdict"] == "faster"


def test_an_arm_that_was_never_timed_is_skipped(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    for name in ("timings", "blocks"):
        world.rows[name] = [row for row in world.rows[name] if row["recipe"] != "fast"]
    assert table(world)["h512-a4-l2", "B", "fast"]["verdict"] == "skipped"


def test_without_a_baseline_nothing_is_compared(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    for name in ("timings", "blocks"):
        world.rows[name] = [row for row in world.rows[name] if row["recipe"] != "original"]
    rows = table(world)
    assert rows["h512-a4-l2", "B", "original"]["verdict"] == "skipped"
    fast = rows["h512-a4-l2", "B", "fast"]
    assert (fast["verdict"], fast["speedup"]) == ("inconclusive", None)
    assert fast["mean_s"] > 0


def test_later_restarts_move_the_mean_and_not_the_spread(synthetic: ModuleType) -> None:
    truth = {"fast": synthetic.Truth(0.8, executed="aa")}
    short = table(synthetic.world(truth, restarts=6, pilot=3))["h512-a4-l2", "B", "fast"]
    world = synthetic.world(truth, restarts=6, pilot=3)
    for row in world.rows["blocks"]:
        if row["recipe"] == "fast" and row["restart"] >= 3:
            row["log_seconds"] += 0.5 * (row["restart"] - 3)
    moved = table(world)["h512-a4-l2", "B", "fast"]
    assert moved["speedup"] < short["speedup"]
    assert moved["high"] / moved["low"] == pytest.approx(short["high"] / short["low"])
