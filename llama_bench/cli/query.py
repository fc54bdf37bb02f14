"""`query`: SQL over the results of a run."""

from __future__ import annotations

import io
import json
import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import AsJson, ResultsAt, out, print_table, reading, write_out
from llama_bench.errors import InputError

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = """
What is faster, and how sure is that:
  python -m llama_bench query results/quick "SELECT model, recipe, speedup, low, high, verdict FROM speedups"
Raw timings into a file:
  python -m llama_bench query results/quick "SELECT * FROM timings" --format parquet --output timings.parquet
Lists become JSON text in CSV; rows that are too wide for a table come one after another. What the columns mean:
  python -m llama_bench schema --results
Views: speedups, cells, accuracy_by_arm, sizes, pareto, generation, efficiency, timings, blocks, variants, accuracy,
generations, machines, failures, pieces, ceilings
"""


class Format(StrEnum):
    """How the rows come out."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def command(
    path: ResultsAt,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A SELECT over the views; seconds and bytes.")],
    format: Annotated[Format, typer.Option("--format", "-f", help="How the rows come out.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, not to stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run SQL over the results of a run."""
    import llama_bench

    if as_json:
        format = Format.JSON
    if format is Format.TABLE and output is not None:
        raise InputError("--output needs --format csv, json or parquet")
    if format is Format.PARQUET and output is None and sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal: name a file with --output, or pipe it")
    rows = reading(path, lambda: llama_bench.load(path).sql(sql))
    if format is Format.TABLE:
        _print(rows)
    else:
        write_out(_encode(rows, format), output)


FIRST = 4
"""Values of a list that a table shows."""

LEAST_WIDTH = 10
"""Columns of text narrower than this are cut so often that a table cannot be read."""


def _print(rows: pl.DataFrame) -> None:
    """Print a table, or one row after another where its columns do not fit beside each other."""
    cells = [[_cell(value) for value in row] for row in rows.iter_rows()]
    columns = zip(rows.columns, zip(*cells, strict=True), strict=True) if cells else ()
    widths = [max(len(name), *(min(len(cell), LEAST_WIDTH) for cell in column)) for name, column in columns]
    if sum(widths) + 2 * len(widths) > out().width:
        for number, row in enumerate(cells, 1):
            print_table((f"row {number} of {len(cells)}", ""), zip(rows.columns, row, strict=True))
        return
    numbers = ", ".join(name for name, dtype in rows.schema.items() if dtype.is_numeric())
    print_table(rows.columns, cells, right=numbers)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        more = [f"… {len(value)} values"] if len(value) > FIRST else []
        return f"[{', '.join([*map(_cell, value[:FIRST]), *more])}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _encode(rows: pl.DataFrame, format: Format) -> bytes:
    """Return the rows in a format; what CSV and JSON do not have, they get as text, seconds or null."""
    if format is Format.CSV:
        return _without(rows, nested=False).write_csv(datetime_format=UTC_TIME).encode()
    if format is Format.JSON:
        return _without(rows, nested=True).write_json().encode() + b"\n"
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    return buffer.getvalue()


UTC_TIME = "%Y-%m-%dT%H:%M:%S%.6f%:z"
"""ISO 8601 with the colon in its offset, which readers of CSV ask for."""


def _without(rows: pl.DataFrame, *, nested: bool) -> pl.DataFrame:
    """Return the rows with durations in seconds, and, unless `nested` values can stay, those as JSON text."""
    import polars as pl

    columns = []
    for column in rows.iter_columns():
        if column.dtype == pl.Duration:
            column = column.dt.total_microseconds() / 1e6
        elif column.dtype.is_nested() and not nested:
            texts = [None if value is None else json.dumps(_plain(value), default=str) for value in column.to_list()]
            column = pl.Series(column.name, texts, dtype=pl.String)
        columns.append(column)
    return pl.DataFrame(columns)


def _plain(value: Any) -> Any:
    """A number that JSON does not have becomes null, as it does where JSON is what was asked for."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
