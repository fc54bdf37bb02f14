"""`compare`: two runs, and what became faster or slower from the one to the other."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli.common import AsJson, out, print_table, reading, warn, write_out
from llama_bench.errors import InputError

if TYPE_CHECKING:
    from llama_bench.report.comparison import Comparison, Row

EXAMPLES = """
Before and after a change (a run's folder or URI; a sweep's folder means its newest run):
  python -m llama_bench compare results/report/BEFORE results/report
For a pull request, or for CI, which stops at exit status 3:
  python -m llama_bench compare BEFORE AFTER --format markdown --output compare.md
  python -m llama_bench compare BEFORE AFTER --threshold 5% --format junit --output compare.xml
Two machines: which optimisation pays on the one and not on the other
  python -m llama_bench compare s3://bucket/results/report/RUN results/report --by speedup
Exit status: 0 no regression, 3 a regression, 2 wrong input. What is compared, and how: docs/comparing.md
"""

REGRESSION = 3
"""Exit status: 1 and 2 say that the comparison itself went wrong."""


class Format(StrEnum):
    """How the comparison comes out."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"
    JUNIT = "junit"


class By(StrEnum):
    """What is asked of each arm."""

    TIME = "time"
    SPEEDUP = "speedup"


def command(
    a: Annotated[str, typer.Argument(metavar="A", help="The run before: its folder or URI, a sweep's, or a store's.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The run after, named in the same way.")],
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Slower by more than this is a regression: 2% or 0.02. Left out: what counts as no difference on the "
            "target, 2 % on a CPU and 1 % on a GPU.",
        ),
    ] = None,
    by: Annotated[
        By | None,
        typer.Option(
            help="What is asked: each arm's time, or its speedup over the baseline. Left out: the time where both runs "
            "had the same hardware, the speedup where they had not."
        ),
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How the comparison comes out.")] = Format.TABLE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file, not to stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs: what became faster or slower from A to B beyond noise, and what changed around it.

    Exit status 3 says that there is a regression: an arm that is slower beyond noise and by more than the threshold,
    one whose answers were right and are wrong, or one that was timed and fails now. What the machine itself did between
    the runs is estimated from the arms that are the same program in both, and taken off the others.
    """
    from llama_bench.report import comparison

    format = _format(format, as_json, output)
    limit = None if threshold is None else _share(threshold)
    asked = None if by is None else by.value
    found = reading(f"{a} or {b}", lambda: comparison.load(a, b, by=asked, threshold=limit))
    for note in found.notes:
        warn(note)
    if format is Format.TABLE:
        _print(found)
    else:
        write_out(_encode(found, format).encode(), output)
    if found.regressions:
        raise typer.Exit(REGRESSION)


def _format(format: Format, as_json: bool, output: Path | None) -> Format:
    if as_json and format not in (Format.TABLE, Format.JSON):
        raise InputError(f"--json and --format {format.value} contradict each other: name one")
    format = Format.JSON if as_json else format
    if format is Format.TABLE and output is not None:
        raise InputError("--output needs --format markdown, json or junit")
    return format


def _share(words: str) -> float:
    """Return `2%` or `0.02` as a share; raises InputError for what is neither, or below zero."""
    text = words.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"--threshold {words}: a share that is not negative, such as 2% or 0.02")
    return value


def _print(found: Comparison) -> None:
    from llama_bench.report import comparison_words as words

    lines = [
        f"A  {found.a['at']}",
        f"B  {found.b['at']}",
        "",
        f"{words.answer(found)}.",
        f"{words.numbers(found)}.",
        *map(words.machine, found.drift),
    ]
    changed, unchanged = words.changed(found), words.unchanged(found)
    _say(lines)
    _table("Changed", changed)
    _table("Not changed, or not to be told", unchanged)
    if changed or unchanged:
        _say(["", *words.legend(found)])
    if without := words.absent(found):
        _say(["", "Without a number in one of the runs:", *(f"  {line}" for line in without)])
    if why := words.reasons(found.rows):
        _say(["", "Why:", *(f"  {line}" for line in why)])
    environment = [f"  {words.differs(one)}" for one in found.differences]
    _say(["", "What changed in the environment, A → B:", *(environment or ["  nothing that was recorded"])])


def _table(title: str, rows: list[Row]) -> None:
    from llama_bench.report import comparison_words as words

    if rows:
        shown = words.table(rows)
        out().print()
        print_table(shown.columns, shown.rows, title=title, right=",".join(words.NUMBERS))


def _say(lines: list[str]) -> None:
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)


def _encode(found: Comparison, format: Format) -> str:
    from llama_bench.report import comparison_words as words
    from llama_bench.report import junit

    if format is Format.MARKDOWN:
        return words.as_markdown(found)
    if format is Format.JSON:
        return json.dumps(words.as_json(found), indent=2, ensure_ascii=False) + "\n"
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + junit.junit(found) + "\n"
