"""Charts: the study's figures 4–9 (time against size, the baseline against one recipe) and the speedups of a target.

Altair describes a chart, vl-convert draws it to SVG and PNG on this machine; nothing is fetched.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats.verdicts import margin_of
from llama_bench.sweep import Model

Row = Mapping[str, Any]

# Okabe & Ito's palette, which readers with any colour vision tell apart; on dark paper the page lightens it
BLUE, VERMILLION, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6e6e6e"
INK, FAINT, PAPER = "#1f2328", "#d8dee4", "#ffffff"
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"

MARKS = {
    "faster": (GREEN, "triangle-right"),
    "slower": (VERMILLION, "triangle-left"),
    "equivalent": (BLUE, "circle"),
    "inconclusive": (GREY, "diamond"),
    "no-op": (GREY, "square"),
    "control": (GREY, "stroke"),
}
"""Verdict → colour and shape: nothing hangs on colour alone."""

STEPS = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5), (1, 3), (1,))
"""Readable numbers within a power of ten, from the densest choice to the sparsest."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart ready to be drawn: the name of its file, what it shows in words, and its Vega-Lite specification."""

    name: str
    caption: str
    spec: Mapping[str, Any]

    def svg(self) -> str:
        """Return the chart as SVG text."""
        import vl_convert

        return str(vl_convert.vegalite_to_svg(json.dumps(self.spec)))


def png(svg: str, scale: float = 2.0) -> bytes:
    """Return SVG text as a PNG; `scale` 2 is sharp on screens with two device pixels a pixel."""
    import vl_convert

    return bytes(vl_convert.svg_to_png(svg, scale=scale))


def charts(speedups: pl.DataFrame, run: Row) -> list[Chart]:
    """Return a target's charts one after the other: its speedups, then time against size for every recipe."""
    timed = speedups.filter(pl.col("time_s").is_not_null())
    found: list[Chart] = []
    names: set[str] = set()
    for target in timed["target"].unique(maintain_order=True):
        part = timed.filter(pl.col("target") == target)
        for chart in (*_forest(target, part, run), *_sizes(target, part, run)):
            found.append(Chart(file_name(chart.name, names), chart.caption, chart.spec))
    return found


def _sizes(target: str, arms: pl.DataFrame, run: Row) -> Iterator[Chart]:
    """One chart a workload, family of models and recipe; a single size makes no line."""
    families = model_families([dict(model) for model in run["sweep"]["models"]])
    for workload in arms["workload"].unique(maintain_order=True):
        for family, models in families.items():
            part = arms.filter((pl.col("workload") == workload) & pl.col("model").is_in(models))
            recipes = part.filter(~pl.col("baseline") & ~pl.col("control"))["recipe"].unique(maintain_order=True)
            many = [workload] if arms["workload"].n_unique() > 1 else []
            many += [family] if len(families) > 1 else []
            for recipe in recipes:
                pair = part.filter(pl.col("baseline") | (pl.col("recipe") == recipe)).sort("hidden_size")
                if pair.filter(pl.col("baseline"))["hidden_size"].n_unique() > 1:
                    yield _size_chart(target, recipe, many, pair)


def model_families(models: Sequence[Row]) -> dict[str, list[str]]:
    """Return name of a family → labels of its models: those that differ in size alone, and can share a line.

    Size is hidden size and heads; the intermediate size too where it grows along. Two models of one hidden size
    never share a line. Own models have no size, and no line.
    """
    parsed = [Model.model_validate(model) for model in models if "onnx" not in model]
    if not parsed:
        return {}
    size = {"name", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size"}
    for left_out in (size, size - {"intermediate_size"}, size - {"intermediate_size", "num_key_value_heads"}, {"name"}):
        groups: dict[str, list[Model]] = {}
        for model in parsed:
            groups.setdefault(json.dumps(model.model_dump(exclude=left_out), sort_keys=True), []).append(model)
        if all(len({model.hidden_size for model in group}) == len(group) for group in groups.values()):
            break
    specs = [json.loads(key) for key in groups]
    differing = [key for key in specs[0] if len({json.dumps(spec[key]) for spec in specs}) > 1]
    titles = [", ".join(f"{key} {spec[key]}" for key in differing) for spec in specs]
    return {title: [model.label for model in group] for title, group in zip(titles, groups.values(), strict=True)}


def _size_chart(target: str, recipe: str, many: Sequence[str], pair: pl.DataFrame) -> Chart:
    import altair as alt

    baseline = str(pair.filter(pl.col("baseline"))["recipe"][0])
    seconds = [
        value for column in ("time_s", "time_low_s", "time_high_s") for value in pair[column] if value is not None
    ]
    unit, factor = ("s", 1.0) if max(seconds) >= 1 else ("ms", 1000.0)
    data = pl.DataFrame(_points(pair, factor))
    sizes = sorted(set(pair["hidden_size"].to_list()))
    x = alt.X(
        "hidden:Q", title="Hidden size", scale=_size_scale(sizes), axis=alt.Axis(values=sizes, format="d", grid=False)
    )
    low, high = min(seconds) * factor, max(seconds) * factor
    y = alt.Y("time:Q", title=f"Time of a run ({unit})", **_time_axis(low, high))
    color = alt.Color("arm:N", scale=alt.Scale(domain=[baseline, recipe], range=[BLUE, VERMILLION]), title=None)
    shape = alt.Shape("arm:N", scale=alt.Scale(domain=[baseline, recipe], range=["circle", "triangle-up"]), title=None)
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=[baseline, recipe], range=[[1, 0], [6, 4]]), title=None)
    base = alt.Chart(data)
    layers = [
        base.mark_area(opacity=0.2).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=dash),
        base.mark_point(size=64, filled=True, opacity=1).encode(x=x, y=y, color=color, shape=shape),
    ]
    verdicts = [_point_in_words(row) for row in pair.filter(~pl.col("baseline")).to_dicts()]
    title = " · ".join([f"{recipe} on target {target}", *many])
    chart = alt.layer(*layers).properties(
        width=460, height=280, title=alt.TitleParams(title, subtitle=verdicts or ["no timings"])
    )
    caption = (
        f"{title}: time of a run against hidden size, {baseline} and {recipe}. Points are geometric means over "
        f"restarts, bands and bars their 95 % t intervals. {'; '.join(verdicts)}."
    )
    return Chart(f"time-{target}-{recipe}{''.join('-' + m for m in many)}", caption, themed(chart))


