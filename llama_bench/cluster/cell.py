"""The coordinator of a cell: examines its arms, runs its restarts, and writes one part a restart. One Ray task.

It lives inside the placement group that holds the node, starts one actor an arm and restart inside it, and yields what
happens as plain dictionaries: while a slot is timed it waits for that arm and does nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from llama_bench import results
from llama_bench.bench import schedule
from llama_bench.cluster.examine import examine
from llama_bench.cluster.job import Event, Job, Lost, Prepared, event, failure
from llama_bench.cluster.restart import restart_once
from llama_bench.engines import onnxruntime as engine
from llama_bench.estimate import arm_bytes
from llama_bench.model.inputs import make_inputs
from llama_bench.plan import Arm
from llama_bench.stats import progress
from llama_bench.stats.progress import Progress
from llama_bench.store import Store
from llama_bench.sweep import CONTROL, Measure

ARM_TRIES = 2  # restarts in which an arm's process may be lost before the arm is given up


def measure_cell(job: Job) -> Iterator[Event]:
    """Measure a cell to its end, from wherever its parts on disk say it is; yield events as dictionaries."""
    store = Store(job.store_uri)
    done = progress.read(store, job.run, job.cell.id, job.cell.baseline, retry_failed=job.retry_failed)
    threads = job.cell.target.threads or int(job.node["physical_cores"])
    ready = {arm.name: _prepare(store, job, arm, threads) for arm in job.cell.arms if arm.name not in done.lost}
    reference = store.fetch(job.cell.reference) / "reference.safetensors"
    inputs = make_inputs(job.cell.model, job.cell.workload)
    yield from examine(job, store, done, ready, inputs)
    try:
        groups = _groups(job, [name for name in ready if name not in done.lost])
    except ValueError as error:
        yield from failure(job, store, done, Lost(None, "measure", "memory", str(error), True))
        return
    budget_s = job.measure.budget_s / len(groups)
    for number, names in enumerate(groups):
        group = [ready[name] for name in names]
        yield from _measure_group(job, store, done, number, group, budget_s, inputs, reference)
    results.fold(store, job.run, job.cell.id)


def _prepare(store: Store, job: Job, arm: Arm, threads: int) -> Prepared:
    settings = {**engine.settings(arm.recipe.session, job.cell.target, threads), "environment": job.environment}
    return Prepared(arm, store.fetch(arm.variant), settings, store.manifest(arm.variant))


def _groups(job: Job, names: Sequence[str]) -> list[list[str]]:
    """Arms that fit into the node's memory together; the baseline and the control are in every group."""
    always = [name for name in (job.cell.baseline, CONTROL) if name in names]
    each = dict.fromkeys(names, arm_bytes(job.cell.model, job.cell.workload))
    return schedule.groups(names, always, each, job.memory_bytes)


def _measure_group(
    job: Job,
    store: Store,
    done: Progress,
    number: int,
    group: Sequence[Prepared],
    budget_s: float,
    inputs: Mapping[str, Any],
    reference: Path,
) -> Iterator[Event]:
    """Run the restarts of one group of arms: the pilot, then as many as Stein's second stage asks for."""
    always = (job.cell.baseline, CONTROL)
    deaths: Counter[str | None] = Counter()
    while True:
        arms = [one for one in group if one.arm.name not in done.lost]
        total = _total(job.measure, done, [one.arm.name for one in arms], number, budget_s)
        others = [one.arm.name for one in arms if one.arm.name not in always]
        pending = [name for name in others or always if done.restarts[name] < total]
        if not pending or job.cell.baseline in done.lost:
            return
        timed = [one for one in arms if one.arm.name in (*always, *pending)]
        count = min(done.restarts[name] for name in pending)
        yield event("cell", job, "started", count, total)
        restart, done.next_restart = done.next_restart, done.next_restart + 1
        outcome = yield from restart_once(
            job, restart, number, timed, inputs, reference, f"restart {count + 1}/{total}"
        )
        if isinstance(outcome, Lost):
            deaths[outcome.arm] += 1
            lost = replace(outcome, final=outcome.final or deaths[outcome.arm] >= ARM_TRIES)
            yield from failure(job, store, done, lost, restart, number)
            continue
        for dataset, rows in outcome.items():
            results.write_part(store, job.run, dataset, f"{job.cell.id}-r{restart:04d}", rows)
        wall_s = outcome["pieces"][0]["wall_s"]
        done.add(pl.from_dicts(outcome["blocks"]), [(number, wall_s)])
        yield event("restart", job, "finished", count + 1, total, wall_s)


def _total(measure: Measure, done: Progress, names: Sequence[str], group: int, budget_s: float) -> int:
    """Restarts in all: the pilot's, or what its variance asks for (Stein 1945), at most what the budget affords.

    Only the pilot's spreads and seconds are looked at, so the total is the same at every later restart, and neither
    the sign nor the size of an effect decides when to stop.
    """
    if measure.half_width is None or any(done.restarts[name] < measure.restarts for name in names):
        return measure.restarts
    affordable = int(budget_s / done.pilot_s(group, measure.restarts))
    return max(measure.restarts, min(done.wanted(measure), affordable))
