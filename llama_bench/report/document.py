"""What a report is made of: sections with tables and figures, the same for every format that it is written in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from llama_bench.report.table import Table


class Drawing(Protocol):
    """Something that can be drawn: the name of its file, what it shows in words, and its SVG."""

    @property
    def name(self) -> str: ...

    @property
    def caption(self) -> str: ...

    def svg(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Figure:
    """One drawing, or two of the same thing (label → drawing) between which a switch chooses; the first is shown."""

    drawings: Mapping[str, Drawing]

    @classmethod
    def of(cls, drawing: Drawing) -> Figure:
        """Return a figure that has nothing to switch."""
        return cls({"": drawing})

    @property
    def first(self) -> Drawing:
        return next(iter(self.drawings.values()))


@dataclass(frozen=True, slots=True)
class Choice:
    """Figures of which one is shown at a time: what is chosen (`Recipe`), and name → figure."""

    label: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True, slots=True)
class Sortable:
    """A long table that readers sort and filter: for each row the facets (`model` → word) that filters go by.

    `notes` are what must be said below, each with the facets of the rows that it is about.
    """

    table: Table
    facets: Sequence[Mapping[str, str]]
    notes: Sequence[tuple[Mapping[str, str], Table]] = ()


@dataclass(frozen=True, slots=True)
class Code:
    """Lines that readers copy, and what they are in words."""

    says: str
    text: str


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are shown when somebody asks for them by their summary."""

    summary: str
    blocks: Sequence[Block]


Block: TypeAlias = "Table | Sortable | Figure | Choice | Code | Folded | str"
"""A piece of a section; a string is a paragraph."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it. `text` are its tables where Markdown has others than the page."""

    id: str
    heading: str
    blocks: Sequence[Block]
    text: Sequence[Table] | None = None

    @property
    def tables(self) -> Sequence[Table]:
        """The tables that Markdown shows."""
        return [block for block in self.blocks if isinstance(block, Table)] if self.text is None else self.text

    @property
    def figures(self) -> list[Figure]:
        return _figures(self.blocks)


def _figures(blocks: Sequence[Block]) -> list[Figure]:
    found: list[Figure] = []
    for block in blocks:
        found += [block] if isinstance(block, Figure) else []
        found += block.figures.values() if isinstance(block, Choice) else []
        found += _figures(block.blocks) if isinstance(block, Folded) else []
    return found


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report: its title, the question, the answer in two sentences, what is missing, and the sections."""

    title: str
    question: str
    answer: Sequence[str]
    missing: Sequence[str] = ()
    details: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)
