"""A calibration measured: its cells one after the other, in plain processes here or through Ray like any sweep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Literal

from llama_bench import calibration, results, versions
from llama_bench import plan as planning
from llama_bench.bench import machine
from llama_bench.calibration import Design
from llama_bench.cluster.breakdown import Stages, measuring
from llama_bench.cluster.build import build
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.events import Event, OnEvent, RunResult
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.job import Job
from llama_bench.cluster.launch import Lost
from llama_bench.cluster.processes import Processes
from llama_bench.engines.executed import Executed
from llama_bench.errors import WorkError
from llama_bench.plan import Cell, Plan
from llama_bench.store import Store

MEMORY_SHARE = 0.8  # of the machine's memory for the arms of a cell
NODE = "here"


def run(
    design: Design, store: Store, *, through: Literal["processes", "ray"] = "processes", on_event: OnEvent
) -> RunResult:
    """Measure the calibration `design` into `store`, going on where an earlier call stopped.

    The coordinator of a cell, the arms and the timed loop are those of every run. `processes` starts the arms without
    Ray, two to three times as fast; `ray` starts them as every run does. Raises WorkError when the model cannot be
    built or the store cannot take the results.
    """
    if through == "ray":
        from llama_bench.cluster import driver

        return driver.run(calibration.sweep(design), store, on_event=on_event, trim=lambda cell: _trimmed(design, cell))
    seconds, began = Stages(), datetime.now(UTC)
    with seconds("plan"):
        plan = planning.make(calibration.sweep(design), versions.stages())
        plan = replace(plan, cells=tuple(_trimmed(design, cell) for cell in plan.cells))
        facts = machine.facts()
        identity = Identity(
            sweep=plan.sweep.model_dump(mode="json"),
            code=versions.measuring(),
            versions={**versions.libraries(), "arms started as": "plain processes"},
            hardware=[machine.fingerprint(facts)],
        )
        found = find_or_start(store, plan, identity, {}, {NODE: facts})
    outcome = RunResult(found.run)
    on_event(Event("note", "run", detail=f"{store.url(found.run)} ({found.why})"))
    for doubt in machine.doubts(facts):
        on_event(Event("doubt", facts["hostname"], detail=doubt))
    with seconds("build"):
        _build(plan, store, on_event)
    with seconds("measure"):
        _measure(plan, store, outcome, facts, on_event)
    wall_s = seconds.spent.pop("measure")
    outcome.breakdown = {**seconds.spent, **measuring(store, outcome.run, began, wall_s)}
    return outcome


def _trimmed(design: Design, cell: Cell) -> Cell:
    """Return the cell with the arms that it has in this calibration."""
    wanted = calibration.arms(design, calibration.number(cell.workload_name))
    return replace(cell, arms=tuple(arm for arm in cell.arms if arm.name in wanted))


def _build(plan: Plan, store: Store, on_event: OnEvent) -> None:
    """Export the one model, in a process of its own, unless the store has it. Raises WorkError."""
    for artifact in plan.artifacts.values():
        if not store.has(artifact.id):
            on_event(Event("build", artifact.label, "started"))
            built = Processes({}).once(build, artifact, store)
            if isinstance(built, Lost):
                raise WorkError(f"{artifact.label}: {built.message}")
            on_event(Event("build", artifact.label, "built"))


def _measure(plan: Plan, store: Store, outcome: RunResult, facts: dict[str, Any], on_event: OnEvent) -> None:
    """Measure the cells one after the other; one that fails is told, and the others go on."""
    finished = results.finished(store, outcome.run)["pieces"]
    memory = int(MEMORY_SHARE * facts["memory_bytes"])
    examined: dict[str, Executed | Lost] = {}  # every cell has the same sessions
    for cell in plan.cells:
        if cell.id in finished:
            outcome.reused += 1
            on_event(Event("cell", cell.label, "reused"))
            continue
        job = Job(cell, plan.sweep.measure, store.uri, outcome.run, NODE, facts, memory)
        for event in _events(job, examined):
            if event.kind == "failure":
                outcome.failures.append(f"{event.label}: {event.detail}")
            on_event(event)
        outcome.measured += 1
        on_event(Event("cell", cell.label, "finished"))


def _events(job: Job, examined: dict[str, Executed | Lost]) -> Iterator[Event]:
    yield from (Event(**event) for event in measure_cell(job, Processes(job.environment), examined))
