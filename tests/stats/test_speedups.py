from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
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
        world = synthetic.world(truth, targets={"T": provider}, spread=0.004, seed=4)
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


CELL = ("h512-a4-l2", "B")
NUMBERS = ("mean_s", "median_s", "p90_s", "time_s", "time_low_s", "tokens_per_s", "speedup", "low", "high", "saved")


def arms(world: Any) -> dict[str, dict[str, Any]]:
    return {recipe: row for (model, target, recipe), row in table(world).items() if (model, target) == CELL}


def two(synthetic: ModuleType, **options: Any) -> Any:
    """A cell with two recipes that change something: one 20 % faster, one 10 % faster."""
    Truth = synthetic.Truth
    return synthetic.world({"fast": Truth(0.8, executed="aa"), "other": Truth(0.9, executed="bb")}, **options)


def keep(world: Any, wanted: Any, datasets: tuple[str, ...] = ("timings", "blocks")) -> None:
    for name in datasets:
        world.rows[name] = [row for row in world.rows[name] if wanted(row)]


def test_a_dropped_block_enters_no_statistic_and_is_counted(synthetic: ModuleType) -> None:
    calm, disturbed = two(synthetic), two(synthetic)
    disturbed.disturb(2, 1, "fast", kept=False)
    before, after = arms(calm), arms(disturbed)
    for name, row in before.items():
        assert (after[name]["verdict"], after[name]["evidence"]) == (row["verdict"], row["evidence"])
        for key in ("runs", "restarts", "speedup", "low", "high", "mean_s", "p90_s", "time_s"):
            if row[key] is None:
                assert after[name][key] is None
            else:  # the sum is the same, in another order
                assert after[name][key] == pytest.approx(row[key], rel=1e-12), (name, key)
        assert (after[name]["dropped_blocks"], after[name]["flagged_blocks"]) == (1, 0)


def test_a_flagged_block_is_kept_and_counted(synthetic: ModuleType) -> None:
    world = two(synthetic)
    world.disturb(2, 1, "fast", kept=True)
    rows = arms(world)
    assert {(row["dropped_blocks"], row["flagged_blocks"]) for row in rows.values()} == {(0, 1)}
    assert rows["fast"]["speedup"] < arms(two(synthetic))["fast"]["speedup"]


def test_fresh_restarts_change_no_estimate_and_confirm_the_recipe_they_were_made_for(synthetic: ModuleType) -> None:
    before, after = arms(two(synthetic)), arms(two(synthetic, confirm="fast"))
    for name, row in before.items():
        for key in ("speedup", "low", "high", "mean_s", "restarts", "runs", "verdict"):
            assert after[name][key] == row[key]
    fast = after["fast"]
    assert fast["confirmed"] == "confirmed"
    assert fast["confirmed_low"] < 1.25 < fast["confirmed_high"]
    assert fast["confirmed_speedup"] != fast["speedup"]
    assert "confirmed on 6 fresh restarts" in fast["evidence"]
    assert [after[name]["confirmed"] for name in ("original", "other", "control")] == [None] * 3
    assert before["fast"]["confirmed"] is None


def test_a_recipe_that_is_no_faster_on_fresh_restarts_is_said_to_be_not_confirmed(synthetic: ModuleType) -> None:
    fast = arms(two(synthetic, confirm="fast", fresh=1.05))["fast"]
    assert (fast["verdict"], fast["confirmed"]) == ("faster", "not confirmed")
    assert fast["confirmed_high"] < 1
    assert "not confirmed on 6 fresh restarts: 0.95" in fast["evidence"]


def test_a_recipe_that_is_wrong_has_no_headline(synthetic: ModuleType) -> None:
    recipes = {"fast": synthetic.Truth(0.8, executed="aa", within_bound=False)}
    fast = arms(synthetic.world(recipes, confirm="fast"))["fast"]
    assert (fast["verdict"], fast["confirmed"], fast["confirmed_speedup"]) == ("wrong", None, None)


