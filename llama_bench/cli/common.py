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

from llama_bench.cli import complete
from llama_bench.errors import InputError, WorkError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from llama_bench.cluster.events import RunResult
    from llama_bench.passes import PassInfo
    from llama_bench.plan import Plan
    from llama_bench.store import Store
    from llama_bench.sweep import Model, Recipe, Sweep, Target
    from llama_bench.sweep_file import Catalogue

T = TypeVar("T")

RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What `ray job submit` sets in the environment of the command that it runs."""

QUIET = "LLAMA_BENCH_QUIET"
"""Set in the environment, it is `--quiet` for every command."""

PIPE_WIDTH = 160  # columns of a table that goes into a file or a pipe, unless COLUMNS says otherwise

SweepFile = Annotated[
    Path,
    typer.Argument(
        metavar="SWEEP", help="A sweep file, such as sweeps/quick.yaml.", autocompletion=complete.sweep_files
    ),
]
Only = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=WORD,…",
        help="Only a part of the sweep: model, recipe, workload, target; words may hold * and |.",
        autocompletion=complete.only,
    ),
]
Autoscaler = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What `ray up` was given, for the nodes that can be brought; a job on the head finds it by itself.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (its keys: docs/cli.md).")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help=f"Print results and errors alone, no progress (the same as {QUIET}=1).")
]
StoreAt = Annotated[
    str, typer.Option("--store", metavar="PATH|URI", help="Where artifacts and results lie: a folder, s3://, gs://.")
]
ResultsAt = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="A run's folder or URI, a sweep's (its newest run), or a store's.",
        autocompletion=complete.runs,
    ),
]


def out() -> Console:
    """Return the console of results: stdout."""
    return _console(stderr=False)


def err() -> Console:
    """Return the console of errors and warnings: stderr, so that results can be sent into a file."""
    return _console(stderr=True)


def progress(quiet: bool) -> Console:
    """Return the console of what is of interest only while it lasts: stderr, or nowhere with `--quiet`."""
    return _console(stderr=True, quiet=is_quiet(quiet))


def write_out(data: bytes, output: Path | None) -> None:
    """Write `data` to the file `output`, or to stdout. Raises InputError where that cannot be."""
    try:
        if output is None:
            sys.stdout.buffer.write(data)
        else:
            output.write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"{output or 'stdout'} cannot be written: {error.strerror or error}") from None
    if output is not None:
        progress(False).print(f"wrote {output}", markup=False, soft_wrap=True)


def is_quiet(quiet: bool) -> bool:
    """Whether a command or its environment asks for results and errors alone."""
    return quiet or os.environ.get(QUIET, "") not in ("", "0")


def _console(stderr: bool, quiet: bool = False) -> Console:
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    width = None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(stderr=stderr, width=width, highlight=False, quiet=quiet)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", right: str = "") -> None:
    """Print a table to stdout; columns named in `right` (separated by commas) hold numbers."""
    from rich.table import Table
    from rich.text import Text

    numbers = {name.strip() for name in right.split(",")} - {""}
    table = Table(
        title=Text(title) if title else None, title_justify="left", header_style="bold", box=None, pad_edge=False
    )
    for name in columns:
        table.add_column(Text(name), justify="right" if name in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    out().print(table)


def print_json(value: Any) -> None:
    """Print `value` as indented JSON to stdout, never coloured or wrapped."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def run_as_dict(result: RunResult, path: str) -> dict[str, Any]:
    """Return how a run ended, as JSON says it; seconds by stage, cells measured and found finished."""
    return {
        "run": result.run,
        "path": path,
        "measured": result.measured,
        "reused": result.reused,
        "seconds": result.breakdown,
        "failures": result.failures,
        "unserved": result.unserved,
        "held": result.held,
    }


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


