"""The chart of speed, accuracy and size, from runs whose truth is known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report import pareto
from llama_bench.report.drawing import png
from llama_bench.stats import views


def lossy(synthetic: ModuleType, ratio: float, increase: float, size: int, **more: Any) -> Any:
    return synthetic.Truth(
        ratio,
        executed=f"{ratio}{increase}",
        kind="approximate",
        perplexity_increase=increase,
        weight_bytes=size,
        **more,
    )


def placed(world: Any) -> pl.DataFrame:
    return views.make(world.run, world.datasets()).pareto.collect()


def data(chart: pareto.Chart, column: str) -> list[dict[str, Any]]:
    """The rows of every dataset of the chart that has `column`."""
    return [row for rows in chart.spec["datasets"].values() for row in rows if column in row]


@pytest.fixture
def world(synthetic: ModuleType) -> Any:
    recipes = {
        "fused": synthetic.Truth(0.8, executed="aa"),
        "int8": lossy(synthetic, 0.3, 0.004, 1_000_000),
        "int4": lossy(synthetic, 0.4, 0.05, 600_000),
        "int4_worse": lossy(synthetic, 0.5, 0.06, 600_000),
        "lucky": lossy(synthetic, 0.7, -0.01, 4_000_000, engine="torch-sdpa"),
        "wrong": lossy(synthetic, 0.1, 14.0, 500_000, within_bound=False),
    }
    return synthetic.world(recipes, text=True)


def test_every_arm_with_a_place_has_a_mark_where_its_time_and_loss_are(world: Any) -> None:
    [chart] = pareto.charts(placed(world))
    marks = {row["recipe"]: row for row in data(chart, "megabytes")}
    assert set(marks) == {"original", "fused", "int8", "int4", "int4_worse", "lucky"}
    assert marks["int8"]["time"] == pytest.approx(0.3, rel=0.02)
    assert marks["int8"]["low"] < marks["int8"]["time"] < marks["int8"]["high"]
    assert (marks["int8"]["class"], marks["int8"]["front"], marks["int8"]["megabytes"]) == ("approximate", True, 1.001)
    assert marks["int4_worse"]["front"] is False
    assert (marks["lucky"]["loss"], marks["lucky"]["engine"]) == (0.0, "another engine")
    assert marks["original"]["time"] == 1.0


def test_the_line_joins_those_of_the_front_that_are_best_in_time_and_accuracy_alone(world: Any) -> None:
    [chart] = pareto.charts(placed(world))
    [line] = [rows for rows in chart.spec["datasets"].values() if set(rows[0]) == {"time", "loss"}]
    # int4 is on the front for its size: slower and less accurate than int8
    assert [round(point["loss"], 4) for point in line] == [0.004, 0.0]
    assert pareto.front_line([{"time": 1.0, "loss": 0.0}, {"time": 0.5, "loss": 0.0}]) == [{"time": 0.5, "loss": 0.0}]


def test_the_caption_names_the_front_and_what_the_axes_are(world: Any) -> None:
    [chart] = pareto.charts(placed(world))
    assert "Left is faster than original, lower is more accurate (Perplexity change)" in chart.caption
    assert "nothing beats: int8 (3.3" in chart.caption
    assert "int4_worse" not in chart.caption
    assert "wrong" not in str(chart.spec)


def test_exact_rewrites_alone_have_no_chart(synthetic: ModuleType) -> None:
    world = synthetic.world({"fused": synthetic.Truth(0.8, executed="aa")}, text=True)
    assert pareto.charts(placed(world)) == []


def test_a_front_without_a_beaten_arm_and_losses_of_nothing_are_drawn(synthetic: ModuleType) -> None:
    world = synthetic.world({"half": lossy(synthetic, 1.2, 0.0, 2_000_000)}, text=True)
    [chart] = pareto.charts(placed(world))
    assert {row["recipe"] for row in data(chart, "megabytes") if row["front"]} == {"original", "half"}
    assert png(chart.svg()).startswith(b"\x89PNG")


def crowd(synthetic: ModuleType) -> Any:
    recipes = {f"rewrite_{i}": synthetic.Truth(1 + 0.002 * i, executed=f"e{i}") for i in range(20)}
    recipes |= {f"lossy_{i}": lossy(synthetic, 0.3 + 0.01 * i, 0.05 - 0.0015 * i, 900_000) for i in range(24)}
    return synthetic.world(recipes, text=True, restarts=3, pilot=3, blocks=2, runs=2, spread=0.001)


def test_of_many_arms_the_front_and_the_baseline_are_named_and_no_name_covers_another(synthetic: ModuleType) -> None:
    table = placed(crowd(synthetic))
    [chart] = pareto.charts(table)
    named = {row["recipe"] for row in data(chart, "recipe") if "megabytes" not in row}
    on = set(table.filter("front")["recipe"])
    assert len(on) > 10
    assert on | {"original"} <= named
    assert len(named) < table.height
    assert f"{table.height - len(named)} beaten arms without a name are in the tables." in chart.caption
    svg = chart.svg()
    assert svg.startswith("<svg")
    assert all(name in svg for name in named)


@pytest.mark.parametrize("floor", [1e-4, 1e-2])
@pytest.mark.parametrize(("time", "loss"), [(0.25, 0.0), (1.0, 0.003), (1.3, 4.0), (0.9, -1e-5)])
def test_pixels_and_values_are_each_others_inverse(floor: float, time: float, loss: float) -> None:
    axes = pareto.Axes(0.2, 1.5, 5.0, floor)
    x, y = axes.pixels(time, loss)
    assert 0 <= x <= pareto.WIDTH
    assert 0 <= y <= pareto.HEIGHT
    assert axes.values(x, y) == pytest.approx((time, loss))
    assert axes.pixels(0.2, axes.losses[0]) == pytest.approx((0, pareto.HEIGHT))
    assert axes.pixels(1.5, axes.losses[1]) == pytest.approx((pareto.WIDTH, 0))


def test_cells_have_files_of_their_own(synthetic: ModuleType) -> None:
    world = synthetic.world({"int8": lossy(synthetic, 0.3, 0.01, 900_000)}, text=True, sizes=(512, 1024))
    names = [chart.name for chart in pareto.charts(placed(world))]
    assert names == ["pareto-B-h512-a4-l2-prefill", "pareto-B-h1024-a4-l2-prefill"]
