"""A table for any format, the numbers and words in its cells, and Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

DASH = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A table for any format: cells of plain text and sentences below them; `text`: no column holds numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text: bool = False


def markdown(table: Table) -> str:
    """Return `table` as Markdown; text that Markdown or HTML would interpret is escaped."""
    lines = [f"### {escape(table.title)}", ""] if table.title else []
    lines += [
        _line(table.columns),
        _line([":--", *[":--" if table.text else "--:"] * (len(table.columns) - 1)], raw=True),
    ]
    lines += [_line(row) for row in table.rows]
    if table.notes:
        lines += ["", *(f"* {escape(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return `text` so that Markdown shows it as it is."""
    return re.sub(r"([\\`*|]|(?<=\])\()", r"\\\1", html.escape(text, quote=False))


def duration(seconds: float | None, unit: str) -> str:
    """Return seconds as a number in `unit` (s or ms) with four significant digits."""
    if seconds is None:
        return DASH
    value = seconds * 1000 if unit == "ms" else seconds
    if value >= 1000:
        return f"{value:,.0f}"
    text = f"{value:#.4g}"
    return text.removesuffix(".")


def ratio(row: Row) -> str:
    """Return `1.120× [1.101, 1.139]`, or the ratio alone, or a dash."""
    if row["speedup"] is None or row["baseline"]:
        return DASH
    text = f"{row['speedup']:.3f}×"
    return text if row["low"] is None else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


def one_baseline(names: Iterable[str]) -> str:
    """Return what arms are compared with, in words: the baseline's name, where all cells have the same."""
    known = set(names)
    return next(iter(known)) if len(known) == 1 else "each cell's baseline"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a percentage, or a dash."""
    return DASH if share is None else f"{share:.{digits}%}"


def plural(count: int, one: str, many: str = "") -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _line(cells: Iterable[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else escape(cell) for cell in cells) + " |"
