"""The view `cells`: what ended each cell, what disturbed it, its target's A/A test, its headline."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llama_bench.stats.cells import SCHEMA, cells
from llama_bench.stats.ratios import stein_total
from llama_bench.stats.speedups import speedups


def rows(world: Any) -> list[dict[str, Any]]:
    found = cells(world.run, world.datasets())
    assert dict(found.schema) == SCHEMA
    return found.to_dicts()


def fast(synthetic: ModuleType, **options: Any) -> Any:
    return synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, **options)


def test_every_cell_has_a_row_with_its_restarts_and_blocks(synthetic: ModuleType) -> None:
    first, second = rows(fast(synthetic, sizes=(512, 1024)))
    assert (first["model"], second["model"]) == ("h512-a4-l2", "h1024-a4-l2")
    assert (first["workload"], first["target"], first["restarts"], first["blocks"]) == ("prefill", "B", 6, 24)
    assert (first["dropped_blocks"], first["flagged_blocks"], first["void"]) == (0, 0, False)
    assert first["best"] == "fast"
    # a control a cell, and the test is the target's
    assert (first["aa_pairs"], second["aa_pairs"]) == (2, 2)
    assert first["aa_p"] == second["aa_p"]
    assert first["inflation"] == max(1.0, np.sqrt(first["aa_chi2"] / 2))


@pytest.mark.parametrize(
    ("options", "ended_by"),
    [
        ({"half_width": 0.5}, "half-width"),
        ({"half_width": 0.0001}, "budget"),
        ({"half_width": None}, "pilot only"),
        ({"restarts": 3}, "unfinished"),
        ({"restarts": 1}, "unfinished"),
        ({"restarts": 0}, "unfinished"),
    ],
)
def test_what_ended_a_cell_is_said(synthetic: ModuleType, options: dict[str, Any], ended_by: str) -> None:
    [row] = rows(fast(synthetic, **options))
    assert row["ended_by"] == ended_by
    assert row["wanted_half_width"] == options.get("half_width", 0.01)
    assert row["restarts"] == options.get("restarts", 6)


def test_as_many_restarts_as_the_pilot_asked_for_reach_the_half_width(synthetic: ModuleType) -> None:
    def measured(restarts: int) -> dict[str, Any]:
        world = fast(synthetic, restarts=restarts, spread=0.02, half_width=0.02)
        [row] = rows(world)
        return row

    world = fast(synthetic, spread=0.02, half_width=0.02)
    blocks = [row for row in world.rows["blocks"] if not row["control"]]
    y = [
        np.mean([row["log_seconds"] for row in blocks if (row["recipe"], row["restart"]) == ("fast", restart)])
        - np.mean([row["log_seconds"] for row in blocks if (row["recipe"], row["restart"]) == ("original", restart)])
        for restart in range(6)
    ]
    total = stein_total(y, 0.02)
    assert total > 7
    enough, one_short = measured(total), measured(total - 1)
    assert (enough["ended_by"], one_short["ended_by"]) == ("half-width", "budget")
    assert enough["half_width"] <= 0.02 < one_short["half_width"]


def test_only_arms_that_hang_on_their_interval_ask_for_a_half_width(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth()}, half_width=0.0001)
    [row] = rows(world)
    assert (row["half_width"], row["ended_by"], row["best"]) == (None, "pilot only", None)


def test_blocks_of_both_phases_are_counted_with_what_became_of_them(synthetic: ModuleType) -> None:
    world = fast(synthetic, confirm="fast")
    world.disturb(0, 1, "fast", kept=False)
    world.disturb(7, 2, "fast", kept=True)
    [row] = rows(world)
    assert (row["restarts"], row["blocks"], row["dropped_blocks"], row["flagged_blocks"]) == (6, 49, 1, 1)


def test_the_headline_stands_in_its_cell(synthetic: ModuleType) -> None:
    world = fast(synthetic, confirm="fast", fresh=1.0)
    [row] = rows(world)
    assert (row["best"], row["confirmed"]) == ("fast", "not confirmed")
    assert row["confirmed_low"] < row["confirmed_speedup"] < row["confirmed_high"]
    [same] = [one for one in speedups(world.run, world.datasets()).to_dicts() if one["recipe"] == "fast"]
    assert [row[key] for key in row if key.startswith("confirmed")] == [
        same[key] for key in same if key.startswith("confirmed")
    ]


def test_a_void_target_has_its_test_and_no_best(synthetic: ModuleType) -> None:
    truths = {"fast": synthetic.Truth(0.8, executed="aa"), "idle": synthetic.Truth(0.9)}
    [row] = rows(synthetic.world(truths, confirm="fast"))
    assert (row["void"], row["aa_pairs"], row["best"], row["confirmed"]) == (True, 2, None, None)
    assert row["aa_p"] < 0.001
    assert row["inflation"] > 2


def test_two_machines_void_a_cell_and_take_it_out_of_its_targets_test(synthetic: ModuleType) -> None:
    world = fast(synthetic, sizes=(512, 1024))
    moved = world.run["cells"][0]["id"]
    for row in world.rows["machines"]:
        if row["cell"] == moved and row["restart"] == 0:
            row["hostname"] = "elsewhere"
    first, second = rows(world)
    assert (first["void"], first["ended_by"], first["half_width"], first["best"]) == (True, None, None, None)
    assert (second["void"], second["best"], second["aa_pairs"]) == (False, "fast", 1)


def test_a_target_without_a_node_has_cells_without_an_end(synthetic: ModuleType) -> None:
    world = fast(
        synthetic,
        targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"},
        unserved={"A": "no node offers bench_A"},
    )
    unserved, served = rows(world)
    assert (unserved["target"], unserved["ended_by"], unserved["restarts"], unserved["aa_pairs"]) == ("A", None, 0, 0)
    assert (unserved["aa_chi2"], unserved["aa_p"], unserved["inflation"]) == (None, None, None)
    assert served["ended_by"] == "half-width"


def test_an_arm_that_was_given_up_does_not_leave_its_cell_unfinished(synthetic: ModuleType) -> None:
    world = synthetic.world(
        {"fast": synthetic.Truth(0.8, executed="aa"), "dying": synthetic.Truth(0.9, executed="bb")}, half_width=0.5
    )
    for name in ("timings", "blocks"):
        world.rows[name] = [row for row in world.rows[name] if row["recipe"] != "dying" or row["restart"] < 2]
    [row] = rows(world)
    assert row["ended_by"] == "half-width"
