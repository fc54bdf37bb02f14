from __future__ import annotations

from types import ModuleType

import polars as pl

from llama_bench.report import forest
from llama_bench.stats.speedups import speedups


def test_each_target_has_one_chart_with_a_panel_a_cell(synthetic: ModuleType) -> None:
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(512, 1024), targets=targets)
    found = forest.charts(speedups(world.run, world.datasets()), world.run)
    assert [chart.name for chart in found] == ["speedups-A", "speedups-B"]
    assert [len(chart.spec["vconcat"]) for chart in found] == [2, 2]
    assert "±1%" in found[0].caption
    assert "±2%" in found[1].caption


def test_the_axis_names_the_baseline_unless_cells_have_their_own(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(512, 1024))
    rows = speedups(world.run, world.datasets())
    other = pl.when(pl.col("baseline") & (pl.col("hidden_size") == 512)).then(pl.lit("other")).otherwise("recipe")
    for frame, name in ((rows, "original"), (rows.with_columns(other.alias("recipe")), "each cell's baseline")):
        [chart] = forest.charts(frame, world.run)
        assert f"Speedup ({name} = 1)" in str(chart.spec)
        assert f"faster than {name};" in chart.caption


def test_wrong_arms_are_not_ranked_in_the_speedups(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world({"fast": Truth(0.8, executed="aa"), "false": Truth(0.1, executed="bb", within_bound=False)})
    [chart] = forest.charts(speedups(world.run, world.datasets()), world.run)
    assert "'fast'" in str(chart.spec)
    assert "'false'" not in str(chart.spec)


def test_each_mark_says_its_arm_verdict_and_interval(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    [chart] = forest.charts(speedups(world.run, world.datasets()), world.run)
    assert 'aria-label="fast: faster; 1.2' in chart.svg()
