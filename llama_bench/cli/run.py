"""`run`: build and measure a sweep, then its tables and charts. The same command again goes on where it stopped."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli.common import (
    Autoscaler,
    Only,
    StoreAt,
    SweepFile,
    duration,
    err,
    open_store,
    out,
    print_table,
    read_sweep,
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
Interrupted, or new recipes in the file? The same command measures only what is missing.
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
    with watching(err(), cells, len(chosen.targets)) as on_event:
        result = driver.run(
            specification, place, only=only, retry_failed=retry_failed, on_event=on_event, autoscaler=autoscaler
        )
    path = place.url(result.run)
    if report and (result.measured or result.reused):
        _report(place, result.run)
    _summary(result, path)
    if result.failures or (result.unserved and not (result.measured or result.reused)):
        raise typer.Exit(1)


def _report(store: Store, run: str) -> None:
    """Write the report of `run` into its folder, and print its tables."""
    from llama_bench.report import write_report

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) if store.root is None else store.root / run / "report"
        written = write_report(store.url(run), out)
        if store.root is None:
            for file in written:
                store.put(f"{run}/report/{file.relative_to(out).as_posix()}", file.read_bytes(), create=False)
        for page in (file for file in written if file.suffix == ".md"):
            typer.echo(page.read_text(encoding="utf-8"))
    err().print(f"wrote {store.url(f'{run}/report')}", markup=False, soft_wrap=True)


def _summary(result: RunResult, path: str) -> None:
    """Say where the time went, where the results lie, and what is missing from them."""
    total = sum(result.breakdown.values())
    rows = [(stage, duration(s), f"{s / total:.0%}") for stage, s in result.breakdown.items() if total]
    print_table(("where the time went", "time", "share"), [*rows, ("all", duration(total), "")], right="time, share")
    out().print(
        f"\n{result.measured} measured, {result.reused} reused; results in {path}", markup=False, soft_wrap=True
    )
    for target, reason in result.unserved.items():
        warn(f"target {target} was not measured: {reason}")
    for cell, holder in result.held.items():
        warn(f"{cell} is being measured by another driver ({holder}); `python -m llama_bench status {path}` shows it")
    for failure in result.failures:
        err().print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)
    if result.failures:
        err().print("--retry-failed tries these again; the failures view has the whole messages", soft_wrap=True)
