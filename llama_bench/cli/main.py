"""The commands in one table, the global options, and how an error becomes one line and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llama_bench import __version__
from llama_bench.cli import (
    calibrate,
    clean,
    compare,
    explain,
    export,
    graph,
    passes,
    plan,
    query,
    report,
    run,
    schema,
    status,
    targets,
    tune,
)
from llama_bench.cli.common import QUIET
from llama_bench.errors import LlamaBenchError

DEBUG = "LLAMA_BENCH_DEBUG"
INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended
PROGRAM = "llama-bench"  # what pip installs, and so what a shell completes; `python -m llama_bench` is the same

EXIT_STATUSES = {
    0: "done; a target that no node serves is a warning while others were measured",
    1: "work failed: a build, an arm, a cell, a node, a full store; of `tune`: nothing acceptable is faster",
    2: "wrong input: an option, a sweep file, a path; nothing was started",
    3: "of `compare`: something became slower or wrong",
    INTERRUPTED: "interrupted by Ctrl-C; `run`, `tune` and `calibrate` go on with the same command",
}
"""Exit status → what it says."""

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "run": (run.command, run.EXAMPLES),
    "plan": (plan.command, plan.EXAMPLES),
    "status": (status.command, status.EXAMPLES),
    "report": (report.command, report.EXAMPLES),
    "explain": (explain.command, explain.EXAMPLES),
    "query": (query.command, query.EXAMPLES),
    "compare": (compare.command, compare.EXAMPLES),
    "tune": (tune.command, tune.EXAMPLES),
    "export": (export.command, export.EXAMPLES),
    "graph": (graph.command, graph.EXAMPLES),
    "calibrate": (calibrate.command, calibrate.EXAMPLES),
    "passes": (passes.command, passes.EXAMPLES),
    "targets": (targets.command, targets.EXAMPLES),
    "schema": (schema.command, schema.EXAMPLES),
    "clean": (clean.command, clean.EXAMPLES),
}
"""Name → what it does and the examples under its help. The order is that of `--help`."""


class Commands(TyperGroup):
    """The group of all commands; every error that leaves one ends here."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an error is a line or two on stderr and an exit status, not a traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = "; what is finished is on disk, the same command goes on from there"
            _say(f"interrupted{goes_on if ctx.invoked_subcommand in ('run', 'calibrate', 'tune') else ''}")
            raise typer.Exit(INTERRUPTED) from None
        except LlamaBenchError as error:
            _traceback_if_wanted()
            _say(f"error: {error}")
            raise typer.Exit(error.exit_status) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort | BrokenPipeError):
                raise  # typer's own: usage errors, exits; and a reader such as `head` that has seen enough
            _say(f"unexpected {type(error).__name__}: {_first_line(error)}")
            if not _traceback_if_wanted():
                _say(f"this is a defect of llama_bench; {DEBUG}=1 (or --debug before the command) shows the traceback")
            raise typer.Exit(1) from None


def _options(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help=f"Show tracebacks (the same as {DEBUG}=1).")] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help=f"Print results and errors alone, no progress (the same as {QUIET}=1)."),
    ] = False,
) -> None:
    """Which optimisations make this Llama faster here, by how much, at what cost, and how sure are we?

    A sweep file names models, recipes, workloads and targets; `run` builds and measures them on Ray, then
    writes tables and charts. Every command explains itself: `python -m llama_bench COMMAND --help`.
    """
    if version:
        typer.echo(f"llama_bench {__version__}")
        raise typer.Exit
    if debug:
        os.environ[DEBUG] = "1"
    if quiet:
        os.environ[QUIET] = "1"
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


def make_app() -> typer.Typer:
    """Return the typer application with every command of :data:`COMMANDS`."""
    app = typer.Typer(
        cls=Commands,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True, epilog=_START)(_options)
    for name, (function, examples) in COMMANDS.items():
        app.command(name, epilog=_lines(examples))(function)
    return app


def main() -> None:
    """Run the command line; the entry point of `llama-bench` and `python -m llama_bench`."""
    make_app()(prog_name=PROGRAM)


def _lines(examples: str) -> str:
    """Keep each line of an epilog on a line of its own: typer joins lines that no blank line parts."""
    return "\n\n".join(line for line in examples.strip().splitlines())


_START = _lines(
    "\n".join(
        [
            "Start here:  python -m llama_bench run sweeps/quick.yaml",
            "Exit status:",
            *(f"  {status}  {meaning}" for status, meaning in EXIT_STATUSES.items()),
            "NO_COLOR=1 leaves colours out everywhere.",
        ]
    )
)


def _traceback_if_wanted() -> bool:
    wanted = os.environ.get(DEBUG, "") not in ("", "0")
    if wanted:
        traceback.print_exc(file=sys.stderr)
    return wanted


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else "(no message)"


def _say(text: str) -> None:
    typer.echo(text, err=True)
