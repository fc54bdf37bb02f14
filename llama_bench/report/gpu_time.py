"""Where the time goes on the GPU: classes of kernels against their floors, the longest kernels, and the idle time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.document import Block, Figure, Folded
from llama_bench.report.drawing import BLUE, FAINT, GREEN, GREY, INK, VERMILLION, Chart, themed
from llama_bench.report.table import DASH, Table, duration, percent, plural
from llama_bench.stats.kernels import IDLE

Row = Mapping[str, Any]

COLOURS = {
    "matmul": BLUE,
    "attention": VERMILLION,
    "norm": GREEN,
    "elementwise": "#e69f00",
    "rotary and cache": "#cc79a7",
    "layout": "#8c564b",
    "embedding": "#b8a200",
    "dequantise": "#aa3377",
    "copy": "#5b5fc7",
    "other": GREY,
    IDLE: FAINT,
}
"""Class of kernels → its colour, in the order in which bars are stacked."""

WORDS = {
    "matmul": "matrix products",
    "norm": "norms and reductions",
    "elementwise": "activation and elementwise",
    "layout": "transposes and slices",
    "copy": "copies",
    IDLE: "no kernel ran",
}
"""Class → what it is called where that is not its own word."""

SAYS = (
    "What the GPU did in a run, seen by CUPTI in a process of its own before anything was timed. A class's floor is "
    "what this machine's own ceilings allow: of products and attention their operations or bytes, whichever take "
    "longer; of all else nothing, since it can be fused into these. The time in which no kernel ran is that of the "
    "timed run beyond its kernels' own."
)

LONGEST, LONGEST_OF_OTHERS = 15, 5
"""Kernels in the table of the two arms that are shown at once, and of each of the others."""

OPEN = 4
"""Cells that are shown at once; those after them are opened by whoever wants to see them."""

NEVER_FASTEST = ("wrong", "void", "failed")


def blocks(gpu_time: pl.DataFrame, kernels: pl.DataFrame, speedups: pl.DataFrame) -> list[Block]:
    """Return what the section shows, nothing where no arm has a profile.

    `gpu_time` and `speedups` are the views, `kernels` is the dataset.
    """
    shown = gpu_time.filter(~pl.col("control"))
    if shown.is_empty():
        return []
    found: list[Block] = [SAYS, *summaries(shown, speedups)]
    for number, cell in enumerate(shown["cell"].unique(maintain_order=True)):
        mine = shown.filter(cell=cell)
        seen = kernels.filter((pl.col("cell") == cell) & ~pl.col("control").fill_null(False))
        parts = _cell(mine, seen, speedups.filter(cell=cell))
        found += parts if number < OPEN else [Folded(_where(mine), parts)]
    return found


def tables(gpu_time: pl.DataFrame, speedups: pl.DataFrame) -> list[Table]:
    """Return the tables of Markdown: every arm in short, and the classes of each cell's first arms."""
    shown = gpu_time.filter(~pl.col("control"))
    found = summaries(shown, speedups)
    for cell in shown["cell"].unique(maintain_order=True):
        mine = shown.filter(cell=cell)
        found.append(
            by_class(mine.filter(pl.col("recipe").is_in(_first(mine, speedups.filter(cell=cell)))), _where(mine))
        )
    return found


def summaries(shown: pl.DataFrame, speedups: pl.DataFrame) -> list[Table]:
    """Return one table a target: of each arm with a profile its time, its floor, launches, and what the CPU keeps."""
    return [
        Table(
            f"On the GPU in a run: target {target}",
            ("Model", "Workload", "Recipe", "Time (ms)", "Floor (ms)", "No kernel", "Kernels", "On the CPU", "Memcpy"),
            tuple(_summary(shown, row) for row in _profiled(shown, speedups, target)),
            ("On the CPU and Memcpy: nodes of the executed graph that run there, and that copy between the two.",),
        )
        for target in shown["target"].unique(maintain_order=True)
    ]


