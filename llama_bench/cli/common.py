"""What the commands share: consoles, tables, numbers for people, and reading a sweep against what exists."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from llama_bench.errors import WorkError

if TYPE_CHECKING:
    from rich.console import Console

    from llama_bench.sweep import Sweep
    from llama_bench.sweep_file import Catalogue

T = TypeVar("T")

PIPE_WIDTH = 160  # columns of a table that goes into a file or a pipe, unless COLUMNS says otherwise

SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep file, such as sweeps/quick.yaml.")]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=WORD,…",
        help="Only a part of the sweep: model, recipe, workload, target; words may hold * and |.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
StoreAt = Annotated[
    str, typer.Option("--store", metavar="PATH|URI", help="Where artifacts and results lie: a folder, s3://, gs://.")
]
ResultsAt = Annotated[
    str, typer.Argument(metavar="PATH", help="A run's folder or URI, a sweep's (its newest run), or a store's.")
]


def out() -> Console:
    """Return the console of results: stdout."""
    return _console(stderr=False)


def err() -> Console:
    """Return the console of progress and warnings: stderr, so that results can be sent into a file."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", right: str = "") -> None:
    """Print a table to stdout; columns named in `right` (separated by commas) hold numbers."""
    from rich.table import Table
    from rich.text import Text

    numbers = {name.strip() for name in right.split(",")}
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    out().print(table)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON to stdout, never coloured or wrapped."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def warn(text: str) -> None:
    """Say something on stderr that does not end the command."""
    err().print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)


def size(number: float) -> str:
    """Return bytes for people, in powers of ten: `1.9 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{number:.0f} {unit}" if unit == "B" or number >= 99.5 else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Return seconds for people: `3 ms`, `4.2 s`, `1 min 20 s`, `1 h 30 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def catalogue() -> Catalogue:
    """Return what a sweep file may name: the passes, providers and engines of the visible tables."""
    from llama_bench.engines import ENGINES, PROVIDERS
    from llama_bench.passes import PASSES
    from llama_bench.sweep_file import Catalogue

    return Catalogue(
        passes={family: {name: info.refused for name, info in table.items()} for family, table in PASSES.items()},
        providers=tuple(PROVIDERS),
        engines=tuple(ENGINES),
    )


def read_sweep(path: Path, only: str | None = None) -> Sweep:
    """Read the sweep file at `path`, cut down to `only` where given. Raises InputError."""
    from llama_bench import sweep_file

    sweep = sweep_file.load(path, catalogue())
    return sweep_file.select(sweep, only) if only else sweep


READING_TRIES = 5


def reading(path: str, work: Callable[[], T]) -> T:
    """Return what `work` makes of the results at `path`, trying again when a part is folded away while it reads.

    A run that is being measured can be read at any time; raises WorkError when it changes faster than that.
    """
    for _ in range(READING_TRIES):
        with suppress(FileNotFoundError):
            return work()
    raise WorkError(f"{path}: its parts change faster than they can be read; try again when it rests")
