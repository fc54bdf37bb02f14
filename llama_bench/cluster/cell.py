"""The coordinator of a cell: examines its arms, runs its restarts, and writes one part a restart. One Ray task.

It lives inside the placement group that holds the node, starts one actor an arm and restart inside it, and yields what
happens as plain dictionaries: while a slot is timed it waits for that arm and does nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from llama_bench import results
from llama_bench.bench import accuracy, schedule
from llama_bench.cluster.arm import Arm as ArmProcess
from llama_bench.cluster.rows import Rows, restart_rows, variant_row, where
from llama_bench.engines import executed
from llama_bench.engines import onnxruntime as engine
from llama_bench.errors import WorkError
from llama_bench.estimate import arm_bytes
from llama_bench.model.inputs import make_inputs
from llama_bench.plan import Arm, Cell
from llama_bench.stats import progress
from llama_bench.stats.progress import ONE_RESTART, Progress
from llama_bench.store import Store
from llama_bench.sweep import CONTROL, Measure

ARM_TRIES = 2  # restarts in which an arm's process may be lost before the arm is given up
DEADLINE_S = 1800.0  # for one call of one arm: a session that hangs costs its restart, not the sweep
SHARE = 0.01  # CPU of an actor: explicit, since the group holds the cores and num_cpus=0 slips onto full nodes

NICENESS = {"RAY_worker_niceness": "0"}
"""Ray's workers run at nice 15: beside one busy process they would take four times as long."""

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""num_gpus=0 no longer hides GPUs (Ray 2.60): CPU targets must not see one."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What a coordinator is told: the cell with its buildable arms, how to measure, where to write, and the node."""

    cell: Cell
    measure: Measure
    store_uri: str
    run: str
    node_id: str
    node: Mapping[str, Any]
    memory_bytes: int
    retry_failed: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the arms' processes; they are part of an arm's settings."""
        return NICENESS | ({} if self.cell.target.needs_gpu else NO_GPU)

    def options(self, share: int = 1) -> dict[str, Any]:
        """Ray options of whatever runs a session: niceness 0, and a `share`-th of the GPU where there is one."""
        gpu = {"num_gpus": int(10_000 / share) / 10_000} if self.cell.target.needs_gpu else {}
        return {"num_cpus": SHARE, "runtime_env": {"env_vars": self.environment}, **gpu}


@dataclass(frozen=True, slots=True)
class Prepared:
    """An arm ready to be timed: the local folder of its variant, its settings, its manifest."""

    arm: Arm
    folder: Path
    settings: Mapping[str, Any]
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Lost:
    """A call that came to nothing: the arm, what it was doing, why, and whether trying again is pointless."""

    arm: str | None
    stage: str
    kind: str
    message: str
    final: bool


def measure_cell(job: Job) -> Iterator[Event]:
    """Measure a cell to its end, from wherever its parts on disk say it is; yield events as dictionaries."""
    store = Store(job.store_uri)
    done = progress.read(store, job.run, job.cell.id, job.cell.baseline, retry_failed=job.retry_failed)
    threads = job.cell.target.threads or int(job.node["physical_cores"])
    ready = {arm.name: _prepare(store, job, arm, threads) for arm in job.cell.arms if arm.name not in done.lost}
    reference = store.fetch(job.cell.reference) / "reference.safetensors"
    inputs = make_inputs(job.cell.model, job.cell.workload)
    yield from _examine(job, store, done, ready, inputs)
    try:
        groups = _groups(job, [name for name in ready if name not in done.lost])
    except ValueError as error:
        yield from _failure(job, store, done, Lost(None, "measure", "memory", str(error), True))
        return
    for number, group in enumerate(groups):
        yield from _measure_group(job, store, done, number, [ready[name] for name in group], inputs, reference)
    results.fold(store, job.run, job.cell.id)


def _prepare(store: Store, job: Job, arm: Arm, threads: int) -> Prepared:
    settings = {**engine.settings(arm.recipe.session, job.cell.target, threads), "environment": job.environment}
    return Prepared(arm, store.fetch(arm.variant), settings, store.manifest(arm.variant))


def _groups(job: Job, names: Sequence[str]) -> list[list[str]]:
    """Arms that fit into the node's memory together; the baseline and the control are in every group."""
    always = [name for name in (job.cell.baseline, CONTROL) if name in names]
    each = dict.fromkeys(names, arm_bytes(job.cell.model, job.cell.workload))
    return schedule.groups(names, always, each, job.memory_bytes)


# ── what ONNX Runtime makes of each arm ──────────────────────────────────────────────────────────────────────────────


