"""Horizontal bars, a row an arm, a panel a cell: what several sections show of every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.report.drawing import BLUE, INK, PAPER, VERMILLION, Chart, themed

Row = Mapping[str, Any]

COLOURS = (BLUE, VERMILLION)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its panel and row, its length, what is written at its end, what it is (for its colour), and in words."""

    panel: str
    row: str
    value: float
    text: str
    kind: str
    words: str


def chart(name: str, title: str, caption: str, axis: Mapping[str, Any], bars: Sequence[Bar], most: float) -> Chart:
    """Return bars from zero to `most`; `axis` has the x axis' `title` and, where wanted, its `format`."""
    import altair as alt

    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    color = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=kinds, range=list(COLOURS[: len(kinds)])),
        title=None,
        legend=alt.Undefined if len(kinds) > 1 else None,
    )
    x_axis = alt.Axis(tickCount=6, **({"format": axis["format"]} if "format" in axis else {}))
    x = alt.X("value:Q", title=axis["title"], scale=alt.Scale(domain=[0, most]), axis=x_axis)
    panels = []
    for panel in dict.fromkeys(bar.panel for bar in bars):
        mine = [bar for bar in bars if bar.panel == panel]
        data = pl.DataFrame(
            [{"row": b.row, "value": b.value, "text": b.text, "kind": b.kind, "words": b.words} for b in mine]
        )
        y = alt.Y("row:N", sort=[bar.row for bar in mine], title=None, axis=alt.Axis(labelLimit=320))
        base = alt.Chart(data)
        drawn = base.mark_bar(opacity=0.85).encode(x=x, y=y, color=color, description="words:N")
        at_end: dict[str, Any] = {"align": "left", "dx": 5, "fontSize": 11, "aria": False}
        rim = base.mark_text(**at_end, stroke=PAPER, strokeWidth=3).encode(x=x, y=y, text="text:N")
        text = base.mark_text(**at_end, color=INK).encode(x=x, y=y, text="text:N")
        heading = {"title": alt.TitleParams(panel, fontSize=12)} if panel else {}
        panels.append(alt.layer(drawn, rim, text).properties(width=460, height=alt.Step(22), **heading))
    whole = alt.vconcat(*panels, spacing=12).resolve_scale(color="shared").properties(title=title)
    return Chart(name, caption, themed(whole))