def _points(pair: pl.DataFrame, factor: float) -> list[dict[str, Any]]:
    """Rows of the chart's data, in its unit; an arm without interval has a band of no width."""
    return [
        {
            "arm": row["recipe"],
            "hidden": row["hidden_size"],
            "time": row["time_s"] * factor,
            "low": (row["time_low_s"] or row["time_s"]) * factor,
            "high": (row["time_high_s"] or row["time_s"]) * factor,
        }
        for row in pair.to_dicts()
    ]


def _point_in_words(row: Row) -> str:
    number = "" if row["speedup"] is None else f" {row['speedup']:.3f}×"
    interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['hidden_size']}: {row['verdict']}{number}{interval}"


def _size_scale(sizes: Sequence[int]) -> Any:
    """Sizes double from model to model, so they are spaced by their logarithm, with room at both ends."""
    import altair as alt

    room = max((sizes[-1] / sizes[0]) ** 0.06, 1.1)
    return alt.Scale(type="log", base=2, domain=[sizes[0] / room, sizes[-1] * room], nice=False)


def _time_axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis where times differ by more than threefold, else one from zero; few, readable numbers."""
    import altair as alt

    if high / low < 3:
        return {"scale": alt.Scale(domain=[0, high * 1.1]), "axis": alt.Axis(tickCount=6)}
    bottom, top = low / 1.25, high * 1.25
    axis = alt.Axis(values=ticks(bottom, top), format="~g")
    return {"scale": alt.Scale(type="log", domain=[bottom, top], nice=False), "axis": axis}


def ticks(low: float, high: float) -> list[float]:
    """At most eight readable numbers between `low` and `high`, for a logarithmic axis."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in STEPS:
        ticks = [tick for e in exponents for step in steps if low <= (tick := step * 10.0**e) <= high]
        if len(ticks) <= 8:
            break
    return ticks


def _forest(target: str, arms: pl.DataFrame, run: Row) -> Iterator[Chart]:
    """The speedups of one target with their intervals, a row an arm, a panel a cell; wrong arms are not ranked."""
    import altair as alt

    shown = arms.filter(~pl.col("baseline") & pl.col("speedup").is_not_null() & (pl.col("verdict") != "wrong"))
    if shown.is_empty():
        return
    baseline = str(arms.filter(pl.col("baseline"))["recipe"][0])
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
        base = alt.Chart(rows.select("recipe", "verdict", "speedup", "low", "high"))
        band = still.mark_rect(color=FAINT, opacity=0.5).encode(x=x("low"), x2="high:Q")
        one = still.mark_rule(color=INK, strokeDash=[4, 3]).encode(x=x("speedup"))
        bars = base.mark_rule(strokeWidth=2).encode(x=x("low"), x2="high:Q", y=y, color=color)
        marks = base.mark_point(size=70, filled=True, opacity=1).encode(x=x("speedup"), y=y, color=color, shape=shape)
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


def themed(chart: Any) -> Mapping[str, Any]:
    """Fonts, colours and sizes of every chart, as a Vega-Lite specification."""
    text = {
        "labelFont": FONT,
        "titleFont": FONT,
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": 12,
        "titleFontSize": 12,
    }
    dressed = (
        chart.configure(background=PAPER, font=FONT, padding=12)
        .configure_axis(**text, titleFontWeight="normal", gridColor=FAINT, domainColor=INK, tickColor=INK)
        .configure_legend(
            **text, titleFontWeight="normal", orient="bottom", symbolSize=80, symbolOpacity=1, labelLimit=320
        )
        .configure_title(
            font=FONT,
            subtitleFont=FONT,
            color=INK,
            subtitleColor=INK,
            fontSize=15,
            subtitleFontSize=12,
            anchor="start",
            subtitlePadding=6,
            offset=10,
        )
        .configure_view(stroke=FAINT)
    )
    spec: dict[str, Any] = dressed.to_dict()
    return spec


def file_name(name: str, taken: set[str]) -> str:
    """Return `name` as a file name that is not in `taken`, and take it."""
    slug = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "chart"
    number, candidate = 1, slug
    while candidate.lower() in taken:
        number += 1
        candidate = f"{slug}-{number}"
    taken.add(candidate.lower())
    return candidate
