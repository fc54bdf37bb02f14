"""`schema`: the JSON Schema of sweep files, for editors, and the columns of the results, for readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_bench.cli.common import Quiet, catalogue, print_table, progress
from llama_bench.errors import InputError

EXAMPLES = """
Editors complete and check sweep files with it:
  python -m llama_bench schema --output sweeps/schema.json
then as the first line of a sweep file:
  # yaml-language-server: $schema=schema.json
What each column of the results means:
  python -m llama_bench schema --results
"""


def command(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, not to stdout.")] = None,
    results: Annotated[bool, typer.Option("--results", help="The columns of the results instead.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="With --results: the tables of docs/schema.md.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write the JSON Schema of sweep files, or what each column of the results means."""
    if as_markdown and not results:
        raise InputError("--markdown needs --results: a JSON Schema has no Markdown")
    if not results:
        _write(_sweep_files(), output, quiet)
    elif as_markdown or output is not None:
        from llama_bench.report import schema

        _write(schema.markdown(), output, quiet)
    else:
        _print_results()


def _sweep_files() -> str:
    from llama_bench.sweep_file import json_schema

    return json.dumps(json_schema(catalogue()), indent=2, ensure_ascii=False)


def _print_results() -> None:
    from llama_bench.report import schema

    for table in schema.tables():
        print_table(table.columns, table.rows, title=table.title)
        for note in table.notes:
            typer.echo(f"  {note}")
        typer.echo()


def _write(text: str, output: Path | None, quiet: bool) -> None:
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from None
    progress(quiet).print(f"wrote {output}", markup=False, soft_wrap=True)
