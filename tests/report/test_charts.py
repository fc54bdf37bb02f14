from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report import charts, tables
from llama_bench.stats import views
from llama_bench.stats.speedups import speedups
from llama_bench.sweep import Model


def drawn(world: Any) -> dict[str, charts.Chart]:
    return {chart.name: chart for chart in charts.charts(speedups(world.run, world.datasets()), world.run)}


def values(chart: charts.Chart) -> list[dict[str, Any]]:
    [data] = chart.spec["datasets"].values()
    return list(data)


def test_every_recipe_and_target_has_its_figure_of_time_against_size(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    recipes = {"fast": Truth(0.8, executed="aa"), "idle": Truth(), "broken": Truth(failure="no")}
    found = drawn(synthetic.world(recipes, sizes=(512, 1024), targets=targets))
    assert list(found) == [
        "speedups-A", "time-A-fast", "time-A-idle", "speedups-B", "time-B-fast", "time-B-idle",
    ]  # fmt: skip
    points = values(found["time-B-fast"])
    assert {(point["arm"], point["hidden"]) for point in points} == {
        (arm, size) for arm in ("original", "fast") for size in (512, 1024)
    }
    assert all(point["low"] < point["time"] < point["high"] for point in points)
    assert "512: faster 1.2" in found["time-B-fast"].caption
    assert "no-op" in found["time-B-idle"].caption


def test_a_chart_is_drawn_as_svg_and_png_with_names_escaped(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(512, 1024))
    table = speedups(world.run, world.datasets())
    renamed = table.with_columns(recipe=table["recipe"].replace("fast", "<script>&"))
    for chart in charts.charts(renamed, world.run):
        assert re.fullmatch(r"[A-Za-z0-9._+-]+", chart.name)
        svg = chart.svg()
        assert svg.startswith("<svg")
        assert "<script>" not in svg
        assert "&lt;script&gt;" in svg
        assert charts.png(svg).startswith(b"\x89PNG")


def test_wrong_arms_are_not_ranked_in_the_speedups(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world({"fast": Truth(0.8, executed="aa"), "false": Truth(0.1, executed="bb", within_bound=False)})
    text = str(drawn(world)["speedups-B"].spec)
    assert "'fast'" in text
    assert "'false'" not in text


def test_one_restart_draws_points_without_a_band(synthetic: ModuleType) -> None:
    found = drawn(synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, restarts=1, sizes=(512, 1024)))
    assert list(found) == ["time-B-fast"]
    assert all(point["low"] == point["time"] == point["high"] for point in values(found["time-B-fast"]))


def test_a_single_size_has_no_figure_of_time_against_size(synthetic: ModuleType) -> None:
    recipes = {f"fast{i}": synthetic.Truth(0.8, executed="aa") for i in range(30)}
    assert list(drawn(synthetic.world(recipes, restarts=2, pilot=2))) == ["speedups-B"]


def test_names_that_differ_only_in_what_a_file_name_cannot_hold_get_their_own_files() -> None:
    taken: set[str] = set()
    assert [charts.file_name(name, taken) for name in ("a b", "a/b", "A-b", "...")] == [
        "a-b",
        "a-b-2",
        "A-b-3",
        "chart",
    ]


def model(hidden: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_attention_heads": hidden // 128, **more}


def test_models_that_differ_in_size_alone_share_a_line() -> None:
    families = charts.model_families([model(512), model(1024, intermediate_size=4096)])
    assert list(families.values()) == [["h512-a4-l2", "h1024-a8-l2"]]


def test_models_that_differ_in_more_have_lines_of_their_own() -> None:
    families = charts.model_families([model(512), model(1024), model(512, attention_bias=True, name="biased")])
    assert families == {
        "attention_bias False": ["h512-a4-l2", "h1024-a8-l2"],
        "attention_bias True": ["biased"],
    }


def test_two_models_of_one_size_never_share_a_line() -> None:
    wide = model(512, intermediate_size=2048, name="narrow")
    families = charts.model_families([model(512), wide, model(1024)])
    assert sorted(map(sorted, families.values())) == [["h1024-a8-l2", "h512-a4-l2"], ["narrow"]]
    heads = [model(512, name="a"), {**model(512, name="b"), "num_attention_heads": 2}]
    assert sorted(charts.model_families(heads).values()) == [["a"], ["b"]]


def test_a_model_without_a_size_has_no_line_and_comes_last(synthetic: ModuleType) -> None:
    assert charts.model_families([{"onnx": "own.onnx"}]) == {}
    families = charts.model_families([{"onnx": "own.onnx"}, model(512), model(1024)])
    assert list(families.values()) == [["h512-a4-l2", "h1024-a8-l2"]]
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa", changed=5)}, sizes=(512, 2048))
    first = world.run["cells"][0]["model"]
    own = {"onnx": "own.onnx", "name": first}
    models = [own if Model.model_validate(one).label == first else one for one in world.run["sweep"]["models"]]
    cells = [{**cell, "hidden_size": None} if cell["model"] == first else cell for cell in world.run["cells"]]
    run = {**world.run, "cells": cells, "sweep": {**world.run["sweep"], "models": models}}
    frames = views.make(run, world.datasets())
    rows = frames.speedups.collect()
    assert set(rows.filter(pl.col("model") == first)["hidden_size"]) == {None}
    titles = [table.title for table in tables.results(rows, frames.cells.collect(), run)]
    assert [first in title for title in titles] == [False, True]
    [forest] = charts.charts(rows, run)  # and no chart against size, for one is left that has any
    assert forest.name == "speedups-B"
    panels = [panel["title"]["text"].split(" · ")[0] for panel in forest.spec["vconcat"]]
    assert panels[-1] == first


@pytest.mark.parametrize(("low", "high"), [(1.6, 40), (0.3, 9000), (95, 130), (0.001, 0.004)])
def test_axes_have_a_few_readable_numbers(low: float, high: float) -> None:
    ticks = charts.ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)