def _profiled(shown: pl.DataFrame, speedups: pl.DataFrame, target: str) -> Sequence[Row]:
    keys = shown.filter(target=target).select("cell", "recipe").unique()
    return speedups.filter(~pl.col("control")).join(keys, on=["cell", "recipe"], how="semi").to_dicts()


def _summary(shown: pl.DataFrame, arm: Row) -> tuple[str, ...]:
    rows = shown.filter(cell=arm["cell"], recipe=arm["recipe"]).to_dicts()
    idle = next(row for row in rows if row["class"] == IDLE)
    return (
        arm["model"],
        arm["workload"],
        arm["recipe"],
        duration(idle["time_s"], "ms"),
        duration(_floor(rows), "ms"),
        percent(idle["share"], 0),
        _count(arm["kernel_launches"]),
        _count(arm["cpu_nodes"]),
        _count(arm["memcpy_nodes"]),
    )


def _floor(rows: Sequence[Row]) -> float | None:
    found = [row["floor_s"] for row in rows]
    return None if None in found else sum(found)


def _cell(mine: pl.DataFrame, kernels: pl.DataFrame, arms: pl.DataFrame) -> list[Block]:
    """What is shown of a cell: its baseline and its fastest arm, and folded the longest kernels and all other arms."""
    where, first = _where(mine), _first(mine, arms)
    others = [name for name in mine["recipe"].unique(maintain_order=True) if name not in first]
    chosen = mine.filter(pl.col("recipe").is_in(first))
    found: list[Block] = [Figure.of(chart(chosen, where)), by_class(chosen, where)]
    found.append(Folded(f"The longest kernels: {where}", [_longest(kernels, name, LONGEST, mine) for name in first]))
    if others:
        rest = mine.filter(pl.col("recipe").is_in(others))
        told: list[Block] = [Figure.of(chart(rest, f"{where}, other arms")), by_class(rest, f"{where}, other arms")]
        told += [_longest(kernels, name, LONGEST_OF_OTHERS, mine) for name in others]
        found.append(Folded(f"{plural(len(others), 'other arm')}: {where}", told))
    return found


def _where(mine: pl.DataFrame) -> str:
    row = mine.row(0, named=True)
    return f"target {row['target']} · {row['model']} · {row['workload']}"


def _first(mine: pl.DataFrame, arms: pl.DataFrame) -> list[str]:
    """The cell's baseline and its fastest right arm, as far as they have profiles."""
    able = mine.filter(~pl.col("verdict").is_in(NEVER_FASTEST)).sort("time_s", maintain_order=True)["recipe"]
    baseline = arms.filter(pl.col("baseline"))["recipe"].to_list()
    names = dict.fromkeys([*(name for name in baseline if name in set(mine["recipe"])), *able.head(1)])
    return list(names) or mine["recipe"].head(1).to_list()


def by_class(rows: pl.DataFrame, where: str) -> Table:
    """Return the table of classes: how many kernels, how long, against which floor, which share of the run."""
    lines = tuple((row["recipe"], *class_row(row)) for row in rows.to_dicts())
    return Table(f"Kernels by class: {where}", ("Recipe", *CLASS_COLUMNS), lines)


CLASS_COLUMNS = ("Class", "Kernels", "Time (ms)", "Floor (ms)", "Floor reached", "Of the run")


def class_row(row: Row) -> tuple[str, ...]:
    """Return the cells of `CLASS_COLUMNS` for a row of the view."""
    return (
        words(row["class"]),
        _count(row["launches"]),
        duration(row["seconds"], "ms"),
        "0" if row["floor_s"] == 0 else duration(row["floor_s"], "ms"),
        percent(row["floor_s"] / row["seconds"], 0) if row["floor_s"] and row["seconds"] else DASH,
        percent(row["share"]),
    )


