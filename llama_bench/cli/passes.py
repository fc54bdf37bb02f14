"""`passes`: every pass that a recipe can name, and those that are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli.common import AsJson, print_json, print_table

if TYPE_CHECKING:
    from llama_bench.passes import PassInfo

EXAMPLES = """
In a sweep file a recipe names passes in their order:
  fused: {passes: [{onnxoptimizer: fuse_qkv}, {onnxoptimizer: eliminate_deadend}]}
  int4:  {passes: [{fuse: all}, {quantize: {bits: 4, block_size: 128}}]}
A family's first pass is its default, and options are keys of a mapping, in which `name` may choose another pass.
"""

COLUMNS = ("family", "pass", "class", "what it does", "options")


def command(
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/passes.md.")] = False,
) -> None:
    """List the passes, whether each is exact or approximate, and which are refused and why."""
    listed = rows()
    if as_json:
        print_json(listed)
    elif markdown:
        typer.echo(markdown_table(listed))
    else:
        print_table(COLUMNS, [_cells(row) for row in listed])


def rows() -> list[dict[str, str | None]]:
    """Return one dictionary a pass, in the order of the table of passes."""
    from llama_bench.passes import PASSES

    return [
        {
            "family": family,
            "name": name,
            "class": info.kind,
            "summary": info.summary,
            "options": options(info),
            "refused": info.refused,
        }
        for family, table in PASSES.items()
        for name, info in table.items()
    ]


def options(info: PassInfo) -> str:
    """Return the options of a pass with their defaults, as a recipe writes them."""
    return ", ".join(f"{name}: {_written(field.get_default())}" for name, field in info.options.model_fields.items())


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def markdown_table(listed: list[dict[str, str | None]]) -> str:
    """Return the passes as a Markdown table: the text between the marks of docs/passes.md."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row in listed:
        family, name, kind, text, said = (value.replace("|", r"\|") for value in _cells(row))
        lines.append(f"| {family} | `{name}` | {kind} | {text} | {f'`{said}`' if said else ''} |")
    return "\n".join(lines)


def _cells(row: dict[str, str | None]) -> tuple[str, str, str, str, str]:
    refused = f"refused: {row['refused']}" if row["refused"] else None
    kind = "refused" if refused else row["class"]
    return str(row["family"]), str(row["name"]), str(kind), str(refused or row["summary"]), str(row["options"] or "")
