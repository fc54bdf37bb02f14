"""Bars of every arm: the share of its limit, tokens a second, and where the time went."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report import efficiency, limits, seconds
from llama_bench.report.document import Figure
from llama_bench.report.drawing import Chart
from llama_bench.report.table import Table
from llama_bench.stats import views


def frames(world: Any) -> views.Frames:
    return views.make(world.run, world.datasets())


def points(chart: Any) -> list[dict[str, Any]]:
    assert isinstance(chart, Chart)
    return [row for data in chart.spec["datasets"].values() for row in data]


def test_the_share_of_the_limit_is_drawn_for_each_arm_that_has_one(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    table = frames(world).speedups.collect()
    assert limits.charts(table) == []
    known = table.with_columns(
        of_bound=pl.when(pl.col("recipe") == "fast").then(0.61), bound_by=pl.lit("compute"), bound_s=pl.lit(0.001)
    )
    [chart] = limits.charts(known)
    [bar] = points(chart)
    assert (bar["row"], bar["value"], bar["text"], bar["kind"]) == ("fast", 0.61, "61%", "limited by compute")
    assert 'aria-label="fast: 61.0% of what compute allows' in chart.svg()


def test_seconds_are_those_of_the_pieces(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    pieces = frames(world).pieces.collect()
    [chart] = seconds.charts(pieces)
    found = {bar["row"]: bar["value"] for bar in points(chart)}
    assert found["starting processes"] == pytest.approx(6 * 2.0)
    assert found["timed runs"] == pytest.approx(6 * 4.5)
    assert found["examinations of what is executed"] == pytest.approx(3.0)
    assert seconds.charts(pieces.clear()) == []


def test_tokens_a_second_are_drawn_fastest_first_and_wrong_arms_are_told_apart(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world({"slow": Truth(2, executed="a"), "false": Truth(0.1, executed="b", within_bound=False)})
    figure, table = efficiency.blocks(frames(world).efficiency.collect())
    assert isinstance(figure, Figure)
    bars = points(figure.first)
    assert [bar["row"] for bar in bars] == ["false", "original", "slow"]
    assert [bar["kind"] for bar in bars] == ["wrong: never ranked", "tokens a second", "tokens a second"]
    assert isinstance(table, Table)
    assert table.columns == ("Model", "Workload", "Recipe", "Tokens/s")
    assert "Power was not measured" in table.notes[0]


def test_watts_and_gigabytes_are_in_the_table_where_they_were_measured(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, text=True)
    for row in world.rows["blocks"]:
        row |= {"energy_j": 250.0, "energy_s": 1.0}
    _, table = efficiency.blocks(frames(world).efficiency.collect())
    assert isinstance(table, Table)
    assert table.columns[3:] == ("Tokens/s", "Power (W)", "Tokens/J", "J a token", "Memory (MB)", "Tokens/s a GB")
    rate, power, joule, a_token, memory, a_gigabyte = (float(cell.replace(",", "")) for cell in table.rows[0][3:])
    assert power == 250
    assert a_token == pytest.approx(1 / joule, rel=1e-2)
    assert joule == pytest.approx(rate / power, rel=1e-2)
    assert a_gigabyte == pytest.approx(rate / (memory / 1e3), rel=1e-2)
