"""Two runs with known truth: what is called faster, slower, a regression, the machine's doing, or nothing at all."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.stats.comparing import SCHEMA, Compared, compare
from llama_bench.stats.drift import SCHEMA as DRIFT_SCHEMA
from llama_bench.stats.matching import side

BEFORE, AFTER = "bb" * 32, "cc" * 32
"""Executed graphs of the recipe that is changed."""


def recipes(synthetic: ModuleType, executed: str = BEFORE, **changed: Any) -> dict[str, Any]:
    """Three recipes: one that stays the same program, one that a change concerns, and one that changes nothing."""
    return {
        "stays": synthetic.Truth(0.9, executed="aa" * 32, changed=3),
        "changes": synthetic.Truth(0.8, executed=executed, changed=3, **changed),
        "nothing": synthetic.Truth(),
    }


def before(synthetic: ModuleType, **options: Any) -> Any:
    return synthetic.world(recipes(synthetic), seed=1, **options)


def after(synthetic: ModuleType, change: float = 1.1, drift: float = 1.05, **options: Any) -> Any:
    """The same sweep later: `changes` takes `change` as long, and the machine makes everything `drift` as long."""
    world = synthetic.world(recipes(synthetic, AFTER), seed=2, **options)
    world.slow_down(drift)
    world.slow_down(change, "changes")
    return world


def compared(a: Any, b: Any, **options: Any) -> Compared:
    sides = (side(name, world.run, world.datasets()) for name, world in (("A", a), ("B", b)))
    return compare(*sides, **options)


def verdicts(found: Compared) -> dict[str, str]:
    return dict(zip(found.rows["recipe"], found.rows["verdict"], strict=True))


def row(found: Compared, recipe: str) -> dict[str, Any]:
    [one] = found.rows.filter(pl.col("recipe") == recipe).to_dicts()
    return one


def new_onnxruntime(world: Any) -> Any:
    world.run["versions"] = {"onnxruntime": "1.32.0"}
    return world


def other_hardware(world: Any) -> Any:
    for machine in world.rows["machines"]:
        machine["cpu"] = "Another CPU"
    return world


def test_a_slower_arm_is_told_from_a_machine_that_became_slower(synthetic: ModuleType) -> None:
    found = compared(before(synthetic, sizes=(512, 1024)), after(synthetic, sizes=(512, 1024)))
    assert found.rows.schema == pl.Schema(SCHEMA)
    assert found.rows.filter("regression")["recipe"].to_list() == ["changes", "changes"]
    for one in found.rows.filter(pl.col("recipe") == "changes").to_dicts():
        assert (one["by"], one["verdict"]) == ("time", "slower")
        assert one["low"] < 0.10 < one["high"]
        assert one["high"] - one["low"] < 0.05
        assert one["time_change"] == pytest.approx((1 + one["change"]) * (1 + one["drift"]) - 1)
    others = found.rows.filter(pl.col("recipe") != "changes")
    assert set(others["verdict"]) == {"same"}
    assert others["change"].null_count() == len(others)


def test_the_drift_is_that_of_the_programs_that_are_the_same(synthetic: ModuleType) -> None:
    [drift] = compared(before(synthetic), after(synthetic)).drift.to_dicts()
    assert list(drift) == list(DRIFT_SCHEMA)
    assert (drift["source"], drift["arms"], drift["same_hardware"], drift["by"]) == ("same programs", 4, True, "time")
    assert drift["low"] < 0.05 < drift["high"]
    assert drift["most"] < 0.10  # the arm that changed is none of them
    assert drift["aa_pairs"] == 3


def test_speedups_cancel_the_machine(synthetic: ModuleType) -> None:
    found = compared(before(synthetic), after(synthetic), by="speedup")
    one = row(found, "changes")
    assert (one["by"], one["verdict"], one["regression"]) == ("speedup", "slower", True)
    assert one["low"] < 0.10 < one["high"]
    assert one["speedup_a"] / one["speedup_b"] == pytest.approx(1 + one["change"])
    assert one["change"] == pytest.approx(one["relative_change"])
    # the baseline and the arm are the same programs in both runs, and so is their ratio
    assert verdicts(found) == {"changes": "slower"} | dict.fromkeys(("original", "stays", "nothing", "control"), "same")


def test_a_run_against_itself_shows_nothing(synthetic: ModuleType) -> None:
    world = before(synthetic)
    for by in (None, "time", "speedup"):
        found = compared(world, copy.deepcopy(world), by=by)
        assert set(found.rows["verdict"]) == {"same"}
        assert found.rows["time_change"].abs().max() == pytest.approx(0.0, abs=1e-12)
        assert not found.rows["regression"].any()
        assert found.drift["change"][0] == pytest.approx(0.0, abs=1e-12)
    # under another ONNX Runtime nothing is known to be the same, and all is tested
    found = compared(world, new_onnxruntime(copy.deepcopy(world)))
    assert not set(found.rows["verdict"]) & {"same", "faster", "slower"}


def test_with_another_onnxruntime_times_are_compared_as_they_are(synthetic: ModuleType) -> None:
    found = compared(before(synthetic), new_onnxruntime(after(synthetic, change=1.2, drift=1.1)))
    assert set(found.rows["by"]) == {"time"}
    assert set(found.rows.filter(pl.col("change").is_not_null())["recipe"]) == {
        "original",
        "stays",
        "changes",
        "nothing",
    }
    assert verdicts(found)["control"] == "control"
    one = row(found, "changes")
    assert (one["verdict"], one["drift"]) == ("slower", None)
    assert one["change"] == pytest.approx(one["time_change"])
    assert one["low"] < 1.2 * 1.1 - 1 < one["high"]
    [drift] = found.drift.to_dicts()
    assert (drift["source"], drift["low"], drift["arms"]) == ("all arms", None, 5)
    assert drift["least"] < drift["change"] < drift["most"]


def test_on_other_hardware_speedups_are_compared_and_times_only_shown(synthetic: ModuleType) -> None:
    found = compared(before(synthetic), other_hardware(after(synthetic, drift=2.0)))
    assert set(found.rows["by"]) == {"speedup"}
    words = verdicts(found)
    assert (words["changes"], words["original"], words["control"]) == ("slower", "baseline", "control")
    assert words["nothing"] == "no-op"
    assert words["stays"] in ("equivalent", "inconclusive")  # another machine may well give it another speedup
    assert found.rows.filter("regression")["recipe"].to_list() == ["changes"]
    assert found.rows["time_change"].min() > 0.8
    [drift] = found.drift.to_dicts()
    assert (drift["same_hardware"], drift["source"]) == (False, "all arms")
    by_time = compared(before(synthetic), other_hardware(after(synthetic, drift=2.0)), by="time")
    assert {word for name, word in verdicts(by_time).items() if name != "control"} == {"slower"}


def test_a_baseline_that_changes_itself_is_seen_in_time(synthetic: ModuleType) -> None:
    later = after(synthetic, change=1.0)
    for recipe in ("original", "control", "nothing"):
        later.slow_down(1.1, recipe)
    for variant in later.rows["variants"]:
        if variant["recipe"] in ("original", "control", "nothing"):
            variant["executed_sha256"] = "dd" * 32
    found = compared(before(synthetic), later)
    assert verdicts(found)["original"] == "slower"
    assert row(found, "original")["regression"]
    [drift] = found.drift.to_dicts()
    assert (drift["source"], drift["arms"]) == ("same programs", 1)


@pytest.mark.parametrize(("threshold", "regression"), [(None, True), (0.0, True), (0.05, True), (0.2, False)])
def test_a_regression_is_beyond_the_threshold(synthetic: ModuleType, threshold: float | None, regression: bool) -> None:
    one = row(compared(before(synthetic), after(synthetic), threshold=threshold), "changes")
    assert (one["verdict"], one["regression"]) == ("slower", regression)
    assert one["threshold"] == (0.02 if threshold is None else threshold)


def test_less_than_what_counts_as_none_is_no_regression(synthetic: ModuleType) -> None:
    options = {"spread": 0.0005, "restarts": 12, "pilot": 12}
    one = row(compared(before(synthetic, **options), after(synthetic, change=1.012, **options)), "changes")
    assert (one["verdict"], one["regression"]) == ("slower", False)
    assert "count as none" in one["evidence"]


def test_a_faster_arm_is_no_regression(synthetic: ModuleType) -> None:
    one = row(compared(before(synthetic), after(synthetic, change=0.9)), "changes")
    assert (one["verdict"], one["regression"]) == ("faster", False)
    assert one["low"] < -0.1 < one["high"]


def test_arms_of_one_run_only_are_new_or_gone(synthetic: ModuleType) -> None:
    truths = recipes(synthetic)
    fewer = synthetic.world({"stays": truths["stays"], "added": synthetic.Truth(0.7, executed=AFTER)}, seed=2)
    found = compared(before(synthetic), fewer)
    assert verdicts(found) == {
        "original": "same",
        "stays": "same",
        "added": "new",
        "control": "same",
        "changes": "gone",
        "nothing": "gone",
    }
    assert row(found, "added")["time_a_s"] is None
    assert row(found, "added")["time_b_s"] == pytest.approx(0.7 * 2e-3, rel=0.1)
    assert not found.rows["regression"].any()


def test_cells_of_one_run_only_are_new_or_gone_as_a_whole(synthetic: ModuleType) -> None:
    found = compared(before(synthetic, sizes=(512, 1024)), before(synthetic, sizes=(512, 2048)))
    words = {model: set(rows["verdict"]) for (model,), rows in found.rows.group_by("model")}
    assert words == {"h512-a4-l2": {"same"}, "h1024-a4-l2": {"gone"}, "h2048-a4-l2": {"new"}}


@pytest.mark.parametrize(
    ("then", "now", "word", "regression"),
    [
        ({}, {"within_bound": False}, "now wrong", True),
        ({"within_bound": False}, {}, "now right", False),
        ({"within_bound": False}, {"within_bound": False}, "wrong", False),
        ({}, {"failure": 'no kernel for <Where> & "more"'}, "now failed", True),
        ({"failure": "no kernel"}, {}, "new", False),
        ({}, {"skipped": "no such engine"}, "gone", False),
        ({"skipped": "no such engine"}, {"skipped": "no such engine"}, "skipped", False),
        ({"failure": "no kernel"}, {"failure": "no kernel"}, "failed", False),
    ],
)
def test_an_arm_that_is_wrong_or_fails_has_its_own_word(
    synthetic: ModuleType, then: dict[str, Any], now: dict[str, Any], word: str, regression: bool
) -> None:
    worlds = [synthetic.world(recipes(synthetic, **truth), seed=seed) for seed, truth in ((1, then), (2, now))]
    one = row(compared(*worlds), "changes")
    assert (one["verdict"], one["regression"], one["change"]) == (word, regression, None)
    assert one["evidence"]


def test_a_stricter_bound_makes_no_regression(synthetic: ModuleType) -> None:
    later = synthetic.world(recipes(synthetic, within_bound=False), seed=2)
    later.run["sweep"]["measure"]["accuracy"]["max_perplexity_increase"] = 0.01
    one = row(compared(before(synthetic), later), "changes")
    assert (one["verdict"], one["regression"]) == ("wrong", False)
    assert "bounds of accuracy or text are not those of the other run" in one["evidence"]


@pytest.mark.parametrize("run", ["A", "B"])
def test_equal_programs_that_differ_in_either_run_void_its_target(synthetic: ModuleType, run: str) -> None:
    worlds = {"A": before(synthetic), "B": after(synthetic)}
    for slot in worlds[run].rows["blocks"]:
        slot["log_seconds"] += 0.1 if slot["control"] else 0.0
    found = compared(worlds["A"], worlds["B"])
    assert set(found.rows["verdict"]) == {"void"}
    assert not found.rows["regression"].any()
    assert all(f"in {run} the A/A pairs" in evidence for evidence in found.rows["evidence"])


def test_cells_of_one_name_that_ask_something_else_are_void(synthetic: ModuleType) -> None:
    found = compared(before(synthetic), after(synthetic, workload={"sequence": 32, "batch": 2}))
    assert set(found.rows["verdict"]) == {"void"}
    assert "sequence 16 → 32" in found.rows["evidence"][0]


def test_speedups_over_different_baselines_are_not_compared(synthetic: ModuleType) -> None:
    later = after(synthetic)
    later.slow_down(0.9, "control")
    later.run["sweep"]["measure"]["baseline"] = "stays"
    for cell in later.run["cells"]:
        cell["baseline"] = "stays"
    found = compared(before(synthetic), other_hardware(later))
    assert row(found, "changes")["verdict"] == "void"
    assert "over original in A and over stays in B" in row(found, "changes")["evidence"]


def test_an_arm_with_one_restart_cannot_be_compared(synthetic: ModuleType) -> None:
    found = compared(before(synthetic), after(synthetic, restarts=1))
    assert set(found.rows["verdict"]) == {"void"}
    assert "one restart only" in found.rows["evidence"][0]


def test_a_cell_without_a_program_that_is_the_same_uses_the_drift_of_the_others(synthetic: ModuleType) -> None:
    sizes = (512, 1024)
    later = after(synthetic, sizes=sizes, drift=1.3)
    large = {cell["id"] for cell in later.run["cells"] if cell["hidden_size"] == 1024}
    for variant in later.rows["variants"]:
        if variant["cell"] in large:
            variant["executed_sha256"] = (
                variant["executed_sha256"].replace("a", "e").replace("f", "9").replace("c", "7")
            )
    found = compared(before(synthetic, sizes=sizes), later)
    one = found.rows.filter((pl.col("recipe") == "original") & (pl.col("model") == "h1024-a4-l2")).to_dicts()[0]
    assert one["verdict"] in ("inconclusive", "equivalent")
    assert one["drift"] == pytest.approx(0.3, abs=0.1)
    assert one["low"] < 0.0 < one["high"]


def test_drift_that_is_not_shared_widens_the_intervals(synthetic: ModuleType) -> None:
    even, uneven = after(synthetic), after(synthetic)
    uneven.slow_down(1.03, "stays")
    widths = [
        (one["high"] - one["low"], found.drift["inflation"][0])
        for found in (compared(before(synthetic), world) for world in (even, uneven))
        for one in [row(found, "changes")]
    ]
    assert widths[1][1] > 1.5 * widths[0][1]
    assert widths[1][0] > 1.3 * widths[0][0]
