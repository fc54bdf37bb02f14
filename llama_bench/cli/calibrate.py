"""`calibrate`: prove the tool on this machine, with programs whose true difference is known."""

from __future__ import annotations

import json
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.calibration import Design
from llama_bench.cli.common import (
    AsJson,
    Quiet,
    StoreAt,
    duration,
    err,
    open_store,
    print_json,
    progress,
    reading,
    run_as_dict,
    warn,
)
from llama_bench.cli.live import watching

if TYPE_CHECKING:
    from rich.console import Console

    from llama_bench.cluster.events import RunResult
    from llama_bench.store import Store

EXAMPLES = """
Is a difference of 3 % believable on this machine? About a quarter of an hour:
  python -m llama_bench calibrate
False alarms alone, and to the percent (600 pairs of the same program):
  python -m llama_bench calibrate --cells 600 --slowed-every 0
Two threads, and a slowdown of half a percent:
  python -m llama_bench calibrate --threads 2 --slowdown 0.005
Interrupted? The same command goes on. To see a calibration again:
  python -m llama_bench calibrate --show results/calibrate
"""

DEFAULT = Design()
RUN_S = 1.0e-3  # one run of the calibration's model, which is small enough that its size hardly matters


class Through(StrEnum):
    """What starts the processes that are timed."""

    processes = "processes"
    ray = "ray"


