from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl

from llama_bench.report import forest, sizes, tables
from llama_bench.report.document import Figure
from llama_bench.report.drawing import Chart
from llama_bench.stats import views
from llama_bench.stats.speedups import speedups
from llama_bench.sweep import Model


def drawn(world: Any) -> dict[str, Figure]:
    return sizes.figures(speedups(world.run, world.datasets()), world.run)


def values(figure: Figure) -> list[dict[str, Any]]:
    chart = figure.first
    assert isinstance(chart, Chart)
    [data] = chart.spec["datasets"].values()
    return list(data)


def test_every_recipe_and_target_has_its_figure_of_time_against_size(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    recipes = {"fast": Truth(0.8, executed="aa"), "idle": Truth(), "broken": Truth(failure="no")}
    found = drawn(synthetic.world(recipes, sizes=(512, 1024), targets=targets))
    assert list(found) == ["fast, target A", "idle, target A", "fast, target B", "idle, target B"]
    assert [figure.first.name for figure in found.values()] == [
        "time-A-fast",
        "time-A-idle",
        "time-B-fast",
        "time-B-idle",
    ]
    points = values(found["fast, target B"])
    assert {(point["arm"], point["hidden"]) for point in points} == {
        (arm, size) for arm in ("original", "fast") for size in (512, 1024)
    }
    assert all(point["low"] < point["time"] < point["high"] for point in points)
    assert "512: faster 1.2" in found["fast, target B"].first.caption
    assert "no-op" in found["idle, target B"].first.caption


def test_one_restart_draws_points_without_a_band(synthetic: ModuleType) -> None:
    found = drawn(synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, restarts=1, sizes=(512, 1024)))
    assert list(found) == ["fast, target B"]
    assert all(point["low"] == point["time"] == point["high"] for point in values(found["fast, target B"]))


def test_a_single_size_has_no_figure_of_time_against_size(synthetic: ModuleType) -> None:
    recipes = {f"fast{i}": synthetic.Truth(0.8, executed="aa") for i in range(30)}
    assert list(drawn(synthetic.world(recipes, restarts=2, pilot=2))) == []


def model(hidden: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "num_attention_heads": hidden // 128, **more}


def test_models_that_differ_in_size_alone_share_a_line() -> None:
    families = sizes.model_families([model(512), model(1024, intermediate_size=4096)])
    assert list(families.values()) == [["h512-a4-l2", "h1024-a8-l2"]]


def test_models_that_differ_in_more_have_lines_of_their_own() -> None:
    families = sizes.model_families([model(512), model(1024), model(512, attention_bias=True, name="biased")])
    assert families == {
        "attention_bias False": ["h512-a4-l2", "h1024-a8-l2"],
        "attention_bias True": ["biased"],
    }


def test_two_models_of_one_size_never_share_a_line() -> None:
    wide = model(512, intermediate_size=2048, name="narrow")
    families = sizes.model_families([model(512), wide, model(1024)])
    assert sorted(map(sorted, families.values())) == [["h1024-a8-l2", "h512-a4-l2"], ["narrow"]]
    heads = [model(512, name="a"), {**model(512, name="b"), "num_attention_heads": 2}]
    assert sorted(sizes.model_families(heads).values()) == [["a"], ["b"]]


def test_a_model_without_a_size_has_no_line_and_comes_last(synthetic: ModuleType) -> None:
    assert sizes.model_families([{"onnx": "own.onnx"}]) == {}
    families = sizes.model_families([{"onnx": "own.onnx"}, model(512), model(1024)])
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
    assert sizes.figures(rows, run) == {}
    [chart] = forest.charts(rows, run)
    panels = [panel["title"]["text"].split(" · ")[0] for panel in chart.spec["vconcat"]]
    assert panels[-1] == first


def test_a_figure_has_both_scales_and_shows_the_one_that_fits_first(synthetic: ModuleType) -> None:
    recipes = {"fast": synthetic.Truth(0.8, executed="aa")}
    near, far = (drawn(synthetic.world(recipes, sizes=both)) for both in ((512, 640), (512, 2048)))
    assert list(near["fast, target B"].drawings) == ["linear", "log"]
    assert list(far["fast, target B"].drawings) == ["log", "linear"]


def test_of_many_recipes_those_that_are_told_from_the_baseline_are_drawn(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    recipes = {f"idle{i}": Truth() for i in range(sizes.MOST)} | {"fast": Truth(0.8, executed="aa")}
    found = drawn(synthetic.world(recipes, restarts=3, pilot=3, sizes=(512, 1024)))
    assert len(found) == sizes.MOST
    assert "fast, target B" in found
