"""`run`: build and measure a sweep, then its tables and charts. The same command again goes on where it stopped."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli.common import (
    AsJson,
    Autoscaler,
    Only,
    Quiet,
    StoreAt,
    SweepFile,
    duration,
    err,
    is_quiet,
    open_store,
    out,
    print_json,
    print_table,
    progress,
    read_sweep,
    run_as_dict,
    warn,
)
from llama_bench.cli.live import watching

if TYPE_CHECKING:
    from llama_bench.cluster.events import RunResult
    from llama_bench.store import Store

EXAMPLES = """
A first look:
  python -m llama_bench run sweeps/quick.yaml
Two recipes of one model, on the CPU (the baseline is always there):
  python -m llama_bench run sweeps/report.yaml --only "model=h512*,recipe=all_three,target=B"
Interrupted? The same command measures only what is missing. A changed sweep is a new run; what is built is used again.
On a cluster:
  ray job submit --working-dir . -- python -m llama_bench run sweeps/report.yaml --store s3://bucket/results
"""


def command(
    sweep: SweepFile,
    only: Only = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Build and measure again what has failed before.")
    ] = False,
    store: StoreAt = "./results",
    report: Annotated[bool, typer.Option(help="Write tables and charts at the end.")] = True,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Join this Ray cluster (the same as RAY_ADDRESS)."),
    ] = None,
    autoscaler: Autoscaler = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Build and measure a sweep on Ray, then print its tables.

    Without an address Ray starts on this machine. Finished pieces are on disk at once; exit status 1 says that
    something failed, and a target that no node serves is named while the rest runs.
    """
    from llama_bench.sweep_file import select

    specification = read_sweep(sweep)
    chosen = select(specification, only) if only else specification  # a wrong word is said before anything starts

    from llama_bench.cluster import driver

    if address:
        os.environ["RAY_ADDRESS"] = address
    place = open_store(store)
    cells = len(chosen.models) * len(chosen.workloads) * len(chosen.targets)
    with watching(progress(quiet), cells, len(chosen.targets)) as on_event:
        result = driver.run(
            specification, place, only=only, retry_failed=retry_failed, on_event=on_event, autoscaler=autoscaler
        )
    path = place.url(result.run)
    written = _report(place, result.run) if report and (result.measured or result.reused) else {}
    if as_json:
        print_json({**run_as_dict(result, path), "report": list(written)})
    else:
        for text in written.values():
            if text is not None:
                typer.echo(text)
        if written:
            progress(quiet).print(f"wrote {place.url(f'{result.run}/report')}", markup=False, soft_wrap=True)
        _summary(result, path, quiet)
    _what_is_missing(result, path)
    if result.failures or (result.unserved and not (result.measured or result.reused)):
        raise typer.Exit(1)


def _report(store: Store, run: str) -> dict[str, str | None]:
    """Write the report of `run` into its folder; return its files, with the text of those that are Markdown."""
    from llama_bench.report import write_report

    texts: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if store.root is None else store.root / run / "report"
        for file in write_report(store.url(run), folder):
            name = f"{run}/report/{file.relative_to(folder).as_posix()}"
            if store.root is None:
                store.put(name, file.read_bytes(), create=False)
            texts[store.url(name)] = file.read_text(encoding="utf-8") if file.suffix == ".md" else None
    return texts


def _summary(result: RunResult, path: str, quiet: bool) -> None:
    """Say where the time went and where the results lie."""
    if is_quiet(quiet):
        return
    total = sum(result.breakdown.values())
    rows = [(stage, duration(s), f"{s / total:.0%}") for stage, s in result.breakdown.items() if total]
    print_table(("where the time went", "time", "share"), [*rows, ("all", duration(total), "")], right="time, share")
    out().print(
        f"\n{result.measured} measured, {result.reused} reused; results in {path}", markup=False, soft_wrap=True
    )


def _what_is_missing(result: RunResult, path: str) -> None:
    """Say what is missing from the results, and why."""
    for target, reason in result.unserved.items():
        warn(f"target {target} was not measured: {reason}")
    for cell, holder in result.held.items():
        warn(f"{cell} is being measured by another driver ({holder}); `python -m llama_bench status {path}` shows it")
    for failure in result.failures:
        err().print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)
    if result.failures:
        err().print("--retry-failed tries these again; the failures view has the whole messages", soft_wrap=True)
