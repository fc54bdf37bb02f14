"""`query`: SQL over the results of a run."""

from __future__ import annotations

import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli.common import AsJson, ResultsAt, print_table, reading
from llama_bench.errors import InputError

if TYPE_CHECKING:
    import polars as pl

EXAMPLES = """
What is faster, and how sure is that:
  python -m llama_bench query results/quick "SELECT model, recipe, speedup, low, high, verdict FROM speedups"
Raw timings into a file:
  python -m llama_bench query results/quick "SELECT * FROM timings" --format parquet --output timings.parquet
Views: speedups, cells, accuracy_by_arm, sizes, pareto, generation, timings, blocks, variants, accuracy,
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
        _write(rows, format, output)


def _print(rows: pl.DataFrame) -> None:
    numbers = ", ".join(name for name, dtype in rows.schema.items() if dtype.is_numeric())
    print_table(rows.columns, ([_cell(value) for value in row] for row in rows.iter_rows()), right=numbers)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write(rows: pl.DataFrame, format: Format, output: Path | None) -> None:
    try:
        data = _encode(rows, format)
        if output is None:
            sys.stdout.buffer.write(data)
        else:
            output.write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{output or 'stdout'} cannot be written: {error.strerror or error}") from None


def _encode(rows: pl.DataFrame, format: Format) -> bytes:
    if format is Format.CSV:
        return rows.write_csv().encode()
    if format is Format.JSON:
        return rows.write_json().encode() + b"\n"
    buffer = io.BytesIO()
    rows.write_parquet(buffer)
    return buffer.getvalue()
