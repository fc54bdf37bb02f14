"""Time against size, the study's figures 4–9: the baseline against one recipe, linear and logarithmic."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.document import Figure
from llama_bench.report.drawing import BLUE, VERMILLION, Chart, themed, ticks
from llama_bench.sweep import Model

Row = Mapping[str, Any]

SCALES = ("linear", "log")
"""Scales of time against size; a log scale is shown first where times differ by more than threefold."""

MOST = 16
"""Recipes that have a figure of time against size, of one target, workload and family of models."""


def figures(speedups: pl.DataFrame, run: Row) -> dict[str, Figure]:
    """Return title → time against size, for every target, workload, family of models and recipe.

    Of more than :data:`MOST` recipes those are drawn whose verdict tells most; a single size makes no line.
    """
    timed = speedups.filter(pl.col("time_s").is_not_null())
    found: dict[str, Figure] = {}
    for target in timed["target"].unique(maintain_order=True):
        for title, figure in _sizes(target, timed.filter(pl.col("target") == target), run):
            found[title] = figure
    return found


def _sizes(target: str, arms: pl.DataFrame, run: Row) -> Iterator[tuple[str, Figure]]:
    """One figure a workload, family of models and recipe; a single size makes no line."""
    families = model_families([dict(model) for model in run["sweep"]["models"]])
    for workload in arms["workload"].unique(maintain_order=True):
        for family, models in families.items():
            part = arms.filter((pl.col("workload") == workload) & pl.col("model").is_in(models))
            many = [workload] if arms["workload"].n_unique() > 1 else []
            many += [family] if len(families) > 1 else []
            for recipe in telling(part.filter(~pl.col("baseline") & ~pl.col("control"))):
                pair = part.filter(pl.col("baseline") | (pl.col("recipe") == recipe)).sort("hidden_size")
                if pair.filter(pl.col("baseline"))["hidden_size"].n_unique() > 1:
                    by_scale = {name: _size_chart(target, recipe, many, pair, log=name == "log") for name in SCALES}
                    wide = _differ_threefold(_seconds(pair))
                    order = sorted(by_scale, reverse=wide)  # log before linear where times differ
                    yield (
                        " · ".join([f"{recipe}, target {target}", *many]),
                        Figure({name: by_scale[name] for name in order}),
                    )


def telling(arms: pl.DataFrame) -> list[str]:
    """Return at most :data:`MOST` recipes of `arms`, in their order: those that are told from the baseline first."""
    recipes = arms["recipe"].unique(maintain_order=True).to_list()
    told = arms.filter(pl.col("verdict").is_in(["faster", "slower"])).sort(
        (pl.col("speedup").log()).abs(), descending=True
    )
    chosen = dict.fromkeys([*told["recipe"].unique(maintain_order=True), *recipes])
    kept = set(list(chosen)[:MOST])
    return [recipe for recipe in recipes if recipe in kept]


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


def _seconds(pair: pl.DataFrame) -> list[float]:
    return [value for column in ("time_s", "time_low_s", "time_high_s") for value in pair[column] if value is not None]


def _size_chart(target: str, recipe: str, many: Sequence[str], pair: pl.DataFrame, *, log: bool) -> Chart:
    import altair as alt

    baseline = str(pair.filter(pl.col("baseline"))["recipe"][0])
    seconds = _seconds(pair)
    unit, factor = ("s", 1.0) if max(seconds) >= 1 else ("ms", 1000.0)
    data = pl.DataFrame(_points(pair, factor, unit))
    sizes = sorted(set(pair["hidden_size"].to_list()))
    x = alt.X(
        "hidden:Q", title="Hidden size", scale=_size_scale(sizes), axis=alt.Axis(values=sizes, format="d", grid=False)
    )
    low, high = min(seconds) * factor, max(seconds) * factor
    y = alt.Y("time:Q", title=f"Time of a run ({unit})", **_time_axis(low, high, log=log))
    color = alt.Color("arm:N", scale=alt.Scale(domain=[baseline, recipe], range=[BLUE, VERMILLION]), title=None)
    shape = alt.Shape("arm:N", scale=alt.Scale(domain=[baseline, recipe], range=["circle", "triangle-up"]), title=None)
    dash = alt.StrokeDash("arm:N", scale=alt.Scale(domain=[baseline, recipe], range=[[1, 0], [6, 4]]), title=None)
    base = alt.Chart(data)
    layers = [
        base.mark_area(opacity=0.2, aria=False).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        base.mark_rule(strokeWidth=1.5, aria=False).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
        base.mark_line(strokeWidth=2, aria=False).encode(x=x, y=y, color=color, strokeDash=dash),
        base.mark_point(size=64, filled=True, opacity=1).encode(
            x=x, y=y, color=color, shape=shape, description="words:N"
        ),
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


def _points(pair: pl.DataFrame, factor: float, unit: str) -> list[dict[str, Any]]:
    """Rows of the chart's data, in its unit; an arm without interval has a band of no width."""
    return [
        {
            "arm": row["recipe"],
            "hidden": row["hidden_size"],
            "time": row["time_s"] * factor,
            "low": (row["time_low_s"] or row["time_s"]) * factor,
            "high": (row["time_high_s"] or row["time_s"]) * factor,
            "words": f"{row['recipe']}, hidden size {row['hidden_size']}; {row['time_s'] * factor:.4g} {unit}; "
            + ("the baseline" if row["baseline"] else _point_in_words(row).partition(": ")[2]),
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


def _differ_threefold(seconds: Sequence[float]) -> bool:
    return max(seconds) / min(seconds) >= 3


def _time_axis(low: float, high: float, *, log: bool) -> dict[str, Any]:
    """A logarithmic axis, or one from zero; few, readable numbers."""
    import altair as alt

    if not log:
        return {"scale": alt.Scale(domain=[0, high * 1.1]), "axis": alt.Axis(tickCount=6)}
    bottom, top = low / 1.25, high * 1.25
    axis = alt.Axis(values=ticks(bottom, top), format="~g")
    return {"scale": alt.Scale(type="log", domain=[bottom, top], nice=False), "axis": axis}
