"""The coordinator of a cell: examines its arms, runs its restarts, and writes one part a restart.

It lives on the node that it measures, starts one process an arm and restart through its launcher, and yields what
happens as plain dictionaries: while a slot is timed it waits for that arm and does nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from llama_bench import engines, folding, parts, versions
from llama_bench.cluster import gpu
from llama_bench.cluster.ceilings import measure_beaten_ceilings, measure_ceilings
from llama_bench.cluster.deadline import deadline_s
from llama_bench.cluster.examine import Found, examine
from llama_bench.cluster.job import ARM_TRIES, NO_ENGINE, SKIPPED, Event, Job, Prepared, event, failure, insist
from llama_bench.cluster.launch import GPU_MEMORY, Launcher, Lost
from llama_bench.cluster.restart import REFERENCE, Given, Turn, restart_once
from llama_bench.cluster.rows import Rows, kind_of
from llama_bench.cluster.texts import texts
from llama_bench.engines import Task
from llama_bench.errors import WorkError
from llama_bench.plan import Arm
from llama_bench.plan import Cell as PlannedCell
from llama_bench.stats import headline, progress
from llama_bench.stats.progress import Progress
from llama_bench.stats.verdicts import margin_of
from llama_bench.store import Store, reopen
from llama_bench.sweep import CONTROL

DEFAULT_ENGINE = "onnxruntime"

INPUTS = "inputs.safetensors"
"""What a run is given, in the folder of a reference."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell being measured: what its coordinator holds from beginning to end."""

    job: Job
    launcher: Launcher
    store: Store
    done: Progress
    given: Given
    deaths: Counter[str | None]


def measure_cell(job: Job, launcher: Launcher, examined: Found | None = None) -> Iterator[Event]:
    """Measure a cell to its end, from wherever its parts on disk say it is; yield events as dictionaries.

    `examined` keeps what is executed, by graph and settings: cells that share it examine each session once.
    """
    store = reopen(job.store_uri)
    done = progress.read(store, job.run, job.cell.id, job.cell.baseline, retry_failed=job.retry_failed)
    threads = job.cell.target.threads or int(job.node["physical_cores"])
    ready = {arm.name: _prepare(store, job, arm, threads) for arm in job.cell.arms if arm.name not in done.lost}
    usable = yield from _leave_out_missing_engines(job, launcher, store, done, ready)
    if not usable:
        return
    yield from measure_ceilings(job, launcher, store)
    launcher.deadline_s = deadline_s(job, store)
    memory = yield from gpu.looked_at(job, launcher)
    given = _given(store, job.cell)
    ready = {name: one for name, one in ready.items() if name not in done.lost}
    each = {name: gpu.host_bytes(job, one) for name, one in ready.items()}
    count = gpu.side_by_side(job, list(ready.values()), each, memory)
    yield from examine(job, launcher, store, done, ready, given.task, {} if examined is None else examined, count)
    cell = Cell(job, launcher, store, done, given, Counter())
    arms = [one for name, one in ready.items() if name not in done.lost]
    try:
        groups = gpu.groups(job, arms, each, memory)
    except ValueError as error:
        yield from failure(job, store, done, Lost(None, "measure", "memory", str(error), True))
        return
    yield from _measure_groups(cell, groups, ready)
    yield from _confirm(cell, ready)
    yield from measure_beaten_ceilings(job, launcher, store)
    folding.fold(store, job.run, job.cell.id)


def _given(store: Store, cell: PlannedCell) -> Given:
    from safetensors.numpy import load_file

    reference = store.fetch(cell.reference)
    inputs = load_file(reference / INPUTS)
    task = Task(cell.model.model_dump(), cell.workload.model_dump(), inputs)
    described = texts(cell.model, inputs, reference / REFERENCE)
    return Given(task, reference, json.dumps(versions.libraries()), described)


