"""The sections of a report, in one visible table: what each is called, and how it is made of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import polars as pl

from llama_bench.report import (
    efficiency,
    forest,
    gpu_time,
    grid,
    limits,
    machines,
    pareto,
    rerun,
    seconds,
    sizes,
    slots,
    tables,
    trust,
)
from llama_bench.report.document import Block, Choice, Figure, Section
from llama_bench.report.generation import generation
from llama_bench.report.graphs.pictures import Picture
from llama_bench.report.graphs.sections import Section as Pictures
from llama_bench.report.table import Table
from llama_bench.report.tradeoffs import Answers
from llama_bench.stats.views import Frames

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Material:
    """The views of a run that several sections are made of, each collected once."""

    frames: Frames
    pictures: Pictures | None = None

    @property
    def run(self) -> Row:
        return self.frames.run

    @cached_property
    def speedups(self) -> pl.DataFrame:
        return self.frames.speedups.collect()

    @cached_property
    def cells(self) -> pl.DataFrame:
        return self.frames.cells.collect()

    @cached_property
    def answers(self) -> Answers:
        return Answers.of(self.frames)

    @cached_property
    def pieces(self) -> pl.DataFrame:
        return self.frames.pieces.collect()


Content = tuple[Sequence[Block], Sequence[Table] | None]
"""What a section shows on the page, and the tables that Markdown has in place of the page's."""


def sections(material: Material) -> list[Section]:
    """Return the sections of a run; one that has nothing to show has no blocks."""
    return [Section(name, heading, *make(material)) for name, (heading, make) in SECTIONS.items()]


def _noise(m: Material) -> Content:
    table = trust.noise(m.cells, m.speedups)
    if table is None:
        return [], None
    # notes, since they stand on the page and in Markdown
    return [replace(table, notes=(*trust.strangers(m.frames.blocks.collect()), *table.notes))], None


def _results(m: Material) -> Content:
    by_cell = tables.results(m.speedups, m.cells, m.run, m.answers)
    return tables.by_target(m.speedups, m.cells, m.run), by_cell


def _forest(m: Material) -> Content:
    return [Figure.of(chart) for chart in forest.charts(m.speedups, m.run)], None


def _sizes(m: Material) -> Content:
    found = sizes.figures(m.speedups, m.run)
    return ([Choice("Figure", found)] if found else []), None


def _grid(m: Material) -> Content:
    return grid.blocks(m.speedups, m.run), None


def _tradeoffs(m: Material) -> Content:
    figures = [Figure.of(chart) for chart in pareto.charts(m.frames.pareto.collect())]
    front = tables.tradeoffs(m.speedups, m.run, m.answers)
    return [*figures, *front, *tables.accuracy(m.speedups, m.run, m.answers)], front


def _generation(m: Material) -> Content:
    return generation(m.frames.generation.collect(), m.frames.generations.collect(), m.run), None


def _limits(m: Material) -> Content:
    ceilings = trust.ceilings(m.frames.ceilings.collect())
    return [*map(Figure.of, limits.charts(m.speedups)), *([ceilings] if ceilings else [])], None


def _gpu(m: Material) -> Content:
    found = m.frames.gpu_time.collect()
    if found.is_empty():
        return [], None
    return gpu_time.blocks(found, m.frames.kernels.collect(), m.speedups), gpu_time.tables(found, m.speedups)


def _efficiency(m: Material) -> Content:
    return efficiency.blocks(m.frames.efficiency.collect()), []


def _seconds(m: Material) -> Content:
    return [*map(Figure.of, seconds.charts(m.pieces)), tables.breakdown(m.pieces)], None


def _slots(m: Material) -> Content:
    found = slots.charts(m.frames.blocks, m.speedups)
    return ([slots.SAYS, Choice("Cell", found)] if found else []), None


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A picture of a graph, drawn already."""

    picture: Picture

    @property
    def name(self) -> str:
        return f"graph-{self.picture.name}"

    @property
    def caption(self) -> str:
        return self.picture.caption

    def svg(self) -> str:
        return self.picture.svg


def _graphs(m: Material) -> Content:
    if m.pictures is None:
        return [], None
    figures = [Figure.of(_Drawn(picture)) for picture in m.pictures.pictures]
    passes = {figure.first.name.removeprefix("graph-"): figure for figure in figures[1:]}
    return [*figures[:1], *([Choice("Pass", passes)] if passes else []), *m.pictures.notes], None


def _failures(m: Material) -> Content:
    table = tables.failures(m.frames.failures.collect())
    return ([table] if table else []), None


def _machines(m: Material) -> Content:
    return machines.blocks(m.frames.machines.collect(), m.run), None


def _again(m: Material) -> Content:
    return rerun.blocks(m.run), []


SECTIONS: dict[str, tuple[str, Callable[[Material], Content]]] = {
    "noise": ("Can these verdicts be believed?", _noise),
    "results": ("Results", _results),
    "speedups": ("Speedups with their intervals", _forest),
    "sizes": ("Time against size", _sizes),
    "grid": ("Batch and sequence", _grid),
    "tradeoffs": ("Speed, accuracy and size together", _tradeoffs),
    "generation": ("Text generation", _generation),
    "graphs": ("What the passes did to the graph", _graphs),
    "limits": ("The speed of light here", _limits),
    "gpu": ("Where the time goes on the GPU", _gpu),
    "efficiency": ("Tokens a second, a watt, a gigabyte", _efficiency),
    "seconds": ("Where the time went", _seconds),
    "slots": ("Timings in their order", _slots),
    "failures": ("Failures", _failures),
    "machines": ("Machines and versions", _machines),
    "again": ("How to run it again", _again),
}
"""Id → heading and what makes it, in the order of the page."""
