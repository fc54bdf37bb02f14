"""`explain`: one row of the tables, and everything that a sceptic asks of it."""

from __future__ import annotations

from textwrap import fill, indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import AsJson, ResultsAt, out, print_json, print_table, reading
from llama_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from llama_bench.stats.explained import Explained, Name

EXAMPLES = """
A recipe, where it is in one cell:
  python -m llama_bench explain results/quick fuse
In one of several cells, by the words of --only:
  python -m llama_bench explain results/report "recipe=all_three,model=h2048*"
Which rows there are:
  python -m llama_bench explain results/report
"""

COLUMNS = ("verdict", "row")
INDENT = "  "


def command(
    path: ResultsAt,
    row: Annotated[
        str | None,
        typer.Argument(
            metavar="ROW",
            help="A recipe (or control), or key=word,… of recipe, model, workload, target; words may hold * and |.",
        ),
    ] = None,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
) -> None:
    """Explain one row: why its verdict is what it is, its graph, answers, restarts, order, clocks and times.

    From the results on disk alone. Where several rows are meant, they are listed with what names each.
    """
    from llama_bench.report import explanation

    rows, found = reading(path, lambda: _read(path, row))
    if found is None:
        _list(rows, as_json)
        if row is not None:
            raise InputError(f"{row!r} means {len(rows)} rows: name one of those above, such as {rows[0].words!r}")
    elif as_json:
        print_json(explanation.as_json(found))
    elif as_markdown:
        typer.echo(explanation.as_markdown(found), nl=False)
    else:
        _print(found)


def wanted(row: str | None) -> dict[str, str]:
    """Return column → pattern from what the command line names; a word alone is a recipe. Raises InputError."""
    from llama_bench.stats.explained import KEYS

    found: dict[str, str] = {}
    for term in row.split(",") if row else ():
        key, equals, pattern = (word.strip() for word in term.partition("="))
        if not equals:
            key, pattern = "recipe", key
        if key not in KEYS:
            raise InputError(f"{row}: unknown key {key!r}{nearest(key, KEYS)}")
        if key in found:
            raise InputError(f"{row}: {key} is here twice; several names go as {key}=a|b")
        found[key] = pattern
    return found


def _read(path: str, row: str | None) -> tuple[list[Name], Explained | None]:
    """Return the rows that are meant, and the facts where it is one."""
    from llama_bench import results
    from llama_bench.stats import explained
    from llama_bench.stats.judged import judge_run

    store, run = results.locate(path)
    # by the run's own name: a newer one may appear meanwhile
    info, datasets = results.read_run(store, run), results.scan(f"{store.uri}/{run}")
    judged = judge_run(info, datasets)
    rows = explained.matching(explained.names(judged), wanted(row))
    return rows, explained.explain(judged, datasets, rows[0]) if len(rows) == 1 else None


def _list(rows: list[Name], as_json: bool) -> None:
    if as_json:
        print_json([_named(row) for row in rows])
    else:
        print_table(COLUMNS, [(row.verdict, row.words) for row in rows])


def _named(row: Name) -> dict[str, Any]:
    keys = ("target", "model", "workload", "recipe", "verdict")
    return {"row": row.words, **{key: getattr(row, key) for key in keys}}


def _print(found: Explained) -> None:
    """Print headings, sentences and tables as wide as the terminal."""
    from rich.text import Text

    from llama_bench.report import explanation

    console = out()

    def say(text: str) -> None:
        width = console.width - len(INDENT)
        typer.echo(indent(fill(text, width, break_long_words=False, break_on_hyphens=False), INDENT))

    console.print(Text(explanation.title(found), style="bold"), soft_wrap=True)
    for section in explanation.sections(found):
        typer.echo()
        console.print(Text(section.heading, style="bold"))
        for sentence in section.sentences:
            say(sentence)
        for table in section.tables:
            typer.echo()
            numbers = "" if table.text else ", ".join(table.columns[1:])
            print_table(table.columns, table.rows, title=table.title, right=numbers)
            for note in table.notes:
                say(note)