def _longest(kernels: pl.DataFrame, recipe: str, most: int, mine: pl.DataFrame) -> Table:
    time_s = mine.filter(recipe=recipe)["time_s"][0]
    return longest(kernels.filter(recipe=recipe).to_dicts(), recipe, time_s, most)


def longest(kernels: Sequence[Row], recipe: str, time_s: float, most: int = LONGEST) -> Table:
    """Return the table of an arm's kernels that take longest in all, of a run of `time_s`."""
    order = sorted(kernels, key=lambda row: -row["seconds"])
    lines = tuple(
        (
            str(row["kernel"]),
            words(row["class"]),
            _count(row["count"]),
            duration(row["seconds"] / row["count"], "ms"),
            duration(row["seconds"], "ms"),
            percent(row["seconds"] / time_s),
        )
        for row in order[:most]
    )
    rest = order[most:]
    took = duration(sum(row["seconds"] for row in rest), "ms")
    notes = (f"{plural(len(rest), 'more kernel')} took {took} ms together.",) if rest else ()
    columns = ("Kernel", "Class", "Times", "Each (ms)", "All (ms)", "Of the run")
    return Table(f"Longest kernels of {recipe}", columns, lines, notes)


def chart(rows: pl.DataFrame, where: str) -> Chart:
    """Return a bar an arm, stacked of its classes and the time without a kernel, with a mark at its floor."""
    import altair as alt

    arms = list(rows["recipe"].unique(maintain_order=True))
    order = {word: place for place, word in enumerate(COLOURS)}
    data = [
        {
            "row": row["recipe"],
            "class": words(row["class"]),
            "order": order.get(row["class"], order["other"]),
            "ms": row["seconds"] * 1e3,
            "words": f"{row['recipe']}: {words(row['class'])} {duration(row['seconds'], 'ms')} ms, "
            f"{percent(row['share'])} of the run",
        }
        for row in rows.to_dicts()
        if row["seconds"] > 0
    ]
    present = [word for word in COLOURS if word in set(rows.filter(pl.col("seconds") > 0)["class"])]
    names = [words(word) for word in present]
    colours = alt.Scale(domain=names, range=[COLOURS[word] for word in present])
    color = alt.Color("class:N", scale=colours, title=None, legend=alt.Legend(columns=4))
    y = alt.Y("row:N", sort=arms, title=None, axis=alt.Axis(labelLimit=320))
    bar = (
        alt.Chart(pl.DataFrame(data))
        .mark_bar(stroke=INK, strokeWidth=0.3)
        .encode(
            x=alt.X("ms:Q", title="Milliseconds of a run", axis=alt.Axis(tickCount=6)),
            y=y,
            color=color,
            order=alt.Order("order:Q"),
            description="words:N",
        )
    )
    layers = [bar]
    marks = list(_marks(rows, arms))
    if marks:
        tick = alt.Chart(pl.DataFrame(marks)).mark_tick(color=INK, thickness=3, size=24)
        layers.append(tick.encode(x="ms:Q", y=y, description="words:N"))
    title = f"Where a run goes: {where}"
    caption = f"{title}. Bars are as long as the kernels of each class took, and the time in which none ran."
    caption += " The mark across a bar is the floor: what the machine's ceilings allow the whole run." if marks else ""
    whole = alt.layer(*layers).properties(width=560, height=alt.Step(30), title=title)
    return Chart(f"gpu-{where}", caption, themed(whole))


def _marks(rows: pl.DataFrame, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in arms:
        floor = _floor(rows.filter(recipe=name).to_dicts())
        if floor:
            yield {"row": name, "ms": floor * 1e3, "words": f"{name}: floor {duration(floor, 'ms')} ms"}


def words(kind: str) -> str:
    """Return what a class of kernels is called."""
    return WORDS.get(kind, kind)


def _count(value: float | None) -> str:
    """Return how often something ran a run: whole, but where runs differ."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
