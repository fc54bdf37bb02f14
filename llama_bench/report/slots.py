"""Timings in their order, for the sceptic: every slot of a cell against its arm's usual time, dropped blocks marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from llama_bench.report.document import Figure
from llama_bench.report.drawing import BLUE, FAINT, GREY, INK, VERMILLION, Chart, file_name, themed
from llama_bench.stats.ratios import name_arms

Row = Mapping[str, Any]

SAYS = (
    "Every slot of a cell in the order in which it was timed, against the median of its arm: what drifts, jumps or "
    "comes in waves here did not come from a recipe. Blocks that were disturbed are marked."
)

MOST = 600
"""Marks of a chart; where a cell has more slots a mark stands for several neighbours, and its line for all of them."""

MOST_CELLS = 40

STATES = ("kept", "disturbed, kept", "disturbed, timed again")


def charts(blocks: pl.LazyFrame, speedups: pl.DataFrame) -> dict[str, Figure]:
    """Return cell in words → its chart, in the order of the tables; at most :data:`MOST_CELLS` cells."""
    cells = speedups.filter(pl.col("time_s").is_not_null()).unique("cell", maintain_order=True, keep="first")
    taken: set[str] = set()
    found = {}
    for cell in cells.head(MOST_CELLS).to_dicts():
        slots = in_order(blocks.filter(pl.col("cell") == cell["cell"])).collect()
        if len(slots):
            words = f"target {cell['target']} · {cell['model']} · {cell['workload']}"
            name = file_name(f"slots-{cell['target']}-{cell['model']}-{cell['workload']}", taken)
            found[words] = Figure.of(_chart(name, words, slots))
    return found


def in_order(blocks: pl.LazyFrame) -> pl.LazyFrame:
    """Return the slots of one cell in the order of their timing.

    Columns: slot (from 0), restart, state, and change (time over the median of the arm, less 1).
    """
    state = (
        pl.when(~pl.col("kept").fill_null(True))
        .then(pl.lit(STATES[2]))
        .when(pl.col("disturbed").is_not_null())
        .then(pl.lit(STATES[1]))
        .otherwise(pl.lit(STATES[0]))
    )
    usual = pl.col("log_seconds").median().over("recipe")
    return (
        name_arms(blocks.filter(pl.col("log_seconds").is_finite()))
        .sort("started_at", "restart", "group", "block", "position", nulls_last=True)
        .with_row_index("slot")
        .select("slot", "restart", state.alias("state"), change=(pl.col("log_seconds") - usual).exp() - 1)
    )


def marks(slots: pl.DataFrame, most: int = MOST) -> pl.DataFrame:
    """Return at most about `most` marks: the median of neighbouring slots, with the least and the largest of them.

    Slots of different states or restarts never share a mark, and a disturbed one has its own while there is room.
    """
    width = max(1, -(-len(slots) // most))
    return (
        slots.with_columns(at=pl.col("slot") // width)
        .group_by("at", "state", "restart", maintain_order=True)
        .agg(
            pl.col("slot").min(),
            pl.col("change").median(),
            low=pl.col("change").min(),
            high=pl.col("change").max(),
            slots=pl.len(),
        )
        .drop("at")
    )


def _chart(name: str, words: str, slots: pl.DataFrame) -> Chart:
    import altair as alt

    found = marks(slots)
    widest = max(found["slots"].to_list())
    present = [state for state in STATES if state in set(found["state"])]
    colours = dict(zip(STATES, (BLUE, GREY, VERMILLION), strict=True))
    shapes = dict(zip(STATES, ("circle", "diamond", "cross"), strict=True))
    color = alt.Color("state:N", scale=alt.Scale(domain=present, range=[colours[s] for s in present]), title="Block")
    shape = alt.Shape("state:N", scale=alt.Scale(domain=present, range=[shapes[s] for s in present]), title="Block")
    x = alt.X("slot:Q", title="Slot", scale=alt.Scale(domain=[0, len(slots)], nice=False), axis=alt.Axis(grid=False))
    y = alt.Y("change:Q", title="Time against the arm's median", axis=alt.Axis(format="+~%"))
    starts = slots.filter(pl.col("restart") != pl.col("restart").shift(1)).select("slot")
    layers = [
        alt.Chart(pl.DataFrame({"change": [0.0]})).mark_rule(color=INK, strokeDash=[4, 3], aria=False).encode(y=y)
    ]
    if len(starts):
        layers.append(alt.Chart(starts).mark_rule(color=FAINT, aria=False).encode(x=x))
    base = alt.Chart(found)
    if widest > 1:
        layers.append(base.mark_rule(opacity=0.5, aria=False).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color))
    points = base.mark_point(size=18, filled=True, opacity=0.9, aria=False)
    layers.append(points.encode(x=x, y=y, color=color, shape=shape))
    chart = alt.layer(*layers).properties(width=700, height=220, title=words)
    several = f" A mark stands for up to {widest} slots, its line for all of them." if widest > 1 else ""
    dropped, disturbed = (slots.filter(state=state).height for state in (STATES[2], STATES[1]))
    caption = (
        f"{words}: {len(slots):,} slots, {dropped} of blocks that were timed again, {disturbed} disturbed and kept; "
        f"vertical lines are restarts.{several}"
    )
    return Chart(name, caption, themed(chart))
