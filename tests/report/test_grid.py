"""Batch against sequence, on runs in which a recipe pays from a certain number of tokens on."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from llama_bench.report import grid
from llama_bench.report.document import Choice
from llama_bench.report.drawing import Chart
from llama_bench.stats.speedups import speedups

WORKLOADS = {
    f"b{batch}s{sequence}": {"batch": batch, "sequence": sequence} for batch in (1, 4) for sequence in (16, 64)
}


def crossing(synthetic: ModuleType) -> Any:
    """A run in which `fused` is slower for the 16 tokens of the smallest workload, and faster for all others."""
    world = synthetic.world(
        {"fused": synthetic.Truth(0.8, executed="aa"), "same": synthetic.Truth()}, workloads=WORKLOADS
    )
    for dataset, key in (("blocks", "log_seconds"), ("timings", "seconds")):
        for row in world.rows[dataset]:
            if row["recipe"] == "fused" and row["workload"] == "b1s16":
                row[key] = row[key] + 0.5 if dataset == "blocks" else row[key] * 1.6487
    return world


def test_a_grid_of_workloads_has_a_heat_map_a_recipe_with_its_crossover(synthetic: ModuleType) -> None:
    world = crossing(synthetic)
    [choice] = grid.blocks(speedups(world.run, world.datasets()), world.run)
    assert isinstance(choice, Choice)
    assert list(choice.figures) == ["fused, h512-a4-l2, target B", "same, h512-a4-l2, target B"]
    fused, same = (figure.first for figure in choice.figures.values())
    assert "the thick line is where it crosses over. It is faster from 64 tokens a run on" in fused.caption
    assert "it is on one side of 1 everywhere" in same.caption
    assert isinstance(fused, Chart)
    svg = fused.svg()
    assert 'aria-label="batch 1, 16 tokens: 0.7' in svg
    assert 'aria-label="batch 4, 64 tokens: 1.2' in svg


def test_the_crossover_runs_between_the_squares_of_different_sides(synthetic: ModuleType) -> None:
    world = crossing(synthetic)
    table = speedups(world.run, world.datasets())
    places = grid.grids(world.run)["prefill"]
    rows = {places[row["workload"]]: row for row in table.to_dicts() if row["recipe"] == "fused"}
    borders = list(grid.crossover(rows, [16, 64], [1, 4]))
    assert borders == [
        {"left": 0.5, "right": 0.5, "low": -0.5, "high": 0.5},
        {"left": -0.5, "right": 0.5, "low": 0.5, "high": 0.5},
    ]


def test_one_workload_is_no_grid(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    assert grid.blocks(speedups(world.run, world.datasets()), world.run) == []


def test_workloads_that_share_a_place_are_no_grid() -> None:
    run = {"sweep": {"workloads": {"a": {"sequence": 8}, "b": {"sequence": 8}}}}
    assert grid.grids(run) == {}
    run = {"sweep": {"workloads": {"a": {"sequence": 8}, "b": {"kind": "decode", "context": 8}}}}
    assert grid.grids(run) == {}
