"""A calibration measured: its cells in plain processes of this machine, or through Ray like any sweep."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Literal

from llama_bench import calibration, parts, versions
from llama_bench import plan as planning
from llama_bench.bench import machine
from llama_bench.calibration import Design
from llama_bench.cluster.breakdown import Stages, measuring
from llama_bench.cluster.build import build
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.events import Event, OnEvent, RunResult
from llama_bench.cluster.examine import Found
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.job import NODE_MEMORY_SHARE, Job
from llama_bench.cluster.launch import Lost
from llama_bench.cluster.processes import Processes
from llama_bench.errors import InputError, WorkError
from llama_bench.plan import Cell, Plan
from llama_bench.store import Store

NODE = "here"


def run(
    design: Design,
    store: Store,
    *,
    through: Literal["processes", "ray"] = "processes",
    beside: int = 1,
    on_event: OnEvent,
) -> RunResult:
    """Measure the calibration `design` into `store`, going on where an earlier call stopped.

    The coordinator of a cell, the arms and the timed loop are those of every run. `processes` starts the arms without
    Ray, two to three times as fast; `ray` starts them as every run does. With `beside` so many cells are measured at a
    time, each on cores of its own: they disturb each other, which a real machine's other work does too. Raises
    InputError for more of them than there are cores, or with Ray, WorkError when the model cannot be
    built or the store cannot take the results.
    """
    if beside > 1:
        core_sets(beside)  # says so when there are too few
    if through == "ray":
        if beside > 1:
            raise InputError("--beside: Ray holds a whole node for each cell; leave one of them out")
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
            versions={
                **versions.libraries(),
                "arms started as": "plain processes" + (f", {beside} cells at a time" if beside > 1 else ""),
            },
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
        _measure(plan, store, outcome, facts, beside, on_event)
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


def _measure(
    plan: Plan, store: Store, outcome: RunResult, facts: dict[str, Any], beside: int, on_event: OnEvent
) -> None:
    """Measure the cells that are left, `beside` of them at a time; one that fails is told, and the others go on."""
    finished = parts.finished(store, outcome.run)["pieces"]
    memory = int(NODE_MEMORY_SHARE * facts["memory_bytes"]) // beside
    examined: Found = {}  # every cell has the same sessions
    jobs = []
    for cell in plan.cells:
        if cell.id in finished:
            outcome.reused += 1
            on_event(Event("cell", cell.label, "reused"))
        else:
            jobs.append(Job(cell, cell.measure, store.uri, outcome.run, NODE, facts, memory, ceilings=False))
    waiting = iter(jobs)
    # with one at a time nothing else goes on while a slot is timed: an event is dealt with between two
    events = _events(waiting, None, examined) if beside == 1 else _side_by_side(waiting, core_sets(beside), examined)
    for event in events:
        if event.kind == "failure":
            outcome.failures.append(f"{event.label}: {event.detail}")
        outcome.measured += event.kind == "cell" and event.state == "finished"
        on_event(event)


def _events(jobs: Iterator[Job], cores: Sequence[int] | None, examined: Found) -> Iterator[Event]:
    """Measure jobs until none is left, in processes that stay on `cores`."""
    for job in jobs:
        for event in measure_cell(job, Processes(job.environment, cores), examined):
            yield Event(**event)
        yield Event("cell", job.cell.label, "finished")


def _side_by_side(jobs: Iterator[Job], cores: Sequence[Sequence[int]], examined: Found) -> Iterator[Event]:
    """Measure several jobs at a time, one on each set of cores: a thread each, which mostly waits for its processes."""
    told: SimpleQueue[Event | BaseException | None] = SimpleQueue()
    taking = Lock()

    def work(mine: Sequence[int]) -> None:
        try:
            for event in _events(_one_by_one(jobs, taking), mine, examined):
                told.put(event)
            told.put(None)
        except BaseException as error:  # the thread that reads the queue raises it
            told.put(error)

    for mine in cores:
        Thread(target=work, args=(mine,), daemon=True).start()
    working = len(cores)
    while working:
        event = told.get()
        if isinstance(event, BaseException):
            raise event
        if event is None:
            working -= 1
        else:
            yield event


def _one_by_one(jobs: Iterator[Job], taking: Lock) -> Iterator[Job]:
    """Give the next job to whoever asks first; an iterator alone cannot be shared by threads."""
    while True:
        with taking:
            job = next(jobs, None)
        if job is None:
            return
        yield job


def core_sets(beside: int) -> list[list[int]]:
    """Return `beside` sets of cores of the same size; where there are enough, a core at least is left to this process.

    Raises InputError when there are too few cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    size = (len(cores) - (len(cores) > beside)) // beside
    if size < 1:
        raise InputError(f"--beside {beside}: more than the {len(cores)} cores here")
    return [cores[i * size : (i + 1) * size] for i in range(beside)]
