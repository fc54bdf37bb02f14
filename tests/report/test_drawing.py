from __future__ import annotations

import re
from types import ModuleType

import polars as pl
import pytest

from llama_bench.report import drawing, forest, sizes
from llama_bench.stats.speedups import speedups


def test_a_chart_is_drawn_as_svg_and_png_with_names_escaped(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(512, 1024))
    renamed = speedups(world.run, world.datasets()).with_columns(pl.col("recipe").replace("fast", "<script>&"))
    found = [
        *forest.charts(renamed, world.run),
        *(figure.first for figure in sizes.figures(renamed, world.run).values()),
    ]
    assert len(found) == 2
    for chart in found:
        svg = chart.svg()
        assert svg.startswith("<svg")
        assert "<script>" not in svg
        assert "&lt;script&gt;" in svg
        assert drawing.png(svg).startswith(b"\x89PNG")


def test_names_that_differ_only_in_what_a_file_name_cannot_hold_get_their_own_files() -> None:
    taken: set[str] = set()
    assert [drawing.file_name(name, taken) for name in ("a b", "a/b", "A-b", "...")] == [
        "a-b",
        "a-b-2",
        "A-b-3",
        "chart",
    ]


@pytest.mark.parametrize(("low", "high"), [(1.6, 40), (0.3, 9000), (95, 130), (0.001, 0.004)])
def test_axes_have_a_few_readable_numbers(low: float, high: float) -> None:
    ticks = drawing.ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)


def test_a_name_of_three_hundred_characters_and_emoji_fits_into_a_file_system() -> None:
    taken: set[str] = set()
    first, second = (drawing.file_name("🦙" + "x" * 300 + tail, taken) for tail in "ab")
    assert first != second
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]{50,150}", name) for name in (first, second))