def open_store(uri: str) -> Store:
    """Open the store that `--store` names. Raises InputError, also for a relative folder inside a submitted Ray job.

    Such a job runs in a temporary copy of the working directory, which goes when the job ends.
    """
    from llama_bench.store import Store

    if RAY_JOB in os.environ and "://" not in uri and not Path(uri).expanduser().is_absolute():
        raise InputError(
            f"--store {uri}: a submitted job runs in a temporary copy of the checkout, where results would be lost; "
            "name an absolute path that all nodes share, or s3://…, gs://…, az://…"
        )
    return Store(uri)


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
    from llama_bench import engines
    from llama_bench.engines import ENGINES, PROVIDERS
    from llama_bench.model import source
    from llama_bench.own import describe as own
    from llama_bench.passes import PASSES, misfit
    from llama_bench.sweep_file import Catalogue

    def unfit(recipe: Recipe, target: Target) -> str | None:
        try:
            engines.settings(recipe.engine, recipe.session, target, 1)
        except InputError as error:
            return str(error)
        return None

    return Catalogue(
        passes={family: {name: info.refused for name, info in table.items()} for family, table in PASSES.items()},
        providers=tuple(PROVIDERS),
        engines=tuple(ENGINES),
        options={family: _option_schemas(table.values()) for family, table in PASSES.items()},
        misfit=misfit,
        unfit=unfit,
        describe=source.describe,
        describe_own=own.describe,
        cost_own=own.cost,
        networks=tuple(name for name, info in ENGINES.items() if not info.graph),
    )


def _option_schemas(passes: Iterable[PassInfo]) -> dict[str, Any]:
    """Return key → JSON Schema of the options of a family's passes; one key means the same in all of them."""
    found: dict[str, Any] = {}
    for info in passes:
        found |= info.options.model_json_schema()["properties"] if info.options.model_fields else {}
    return found


def read_sweep(path: Path, only: str | None = None) -> Sweep:
    """Read the sweep file at `path`, cut down to `only` where given. Raises InputError."""
    from llama_bench import sweep_file

    sweep = sweep_file.load(path, catalogue())
    return sweep_file.select(sweep, only) if only else sweep


def read_model(words: str) -> Model:
    """Return the model that an option names: `sweep.yaml`, `sweep.yaml:label`, or a checkpoint's path or hub name.

    It gets a KV cache, since what is to be served needs one. Raises InputError.
    """
    from llama_bench.model import source
    from llama_bench.sweep import Model
    from llama_bench.sweep_tree import safe_name

    file, _, label = words.partition(":")
    if file.endswith((".yaml", ".yml")):
        models = {model.label: model for model in read_sweep(Path(file)).models}
        if label and label not in models:
            raise InputError(f"--model {words}: no such model in {file}{nearest(label, models)}")
        found = models[label] if label else next(iter(models.values()))
        if not isinstance(found, Model):
            raise InputError(f"--model {words}: the search knows recipes for Llamas; {found.label} is an ONNX file")
        cached = {"cache": True, "head": "lm", "exporter": "dynamo", "opset": max(18, found.opset)}
        plain = {"attention_mask": False, "flatten_tokens": False}
        return Model.model_validate(found.model_dump() | cached | plain)
    described = source.describe(words, Path())
    own = {"name": safe_name(described.name), "source": described.source, "source_sha256": described.sha256}
    return Model.model_validate({**described.config, **own, "cache": True})


def build_missing(planned: Plan, variant: str, store: Store, quiet: bool = False) -> None:
    """Build here what `store` lacks of `variant`, an id of the plan, and say so unless `quiet`. Raises WorkError."""
    from llama_bench.cluster.build import build
    from llama_bench.cluster.building import closure

    for artifact in closure(planned, [variant]).values():
        if not store.has(artifact.id):
            progress(quiet).print(f"building {artifact.label}", markup=False, soft_wrap=True)
            build(artifact, store)


READING_TRIES = 5


def reading(path: str, work: Callable[[], T]) -> T:
    """Return what `work` makes of the results at `path`, trying again when a part is folded away while it reads.

    A run that is being measured can be read at any time; raises WorkError when it changes faster than that.
    """
    for _ in range(READING_TRIES):
        with suppress(FileNotFoundError):
            return work()
    raise WorkError(f"{path}: its parts change faster than they can be read; try again when it rests")