def _examine(
    job: Job, store: Store, done: Progress, ready: Mapping[str, Prepared], inputs: Mapping[str, Any]
) -> Iterator[Event]:
    """Write the `variants` rows that the cell still lacks; an arm whose session cannot be made is lost.

    Arms with the same stored graph and settings are examined once: they are the same session.
    """
    todo = [one for name, one in ready.items() if name not in done.examined]
    if not todo:
        return
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    task = ray.remote(max_calls=1, max_retries=1, **job.options())(_examine_one)
    found: dict[str, Any] = {}
    rows = []
    for one in todo:
        key = one.manifest["graph_sha256"] + engine.settings_sha256(one.settings)
        if key not in found:
            yield _event("slot", job, detail=f"examining {one.arm.name}")
            found[key] = _outcome(task.remote(one.folder, one.settings, inputs))
        if isinstance(found[key], Lost):
            lost = replace(found[key], arm=one.arm.name, stage="examine", final=True)
            yield from _failure(job, store, done, lost)
        else:
            effects = _effects(store, one.arm.variant)
            rows.append(variant_row(job.cell, one.arm, one.manifest, effects, one.settings, found[key]))
            done.examined[one.arm.name] = rows[-1]
    stem = f"{job.cell.id}-x" + ("" if len(done.examined) == len(rows) else str(len(done.examined)))
    results.write_part(store, job.run, "variants", stem, rows)
    wall = time.perf_counter() - begin
    piece = {"piece": stem, "kind": "examine", "node": job.node_id, "started_at": started_at, "wall_s": wall}
    results.write_part(store, job.run, "pieces", stem, [{**where(job.cell), **piece, "other_s": wall}])


def _examine_one(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> executed.Executed:
    """In a process of its own: saving the executed graph costs several times a load, and memory."""
    return executed.examine(folder, settings, inputs, Path(tempfile.gettempdir()))


def _effects(store: Store, variant: str) -> list[Mapping[str, Any]]:
    """The effects of the passes that lead to `variant`, first one first."""
    chain: list[Mapping[str, Any]] = []
    step: str | None = variant
    while step is not None:
        manifest = store.manifest(step)
        if manifest["kind"] == "pass":
            chain.insert(0, manifest["effect"])
        step = manifest["parent"]
    return chain


# ── restarts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _measure_group(
    job: Job,
    store: Store,
    done: Progress,
    number: int,
    group: Sequence[Prepared],
    inputs: Mapping[str, Any],
    reference: Path,
) -> Iterator[Event]:
    """Run the restarts of one group of arms: the pilot, then as many as Stein's second stage asks for."""
    always = (job.cell.baseline, CONTROL)
    deaths: Counter[str | None] = Counter()
    while True:
        arms = [one for one in group if one.arm.name not in done.lost]
        total = _total(job.measure, done, [one.arm.name for one in arms])
        others = [one.arm.name for one in arms if one.arm.name not in always]
        pending = [name for name in others or always if done.restarts[name] < total]
        if not pending or job.cell.baseline in done.lost:
            return
        timed = [one for one in arms if one.arm.name in (*always, *pending)]
        count = min(done.restarts[name] for name in pending)
        yield _event("cell", job, "started", count, total)
        restart, done.next_restart = done.next_restart, done.next_restart + 1
        outcome = yield from _restart(job, restart, number, timed, inputs, reference, f"restart {count + 1}/{total}")
        if isinstance(outcome, Lost):
            deaths[outcome.arm] += 1
            lost = replace(outcome, final=outcome.final or deaths[outcome.arm] >= ARM_TRIES)
            yield from _failure(job, store, done, lost, restart, number)
            continue
        for dataset, rows in outcome.items():
            results.write_part(store, job.run, dataset, f"{job.cell.id}-r{restart:04d}", rows)
        wall_s = outcome["pieces"][0]["wall_s"]
        done.add(pl.from_dicts(outcome["blocks"]), [wall_s])
        yield _event("restart", job, "finished", count + 1, total, wall_s)


def _total(measure: Measure, done: Progress, names: Sequence[str]) -> int:
    """Restarts in all: the pilot's, or what its variance asks for (Stein 1945), at most what the budget affords.

    Only spreads and seconds are looked at: neither the sign nor the size of an effect decides when to stop.
    """
    if measure.half_width is None or any(done.restarts[name] < measure.restarts for name in names):
        return measure.restarts
    affordable = int(measure.budget_s * len(done.restart_s) / sum(done.restart_s))
    return max(measure.restarts, min(done.wanted(measure), affordable))