def _leave_out_missing_engines(
    job: Job, launcher: Launcher, store: Store, done: Progress, ready: dict[str, Prepared]
) -> Generator[Event, None, bool]:
    """Take out the arms whose engine this node does not have, with the reason; False when the baseline is one of them.

    Without the baseline nothing can be compared: that is one failure, of the cell, and the same command tries it again.
    A process is asked for each engine: its library may crash, and stays in memory.
    """
    by_engine: dict[str, list[str]] = {}
    for name, one in ready.items():
        # on a CPU a fault of the default engine is told when its session is made
        if one.arm.recipe.engine != DEFAULT_ENGINE or job.cell.target.needs_gpu:
            by_engine.setdefault(one.arm.recipe.engine, []).append(name)
    for names in sorted(by_engine.values(), key=lambda names: job.cell.baseline not in names):
        settings = [ready[name].settings for name in names]
        reasons = yield from insist(job, store, done, names[0], "engine", launcher, _missing, settings)
        for number, name in enumerate(names):
            why = reasons.message if isinstance(reasons, Lost) else reasons[number]
            if why is not None and name == job.cell.baseline:
                yield from failure(job, store, done, Lost(None, "engine", NO_ENGINE, why, True))
                return False
            if isinstance(reasons, Lost):
                yield from failure(job, store, done, replace(reasons, arm=name, stage="engine", final=True))
            elif why is not None:
                yield from failure(job, store, done, Lost(name, "engine", SKIPPED, why, True))
    return True