def test_no_ops_that_differ_void_the_target_and_leave_another_target_alone(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {"fast": Truth(0.8, executed="aa"), "idle": Truth(0.9), "broken": Truth(failure="no")},
        targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"},
        confirm="fast",
    )
    # what voids B is undone on A: there the no-op is as fast as it must be
    for dataset, column, factor in (("blocks", "log_seconds", None), ("timings", "seconds", 1 / 0.9)):
        for row in world.rows[dataset]:
            if row["target"] == "A" and row["recipe"] == "idle":
                row[column] = row[column] * factor if factor else row[column] + np.log(1 / 0.9)
    rows = table(world)
    found = {recipe: row for (_, target, recipe), row in rows.items() if target == "B"}
    assert {name: row["verdict"] for name, row in found.items()} == {
        "original": "baseline", "fast": "void", "idle": "no-op", "broken": "failed", "control": "control",
    }  # fmt: skip
    fast = found["fast"]
    assert "2 degrees of freedom" in fast["evidence"]
    assert "target B" in fast["evidence"]
    assert [fast[key] for key in ("speedup", "low", "high", "level", "saved", "confirmed", "confirmed_speedup")] == (
        [None] * 7
    )
    assert rows["h512-a4-l2", "A", "fast"]["verdict"] == "faster"
    assert rows["h512-a4-l2", "A", "fast"]["confirmed"] == "confirmed"


def test_intervals_widen_when_the_controls_differ_by_more_than_their_spread_explains(synthetic: ModuleType) -> None:
    calm, shifted = two(synthetic), two(synthetic)
    for row in shifted.rows["blocks"]:
        if row["control"]:
            row["log_seconds"] += 0.014
    before, after = arms(calm)["fast"], arms(shifted)["fast"]
    assert after["verdict"] == "faster"
    assert after["speedup"] == before["speedup"]
    assert np.log(after["high"] / after["low"]) > 1.5 * np.log(before["high"] / before["low"])


def test_restarts_on_two_machines_void_the_cell_and_show_no_number(synthetic: ModuleType) -> None:
    world = two(synthetic, sizes=(512, 1024), confirm="fast")
    other = world.run["cells"][1]["id"]
    world.move(3, hostname="elsewhere", cpu="Another CPU")
    for row in world.rows["machines"]:
        if row["cell"] == other:
            row |= {"hostname": "host", "cpu": "A CPU"}
    rows = table(world)
    for recipe in ("original", "fast", "other", "control"):
        row = rows["h512-a4-l2", "B", recipe]
        assert row["verdict"] == "void"
        assert "elsewhere (Another CPU, 2 cores) and host (A CPU, 2 cores)" in row["evidence"]
        assert [row[key] for key in (*NUMBERS, "confirmed_speedup")] == [None] * 11
        assert rows["h1024-a4-l2", "B", recipe]["verdict"] != "void"


def test_an_arm_that_died_half_way_is_failed_with_its_reason(synthetic: ModuleType) -> None:
    world = two(synthetic)
    keep(world, lambda row: row["recipe"] != "other" or row["restart"] < 3)
    cell = world.run["cells"][0]["id"]
    failure = {
        "cell": cell,
        "recipe": "other",
        "stage": "slot",
        "kind": "WorkError",
        "restart": 3,
        "at": synthetic.START,
    }
    world.rows["failures"].append(failure | {"message": "killed: out of memory"})
    rows = arms(world)
    assert (rows["other"]["verdict"], rows["other"]["speedup"]) == ("failed", None)
    assert rows["other"]["evidence"] == "given up after 3 restarts: slot: killed: out of memory"
    assert rows["fast"]["verdict"] == "faster"


def test_an_arm_with_fewer_restarts_than_the_others_is_failed_even_without_a_failure(synthetic: ModuleType) -> None:
    world = two(synthetic)
    keep(world, lambda row: row["recipe"] != "other" or row["restart"] < 3)
    row = arms(world)["other"]
    assert (row["verdict"], row["speedup"]) == ("failed", None)
    assert "timed in 3 restarts only, other arms beside it in 6" in row["evidence"]


def test_a_quiet_arm_that_needs_fewer_restarts_than_a_noisy_one_is_alive(synthetic: ModuleType) -> None:
    world = two(synthetic, restarts=12, half_width=0.5)
    keep(world, lambda row: row["recipe"] != "other" or row["restart"] < 6)
    rows = arms(world)
    assert (rows["other"]["verdict"], rows["other"]["restarts"]) == ("faster", 6)
    assert (rows["fast"]["verdict"], rows["fast"]["restarts"]) == ("faster", 12)


def test_a_cell_that_stopped_after_three_restarts_of_every_arm_has_intervals_of_three(synthetic: ModuleType) -> None:
    row = arms(two(synthetic, restarts=3))["fast"]
    assert (row["verdict"], row["restarts"]) == ("faster", 3)
    assert row["high"] / row["low"] > arms(two(synthetic))["fast"]["high"] / arms(two(synthetic))["fast"]["low"]