def _restart(
    job: Job,
    restart: int,
    group: int,
    arms: Sequence[Prepared],
    inputs: Mapping[str, Any],
    reference: Path,
    title: str,
) -> Generator[Event, None, Rows | Lost]:
    """One restart: fresh processes for every arm, then its blocks; return the rows of each dataset, or a Lost."""
    started_at, clock = datetime.now(UTC), _Clock()
    actor: Any = ray.remote(max_restarts=0, max_task_retries=0, **job.options(len(arms)))(ArmProcess)
    ready = {one.arm.name: one for one in arms}
    actors = {name: actor.remote() for name in ready}
    said: dict[str, dict[str, Any]] = {name: {} for name in ready}
    slots = []

    stages: dict[str, tuple[bool, Callable[[str], Any]]] = {
        # starting and loading may share the cores; what runs the model goes one after the other
        "start": (True, lambda name: actors[name].identify.remote()),
        "load": (True, lambda name: actors[name].load.remote(ready[name].folder, ready[name].settings, inputs)),
        "warmup": (False, lambda name: actors[name].warm_up.remote()),
        "check": (False, lambda name: actors[name].check.remote(reference, accuracy.bound(ready[name].settings))),
    }
    try:
        for stage, (together, call) in stages.items():
            with clock(stage):
                calls = {name: call(name) for name in actors} if together else {}
                for name in actors:
                    answer = _outcome(calls[name] if together else call(name))
                    if isinstance(answer, Lost):
                        return replace(answer, arm=name, stage=stage)
                    said[name][stage] = answer
        orders = schedule.block_orders(job.measure.seed, job.cell.id, restart, group, job.measure.blocks, list(ready))
        for block, order in enumerate(orders):
            for position, name in enumerate(order):
                yield _event("slot", job, detail=f"{title} block {block + 1}/{len(orders)} {name}")
                at = datetime.now(UTC)
                answer = _outcome(actors[name].slot.remote(job.measure.runs))
                if isinstance(answer, Lost):
                    return replace(answer, arm=name, stage="slot")
                clock.seconds["washout"] += answer["washout_s"]
                clock.seconds["timed"] += sum(answer["seconds"])
                slots.append({"block": block, "position": position, "arm": name, "at": at, **answer})
    finally:
        for process in actors.values():
            ray.kill(process, no_restart=True)
    return restart_rows(
        job.cell,
        restart=restart,
        group=group,
        started_at=started_at,
        seconds=clock.columns(),
        said=said,
        slots=slots,
        node=job.node,
        node_id=job.node_id,
    )


class _Clock:
    """Adds up where a restart's seconds go; what no named stage claims is `other`."""

    NAMED = ("start", "load", "warmup", "washout", "timed")

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(self.NAMED, 0.0)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        if stage in self.seconds:
            self.seconds[stage] += time.perf_counter() - begin

    def columns(self) -> dict[str, float]:
        """Seconds by column of `pieces`."""
        wall = time.perf_counter() - self.begin
        named = {f"{stage}_s": seconds for stage, seconds in self.seconds.items()}
        return {"wall_s": wall, **named, "other_s": wall - sum(named.values())}


# ── small parts ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _outcome(reference: Any) -> Any:
    """Wait for a call; return its value, or how it was lost."""
    try:
        return ray.get(reference, timeout=DEADLINE_S)
    except GetTimeoutError:
        return Lost(None, "", "timeout", f"did not answer within {DEADLINE_S:.0f} s", False)
    except RayTaskError as error:
        cause = error.cause
        message = str(cause) if isinstance(cause, WorkError) else f"{type(cause).__name__}: {cause}"
        return Lost(None, "", type(cause).__name__, " ".join(message.split()), True)
    except RayError as error:  # the process died, the node ran out of memory, the node went away
        return Lost(
            None, "", type(error).__name__, f"its process was lost: {str(error).strip().splitlines()[0]}", False
        )


def _failure(
    job: Job, store: Store, done: Progress, lost: Lost, restart: int | None = None, group: int | None = None
) -> Iterator[Event]:
    """Write a row of `failures`, take the arm out when it is given up, and tell it."""
    kind = lost.kind if lost.final else ONE_RESTART
    row: dict[str, Any] = {"restart": restart, "group": group, "recipe": lost.arm, "stage": lost.stage, "kind": kind}
    row |= {"message": lost.message, "node": job.node_id, "at": datetime.now(UTC)}
    stem = f"{job.cell.id}-f{len(results.finished(store, job.run)['failures']):04d}"
    results.write_part(store, job.run, "failures", stem, [{**where(job.cell), **row}])
    if lost.final and lost.arm is not None:
        done.lost.add(lost.arm)
    what = f"{job.cell.label} {lost.arm or ''}".strip()
    yield {"kind": "failure" if lost.final else "note", "label": what, "detail": f"{lost.stage}: {lost.message}"}


def _event(
    kind: str, job: Job, state: str = "", done: int = 0, total: int = 0, seconds: float = 0.0, detail: str = ""
) -> Event:
    what = {"kind": kind, "label": job.cell.label, "state": state, "done": done, "total": total}
    return {**what, "seconds": seconds, "detail": detail}