def _missing(settings: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """Return for the settings of each arm why this machine cannot run it."""
    return [engines.missing(one) for one in settings]


def _prepare(store: Store, job: Job, arm: Arm, threads: int) -> Prepared:
    said = engines.settings(arm.recipe.engine, arm.recipe.session, job.cell.target, threads)
    settings = {
        **said,
        "environment": {**said.get("environment", {}), **job.environment},
        "slowdown": arm.recipe.session.slowdown,
    }
    return Prepared(arm, store.fetch(arm.variant), settings, store.manifest(arm.variant), kind_of(arm))


def _measure_groups(cell: Cell, groups: Sequence[Sequence[str]], ready: Mapping[str, Prepared]) -> Iterator[Event]:
    """Measure the groups one after the other; one whose arms do not fit onto the GPU together is split in two."""
    left, number = [(names, cell.job.measure.budget_s / len(groups)) for names in groups], 0
    while left:
        names, budget_s = left.pop(0)
        fits = yield from _measure_group(cell, number, [ready[name] for name in names], budget_s)
        if not fits:
            left[:0] = [(half, budget_s / 2) for half in gpu.halves(names, (cell.job.cell.baseline, CONTROL))]
        number += 1


def _measure_group(cell: Cell, number: int, group: Sequence[Prepared], budget_s: float) -> Generator[Event, None, bool]:
    """Run the restarts of one group of arms: the pilot, then as many as Stein's second stage asks for.

    False when its arms do not fit onto the GPU together, and fewer of them may.
    """
    job, done = cell.job, cell.done
    always = (job.cell.baseline, CONTROL)
    while job.cell.baseline not in done.lost:
        arms = [one for one in group if one.arm.name not in done.lost]
        total = _totals(job, done, [one.arm.name for one in arms], number, budget_s)
        others = [one.arm.name for one in arms if one.arm.name not in always]
        pending = [name for name in others or always if done.restarts[name] < total.get(name, 0)]
        if not pending:
            return True
        timed = [one for one in arms if one.arm.name in (*always, *pending)]
        count, most = min(done.restarts[name] for name in pending), max(total[name] for name in pending)
        yield event("cell", job, "started", count, most)
        first = frozenset(one.arm.name for one in timed if not done.restarts[one.arm.name])
        turn = Turn(done.next_restart, number, "main", timed, _may_drop(cell), f"restart {count + 1}/{most}", first)
        lost = yield from _restart(cell, turn, count + 1, most)
        if lost is not None and lost.kind == GPU_MEMORY and gpu.halves(turn.names, always):
            return False
    return True


def _confirm(cell: Cell, ready: dict[str, Prepared]) -> Iterator[Event]:
    """Time the cell's fastest arm on fresh restarts: the largest of several estimates is too large on average."""
    job, done = cell.job, cell.done
    if not job.measure.confirm:
        return
    margin = margin_of(job.cell.target.provider)
    best = headline.best(done.ratios, pilot=job.measure.restarts, margin=margin, excluded=done.excluded | done.lost)
    names = [name for name in (job.cell.baseline, CONTROL, best) if name in ready]
    while best is not None and done.confirmed[best] < job.measure.restarts and not done.lost & set(names):
        count, total = done.confirmed[best], job.measure.restarts
        yield event("cell", job, "started", count, total)
        timed = [ready[name] for name in names]
        turn = Turn(done.next_restart, 0, "confirm", timed, _may_drop(cell), f"confirming {best} {count + 1}/{total}")
        yield from _restart(cell, turn, count + 1, total)


def _restart(cell: Cell, turn: Turn, count: int, total: int) -> Generator[Event, None, Lost | None]:
    """Run one restart and write its parts; one that is lost costs its number, and in the end its arm.

    Return how it was lost, None when it was not.
    """
    job, store, done = cell.job, cell.store, cell.done
    done.next_restart += 1
    outcome = yield from restart_once(job, cell.launcher, turn, cell.given)
    if not isinstance(outcome, Lost) and not _write(job, store, turn.restart, outcome):
        outcome = Lost(None, "write", "taken", f"restart {turn.restart} was written by somebody else", False)
    if isinstance(outcome, Lost):
        yield from _lost(cell, turn, outcome)
        return outcome
    for name in (None, *turn.names):
        cell.deaths[name] = 0
    [piece] = outcome["pieces"]
    done.add(pl.from_dicts(outcome["blocks"], schema=progress.BLOCKS), [(turn.group, turn.phase, piece["wall_s"])])
    done.judge(pl.from_dicts(outcome["accuracy"], schema=progress.ACCURACY))
    dropped = f"disturbed blocks timed again: {piece['dropped']}" if piece["dropped"] else ""
    yield event("restart", job, "finished", count, total, piece["wall_s"], dropped)
    return None


def _write(job: Job, store: Store, restart: int, rows: Rows) -> bool:
    """Write a restart's parts, `pieces` last; False, and nothing more, when its number is taken.

    The first part that is written claims the number: so no two coordinators mix theirs, however a network delays one.
    """
    stem = f"{job.cell.id}-r{restart:04d}"
    return all(parts.write_part(store, job.run, dataset, stem, part) for dataset, part in rows.items())


def _lost(cell: Cell, turn: Turn, lost: Lost) -> Iterator[Event]:
    """Write that a restart was lost; an arm that is lost again and again is given up, here or on every node.

    Raises WorkError when it is to be tried on another node first.
    """
    job, store, done = cell.job, cell.store, cell.done
    if lost.kind == GPU_MEMORY:
        lost = gpu.crowded(lost, turn.names, (job.cell.baseline, CONTROL))
        if gpu.halves(turn.names, (job.cell.baseline, CONTROL)):  # no arm is to blame yet
            yield from failure(job, store, done, lost, turn.restart, turn.group)
            return
    cell.deaths[lost.arm] += 1
    too_often = cell.deaths[lost.arm] >= ARM_TRIES
    if too_often and not lost.final and job.elsewhere:
        yield from failure(job, store, done, lost, turn.restart, turn.group)
        raise WorkError(f"{lost.arm or 'a restart'} was lost {ARM_TRIES} times in a row on this node: {lost.message}")
    yield from failure(job, store, done, replace(lost, final=lost.final or too_often), turn.restart, turn.group)


def _totals(job: Job, done: Progress, names: Sequence[str], group: int, budget_s: float) -> dict[str, int]:
    """Restarts of each arm in all: the pilot's, or what its variance asks for (Stein 1945), as the budget affords.

    Only the pilot's spreads and seconds are looked at, so a total is the same at every later restart, and neither
    the sign nor the size of an effect decides when to stop.
    """
    measure = job.measure
    pilot = dict.fromkeys(names, measure.restarts)
    if measure.half_width is None or any(done.restarts[name] < measure.restarts for name in names):
        return pilot
    affordable = int(budget_s / done.pilot_s(group, measure.restarts))
    return {name: max(measure.restarts, min(done.wanted(name, measure), affordable)) for name in names}


def _may_drop(cell: Cell) -> int:
    """Return how many blocks the next restart may drop: up to a fifth of all blocks that the cell has timed by then.

    A machine that disturbs more than that is what it is: from then on disturbed blocks are kept and flagged.
    """
    done, measure = cell.done, cell.job.measure
    timed = max(measure.restarts, done.next_restart + 1) * measure.blocks
    return max(0, timed // DROPPED_OF - done.dropped)


DROPPED_OF = 5
"""At most one in so many blocks is dropped."""
