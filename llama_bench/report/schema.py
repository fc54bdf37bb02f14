"""The documented schema of the results: one table a dataset and view, from the descriptions of their columns."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from llama_bench import columns, schemas
from llama_bench.report.table import DASH, Table
from llama_bench.stats import columns as views

COLUMNS = ("Column", "Type", "Unit", "Meaning", "Null when")


def tables() -> list[Table]:
    """Return a table for every dataset and then for every view, titled by its name; the note says what a row is."""
    found = []
    for dataset, schema in schemas.SCHEMAS.items():
        types = {field.name: str(field.type) for field in schema}
        order = f"Sorted by {', '.join(f'`{name}`' for name in schemas.SORT[dataset])}."
        notes = (_row(columns.DATASETS[dataset]), order)
        found.append(_table(dataset, types, columns.of_dataset(dataset, schema.names), notes))
    for view, schema_of_view in views.SCHEMAS.items():
        types = {name: _type(dtype) for name, dtype in schema_of_view.items()}
        found.append(_table(view, types, views.of_view(view), (_row(views.VIEWS[view]),)))
    return found


def markdown() -> str:
    """Return all tables as Markdown: the text between the marks of docs/schema.md."""
    parts = []
    for table in tables():
        kind = "dataset" if table.title in schemas.SCHEMAS else "view"
        lines = [f"### `{table.title}` ({kind})", "", " ".join(table.notes), ""]
        lines += [_line(COLUMNS), f"|{' --- |' * len(COLUMNS)}"]
        lines += [_line((f"`{name}`", *rest)) for name, *rest in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(words: columns.Words) -> str:
    return f"One row: {words.row}."


def _table(
    title: str, types: Mapping[str, str], meanings: Mapping[str, columns.Column], notes: tuple[str, ...]
) -> Table:
    rows = tuple(
        (name, types[name], one.unit or DASH, one.meaning, one.null or "never") for name, one in meanings.items()
    )
    return Table(title, COLUMNS, rows, notes, text=True)


def _type(dtype: type[pl.DataType]) -> str:
    """The name that Arrow has for a type of polars, so that one page has one language."""
    names = {pl.String: "string", pl.Float64: "double", pl.Int64: "int64", pl.Boolean: "bool"}
    return names.get(dtype, str(dtype))


def _line(cells: tuple[str, ...]) -> str:
    """A row of Markdown; the descriptions are written as Markdown, but a | would end a cell."""
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