def test_a_block_that_lacks_an_arms_slot_makes_that_arm_failed(synthetic: ModuleType) -> None:
    world = two(synthetic)
    keep(world, lambda row: (row["recipe"], row["restart"], row["block"]) != ("other", 4, 2))
    rows = arms(world)
    assert (rows["other"]["verdict"], rows["other"]["speedup"]) == ("failed", None)
    assert "1 of 24 blocks lack its slot" in rows["other"]["evidence"]
    assert rows["fast"]["verdict"] == "faster"


def test_a_block_that_lacks_the_baselines_slot_leaves_nothing_to_compare_with(synthetic: ModuleType) -> None:
    world = two(synthetic)
    gone = ("original", False, 4, 2)
    keep(world, lambda row: (row["recipe"], row["control"], row["restart"], row["block"]) != gone)
    rows = arms(world)
    assert rows["original"]["verdict"] == "failed"
    assert (rows["fast"]["verdict"], rows["fast"]["speedup"]) == ("inconclusive", None)
    assert "nothing to compare with: of original, 1 of 24 blocks lack its slot" in rows["fast"]["evidence"]


def test_a_cell_with_fewer_runs_of_its_own_lacks_none(synthetic: ModuleType) -> None:
    world = two(synthetic)
    keep(world, lambda row: row["run_index"] < 4, ("timings",))
    assert "only 96 of 120 timed runs are there" in arms(world)["other"]["evidence"]
    for cell in world.run["cells"]:
        cell["runs"] = 4
    assert arms(world)["other"]["verdict"] != "failed"


def test_missing_timings_of_a_slot_make_the_arm_failed(synthetic: ModuleType) -> None:
    world = two(synthetic)
    gone = ("other", 4, 2, 0)
    keep(world, lambda row: tuple(row[k] for k in ("recipe", "restart", "block", "run_index")) != gone, ("timings",))
    row = arms(world)["other"]
    assert (row["verdict"], row["speedup"]) == ("failed", None)
    assert "only 119 of 120 timed runs are there" in row["evidence"]


@pytest.mark.parametrize("value", [None, float("nan"), 0.0, -0.002])
def test_a_missing_or_impossible_time_makes_the_arm_failed(synthetic: ModuleType, value: float | None) -> None:
    world = two(synthetic)
    next(row for row in world.rows["timings"] if row["recipe"] == "other")["seconds"] = value
    row = arms(world)["other"]
    assert (row["verdict"], row["speedup"], row["mean_s"]) == ("failed", None, None)
    assert "no positive, finite seconds" in row["evidence"]


def test_an_infinite_time_of_the_baseline_leaves_nothing_to_compare_with(synthetic: ModuleType) -> None:
    world = two(synthetic)
    next(row for row in world.rows["timings"] if row["recipe"] == "original" and not row["control"])["seconds"] = float(
        "inf"
    )
    rows = arms(world)
    assert rows["original"]["verdict"] == "failed"
    assert (rows["fast"]["verdict"], rows["fast"]["speedup"]) == ("inconclusive", None)
    assert "nothing to compare with" in rows["fast"]["evidence"]


def test_constant_timings_are_no_measurement(synthetic: ModuleType) -> None:
    world = two(synthetic)
    for row in world.rows["timings"]:
        if row["recipe"] == "other":
            row["seconds"] = 0.0018
    for row in world.rows["blocks"]:
        if row["recipe"] == "other":
            row["log_seconds"] = float(np.log(0.0018))
    row = arms(world)["other"]
    assert (row["verdict"], row["speedup"]) == ("inconclusive", None)
    assert "all 120 timed runs took exactly the same time" in row["evidence"]


def test_a_missing_slot_value_makes_the_ratio_failed(synthetic: ModuleType) -> None:
    world = two(synthetic)
    next(row for row in world.rows["blocks"] if row["recipe"] == "other")["log_seconds"] = None
    row = arms(world)["other"]
    assert (row["verdict"], row["speedup"]) == ("failed", None)
    assert "1 of 6 restarts is not a finite number" in row["evidence"]


def test_a_sweep_of_one_arm_has_its_times_and_its_control(synthetic: ModuleType) -> None:
    rows = arms(synthetic.world({}))
    assert {name: row["verdict"] for name, row in rows.items()} == {"original": "baseline", "control": "control"}
    assert rows["original"]["mean_s"] > 0
