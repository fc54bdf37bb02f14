"""Batch against sequence: where on the grid of workloads a recipe pays, and where it crosses over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.document import Block, Choice, Figure
from llama_bench.report.drawing import BLUE, INK, PAPER, VERMILLION, Chart, file_name, themed
from llama_bench.report.sizes import telling
from llama_bench.report.table import ratio
from llama_bench.sweep import Workload

Row = Mapping[str, Any]
Place = tuple[int, int]
"""(tokens given, batch)"""

STEP = 74
"""Pixels of a square of the grid."""

GIVEN = {"prefill": "Sequence", "decode": "Context", "generate": "Prompt"}


def blocks(speedups: pl.DataFrame, run: Row) -> list[Block]:
    """Return one choice of heat maps (a recipe each) where the workloads of a kind make a grid; else nothing."""
    found: dict[str, Figure] = {}
    taken: set[str] = set()
    for kind, places in grids(run).items():
        arms = speedups.filter(pl.col("workload").is_in(list(places)))
        for (target, model), mine in arms.group_by("target", "model", maintain_order=True):
            for recipe in telling(mine.filter(~pl.col("baseline") & ~pl.col("control"))):
                rows = mine.filter(pl.col("recipe") == recipe, pl.col("speedup").is_not_null()).to_dicts()
                if len({places[row["workload"]] for row in rows}) > 1:
                    words = f"{recipe}, {model}, target {target}" + (f", {kind}" if len(grids(run)) > 1 else "")
                    name = file_name(f"grid-{target}-{model}-{recipe}-{kind}", taken)
                    found[words] = Figure.of(_chart(name, words, kind, {places[row["workload"]]: row for row in rows}))
    return [Choice("Recipe", found)] if found else []


def grids(run: Row) -> dict[str, dict[str, Place]]:
    """Return kind of workload → name → its place, for the kinds that vary in tokens given or batch; one a place."""
    kinds: dict[str, dict[str, Place]] = {}
    for name, said in run["sweep"]["workloads"].items():
        workload = Workload.model_validate(said)
        kinds.setdefault(f"{workload.kind} {workload.outputs}", {})[name] = workload.given, workload.batch
    return {
        kind.partition(" ")[0] if sum(other.split()[0] == kind.split()[0] for other in kinds) == 1 else kind: places
        for kind, places in kinds.items()
        if len(set(places.values())) == len(places) > 1
    }


def _chart(name: str, words: str, kind: str, rows: Mapping[Place, Row]) -> Chart:
    import altair as alt

    given, batches = (sorted({place[i] for place in rows}) for i in (0, 1))
    squares = [_square(place, row, given, batches) for place, row in rows.items()]
    most = max(max(abs(square["log2"]) for square in squares), 0.1)
    colour = alt.Color(
        "log2:Q",
        title="Speedup",
        scale=alt.Scale(domain=[-most, 0, most], range=[VERMILLION, PAPER, BLUE]),
        legend=alt.Legend(labelExpr="format(pow(2, datum.value), '.2f') + '×'", tickCount=5, gradientLength=200),
    )

    def axis(values: Sequence[int]) -> Any:
        return alt.Axis(
            values=list(range(len(values))),
            labelExpr=f"{[str(v) for v in values]}[datum.value]",
            grid=False,
            ticks=False,
        )

    def scale(values: Sequence[int]) -> Any:
        return alt.Scale(domain=[-0.5, len(values) - 0.5], nice=False, zero=False)

    titles = GIVEN[kind.partition(" ")[0]], "Batch"
    x = alt.X("left:Q", title=f"{titles[0]} (tokens)", scale=scale(given), axis=axis(given))
    y = alt.Y("low:Q", title=titles[1], scale=scale(batches), axis=axis(batches))
    base = alt.Chart(pl.DataFrame(squares))
    layers: list[Any] = [
        base.mark_rect(stroke=PAPER, strokeWidth=1).encode(
            x=x, x2="right:Q", y=y, y2="high:Q", color=colour, description="words:N"
        )
    ]
    borders = list(crossover(rows, given, batches))
    if borders:
        line = alt.Chart(pl.DataFrame(borders)).mark_rule(color=INK, strokeWidth=3, strokeCap="round", aria=False)
        layers.append(line.encode(x=x, x2="right:Q", y=y, y2="high:Q"))
    for column, dy, size in (("speedup", -6, 13), ("verdict", 10, 10)):
        text: dict[str, Any] = {"dy": dy, "fontSize": size, "aria": False}
        for style in ({"stroke": PAPER, "strokeWidth": 3.0}, {"color": INK}):
            mark = base.mark_text(**text, **style)
            layers.append(mark.encode(x=alt.X("x:Q"), y=alt.Y("y:Q"), text=f"{column}:N"))
    extent = {"width": STEP * len(given), "height": STEP * len(batches) * 0.75}
    chart = alt.layer(*layers).properties(**extent, title=words)
    crossed = "the thick line is where it crosses over" if borders else "it is on one side of 1 everywhere"
    caption = (
        f"{words}: speedup over the baseline by {titles[0].lower()} and batch; {crossed}. {_crossing(rows)}".strip()
    )
    return Chart(name, caption, themed(chart))


def _square(place: Place, row: Row, given: Sequence[int], batches: Sequence[int]) -> dict[str, Any]:
    import math

    x, y = given.index(place[0]), batches.index(place[1])
    where = f"batch {place[1]}, {place[0]} tokens"
    return {
        "x": x, "y": y, "left": x - 0.5, "right": x + 0.5, "low": y - 0.5, "high": y + 0.5,
        "log2": math.log2(row["speedup"]), "speedup": f"{row['speedup']:.2f}×", "verdict": row["verdict"],
        "words": f"{where}: {ratio(row)}; {row['verdict']}",
    }  # fmt: skip


def crossover(rows: Mapping[Place, Row], given: Sequence[int], batches: Sequence[int]) -> Iterator[dict[str, float]]:
    """Return the borders between squares of which one is faster and one slower than the baseline, as lines."""
    for (tokens, batch), row in rows.items():
        x, y = given.index(tokens), batches.index(batch)
        right = rows.get((given[x + 1], batch)) if x + 1 < len(given) else None
        above = rows.get((tokens, batches[y + 1])) if y + 1 < len(batches) else None
        if right is not None and _crosses(row, right):
            yield {"left": x + 0.5, "right": x + 0.5, "low": y - 0.5, "high": y + 0.5}
        if above is not None and _crosses(row, above):
            yield {"left": x - 0.5, "right": x + 0.5, "low": y + 0.5, "high": y + 0.5}


def _crosses(one: Row, other: Row) -> bool:
    """Whether the two are on different sides of the baseline, as far as the verdicts tell it apart."""
    return {_side(one), _side(other)} in ({"faster", "slower"}, {"faster", ""}, {"slower", ""})


def _side(row: Row) -> str:
    return row["verdict"] if row["verdict"] in ("faster", "slower") else ""


def _crossing(rows: Mapping[Place, Row]) -> str:
    """In words from how many tokens of a run on the recipe is faster, where that is one number."""
    tokens = sorted(rows, key=lambda place: place[0] * place[1])
    sides = [_side(rows[place]) for place in tokens]
    first = next((i for i, side in enumerate(sides) if side == "faster"), None)
    if first in (None, 0) or any(side != "faster" for side in sides[first:]):
        return ""
    return f"It is faster from {tokens[first][0] * tokens[first][1]:,} tokens a run on (batch × {tokens[first][0]:,})."