def command(
    cells: Annotated[int, typer.Option(help="Cells, each with original and control: the A/A pairs.")] = DEFAULT.cells,
    slowdown: Annotated[
        list[float] | None,
        typer.Option(metavar="SHARE", help="A known slowdown (0.01 is 1 %); may be repeated.  [default: 0.01 0.03]"),
    ] = None,
    slowed_every: Annotated[
        int, typer.Option(metavar="K", help="Every K-th cell has the slowed arms too; 0: none.")
    ] = DEFAULT.slowed_every,
    restarts: Annotated[int, typer.Option(help="Pilot restarts: fresh processes of every arm.")] = DEFAULT.restarts,
    blocks: Annotated[int, typer.Option(help="Blocks a restart.")] = DEFAULT.blocks,
    runs: Annotated[int, typer.Option(help="Timed runs of an arm in a block.")] = DEFAULT.runs,
    half_width: Annotated[
        float, typer.Option(metavar="SHARE", help="Wanted half-width of an interval (0.01 is 1 %).")
    ] = DEFAULT.half_width,
    budget: Annotated[float, typer.Option(metavar="SECONDS", help="The most a cell may take.")] = DEFAULT.budget_s,
    threads: Annotated[int, typer.Option(help="Intra-op threads of every process.")] = DEFAULT.threads,
    provider: Annotated[str, typer.Option(help="ONNX Runtime's execution provider.")] = DEFAULT.provider,
    seed: Annotated[int, typer.Option(help="Seed of the order of the arms.")] = DEFAULT.seed,
    through: Annotated[
        Through, typer.Option(help="Plain processes of this machine, or Ray's actors as in a run.")
    ] = Through.processes,
    beside: Annotated[
        int, typer.Option(min=1, help="Cells measured at a time, each on cores of its own; they disturb each other.")
    ] = 1,
    store: StoreAt = "./results",
    show: Annotated[
        str | None, typer.Option(metavar="PATH", help="Measure nothing: print the calibration at PATH again.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure programs of which the truth is known, and say how often this and other procedures err here.

    Every cell times the same program twice (A/A); some cells also have arms that a busy loop makes slower by a known
    share. Everything is fixed before it starts: the same options go on with what an interruption left, other options
    begin another calibration, and every one is kept in the store under calibrate/. Exit status 1: something failed.
    """
    if show is not None:
        _show(show, as_json)
        return
    from llama_bench.engines import PROVIDERS
    from llama_bench.errors import InputError, nearest

    if provider not in PROVIDERS:
        raise InputError(f"--provider {provider}: unknown{nearest(provider, PROVIDERS)}")
    design = Design(
        cells=cells,
        slowed_every=slowed_every,
        slowdowns=DEFAULT.slowdowns if slowdown is None else tuple(slowdown),
        restarts=restarts,
        blocks=blocks,
        runs=runs,
        half_width=half_width,
        budget_s=budget,
        threads=threads,
        provider=provider,
        seed=seed,
    )
    progress(quiet).print(forecast(design, beside), markup=False, soft_wrap=True)

    from llama_bench.cluster import calibrate

    place = open_store(store)
    with watching(progress(quiet), design.cells) as on_event:
        result = calibrate.run(design, place, through=through.value, beside=beside, on_event=on_event)
    found = _report(place, result.run) if result.measured or result.reused else None
    path = place.url(result.run)
    if as_json:
        print_json({**run_as_dict(result, path), "calibration": None if found is None else found[1]})
    elif found is not None:
        typer.echo(found[0])
        progress(quiet).print(f"wrote {place.url(f'{result.run}/calibration')}", markup=False, soft_wrap=True)
    _summary(result, path, progress(quiet))
    if result.failures or result.unserved:
        raise typer.Exit(1)


def forecast(design: Design, beside: int = 1) -> str:
    """Say in a line or two what is measured, with how many processes, and about how long that takes."""
    from llama_bench import calibration

    pilot_s, most_s = (total / beside for total in seconds(design))
    slowed = design.cells // design.slowed_every if design.slowed_every else 0
    shares = " and ".join(f"{100 * share:g} %" for share in design.slowdowns)
    arms = f", {slowed} of them also slowdowns of {shares}" if slowed else ""
    more = f"; where {100 * design.half_width:g} % needs more restarts, at most {duration(most_s)}" if slowed else ""
    order = "one small cell after another" if beside == 1 else f"{beside} small cells at a time"
    return (
        f"{design.cells} cells compare a program with itself{arms}: {calibration.processes(design):,} processes, "
        f"{order}.\nAbout {duration(pilot_s)}{more}. Leave the machine to the work it usually has."
    )


def seconds(design: Design) -> tuple[float, float]:
    """Return about how long the pilot restarts of all cells take, and the most that all may take.

    Right within a factor of two or so, like every estimate of :mod:`llama_bench.estimate`: what a process costs
    depends on the machine. Only slowed cells are given more restarts than the pilot's.
    """
    from llama_bench import calibration
    from llama_bench.counts import model_bytes
    from llama_bench.estimate import cell_seconds

    sweep = calibration.sweep(design)
    size = model_bytes(sweep.models[0])
    pilot_s = most_s = 0.0
    for number in range(1, design.cells + 1):
        arms = calibration.arms(design, number)
        cell_s = cell_seconds(sweep.measure, len(arms), RUN_S, size)
        pilot_s += cell_s
        most_s += max(cell_s, design.budget_s) if len(arms) > 2 else cell_s
    return pilot_s, most_s


def _show(path: str, as_json: bool) -> None:
    """Print the calibration at `path` again."""
    from llama_bench import results
    from llama_bench.report.calibration import machine, numbers, page
    from llama_bench.stats import views
    from llama_bench.stats.calibration import calibrate

    store, run = results.locate(path)

    def shown() -> tuple[str, dict[str, Any]]:
        frames = views.load(store.url(run))
        found, facts = calibrate(frames), machine(frames)
        return page(found, facts), numbers(found, frames.run, facts)

    text, values = reading(path, shown)
    if as_json:
        print_json(values)
    else:
        typer.echo(text)


def _report(store: Store, run: str) -> tuple[str, dict[str, Any]]:
    """Write what the calibration shows into its folder; return its page and its numbers."""
    from llama_bench.report.calibration import write_calibration

    with tempfile.TemporaryDirectory() as scratch:
        written = write_calibration(store.url(run), Path(scratch) if store.root is None else None)
        if store.root is None:
            for file in written:
                store.put(f"{run}/calibration/{file.name}", file.read_bytes(), create=False)
        [values] = [json.loads(file.read_text(encoding="utf-8")) for file in written if file.suffix == ".json"]
        return written[0].read_text(encoding="utf-8"), values


def _summary(result: RunResult, path: str, console: Console) -> None:
    """Say on `console` how much was measured and where it lies, and as an error what is missing."""
    took = duration(sum(result.breakdown.values()))
    console.print(
        f"{result.measured} measured, {result.reused} reused in {took}; results in {path}", markup=False, soft_wrap=True
    )
    for reason in result.unserved.values():
        warn(f"nothing was measured: {reason}")
    for failure in result.failures:
        err().print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)
