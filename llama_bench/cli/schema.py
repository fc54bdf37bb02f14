"""`schema`: the JSON Schema of sweep files, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llama_bench.cli.common import Quiet, catalogue, progress
from llama_bench.errors import InputError

EXAMPLES = """
Editors complete and check sweep files with it:
  python -m llama_bench schema --output sweeps/schema.json
then as the first line of a sweep file:
  # yaml-language-server: $schema=schema.json
"""


def command(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, not to stdout.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write the JSON Schema of sweep files."""
    from llama_bench.sweep_file import json_schema

    text = json.dumps(json_schema(catalogue()), indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from None
    progress(quiet).print(f"wrote {output}", markup=False, soft_wrap=True)
