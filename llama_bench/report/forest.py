"""The speedups of a target with their intervals: a row an arm, a panel a cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.drawing import BLUE, FAINT, GREEN, GREY, INK, VERMILLION, Chart, themed, ticks
from llama_bench.report.table import one_baseline, ratio
from llama_bench.stats.verdicts import margin_of

Row = Mapping[str, Any]

MARKS = {
    "faster": (GREEN, "triangle-right"),
    "slower": (VERMILLION, "triangle-left"),
    "equivalent": (BLUE, "circle"),
    "inconclusive": (GREY, "diamond"),
    "no-op": (GREY, "square"),
    "control": (GREY, "stroke"),
}
"""Verdict → colour and shape: nothing hangs on colour alone."""


def charts(speedups: pl.DataFrame, run: Row) -> list[Chart]:
    """Return one chart a target: the speedups of its arms with their intervals."""
    timed = speedups.filter(pl.col("time_s").is_not_null())
    return [
        chart
        for target in timed["target"].unique(maintain_order=True)
        for chart in _forest(target, timed.filter(pl.col("target") == target), run)
    ]


def _forest(target: str, arms: pl.DataFrame, run: Row) -> Iterator[Chart]:
    """The speedups of one target with their intervals, a row an arm, a panel a cell; wrong arms are not ranked."""
    import altair as alt

    shown = arms.filter(~pl.col("baseline") & pl.col("speedup").is_not_null() & (pl.col("verdict") != "wrong"))
    if shown.is_empty():
        return
    baseline = one_baseline(arms.filter("baseline")["recipe"])
    shown = shown.sort("hidden_size", descending=True, maintain_order=True, nulls_last=True)
    present = [verdict for verdict in MARKS if verdict in set(shown["verdict"])]
    colors, shapes = [MARKS[verdict][0] for verdict in present], [MARKS[verdict][1] for verdict in present]
    color = alt.Color("verdict:N", scale=alt.Scale(domain=present, range=colors), title="Verdict")
    shape = alt.Shape("verdict:N", scale=alt.Scale(domain=present, range=shapes), title="Verdict")
    x = _speedup_axis(
        [v for column in ("low", "high") for v in shown[column].drop_nulls()], f"Speedup ({baseline} = 1)"
    )
    margin = margin_of(run["sweep"]["targets"][target]["provider"])
    still = alt.Chart(pl.DataFrame({"speedup": [1.0], "low": [1 / (1 + margin)], "high": [1 + margin]}))
    panels = []
    for cell in shown["cell"].unique(maintain_order=True):
        rows = shown.filter(pl.col("cell") == cell)
        heading = alt.TitleParams(f"{rows['model'][0]} · {rows['workload'][0]}", fontSize=12)
        axis = alt.Axis(grid=True, labelLimit=320)
        y = alt.Y("recipe:N", sort=rows["recipe"].to_list(), title=None, axis=axis)
        words = [f"{row['recipe']}: {row['verdict']}; {ratio(row)}" for row in rows.to_dicts()]
        base = alt.Chart(
            rows.select("recipe", "verdict", "speedup", "low", "high").with_columns(words=pl.Series(words))
        )
        band = still.mark_rect(color=FAINT, opacity=0.5, aria=False).encode(x=x("low"), x2="high:Q")
        one = still.mark_rule(color=INK, strokeDash=[4, 3], aria=False).encode(x=x("speedup"))
        bars = base.mark_rule(strokeWidth=2, aria=False).encode(x=x("low"), x2="high:Q", y=y, color=color)
        marks = base.mark_point(size=70, filled=True, opacity=1).encode(
            x=x("speedup"), y=y, color=color, shape=shape, description="words:N"
        )
        panels.append(alt.layer(band, one, bars, marks).properties(width=460, height=alt.Step(24), title=heading))
    title = f"Speedups on target {target}"
    chart = alt.vconcat(*panels, spacing=12).resolve_scale(color="shared", shape="shared").properties(title=title)
    caption = (
        f"{title}: baseline / arm with its interval. Right of the dashed line is faster than {baseline}; the grey band "
        f"is ±{margin:.0%}, which counts as no difference. Wrong arms are not shown."
    )
    yield Chart(f"speedups-{target}", caption, themed(chart))


def _speedup_axis(ends: Sequence[float], title: str) -> Callable[[str], Any]:
    """Return what makes the x encoding of a field; logarithmic where speedups differ by more than twofold."""
    import altair as alt

    left, right = min([*ends, 0.97]), max([*ends, 1.03])
    if right / left > 2:
        left, right = left / 1.05, right * 1.05
        scale, axis = (
            alt.Scale(type="log", domain=[left, right], nice=False),
            alt.Axis(values=ticks(left, right), format="~g"),
        )
    else:
        room = (right - left) * 0.05
        scale, axis = alt.Scale(domain=[left - room, right + room], nice=False, zero=False), alt.Axis(tickCount=7)
    return lambda field: alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)
