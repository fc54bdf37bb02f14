"""One restart: fresh processes for every arm of a group, their warm-up and check, then the blocks of slots."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llama_bench.bench import accuracy, schedule
from llama_bench.bench.energy import Meter, spent
from llama_bench.bench.interference import Monitor
from llama_bench.bench.machine import Moments
from llama_bench.bench.slot import WASHOUT_GPU_S, WASHOUT_LEAST_S
from llama_bench.cluster.arm import Arm
from llama_bench.cluster.gpu import runs_as_it_loads
from llama_bench.cluster.job import Event, Job, Prepared, event
from llama_bench.cluster.launch import Launcher, Lost, Process
from llama_bench.cluster.rows import Rows, restart_rows
from llama_bench.cluster.texts import Texts
from llama_bench.engines import Task

REFERENCE = "reference.safetensors"
"""torch's outputs in the folder of a reference."""

STAGES = ("start", "load", "warmup", "washout", "timed")
"""Where a restart's seconds go, as columns of `pieces` name it."""

Slot = dict[str, Any]
Slots = Generator[Event, None, list[Slot] | Lost]


@dataclass(frozen=True, slots=True)
class Given:
    """What every restart of a cell is given: what to run, the folder with torch's answers, the node's libraries.

    `texts` describes what an arm generated.
    """

    task: Task
    reference: Path
    versions: str
    texts: Texts


@dataclass(frozen=True, slots=True)
class Turn:
    """One restart of a group: its number, its phase, its arms, and how many of its blocks may be dropped.

    `first` are the arms for which it is the first one: they also score the text, and show what they generate.
    """

    restart: int
    group: int
    phase: Literal["main", "confirm"]
    arms: Sequence[Prepared]
    may_drop: int
    title: str
    first: frozenset[str] = frozenset()

    @property
    def names(self) -> list[str]:
        return [one.arm.name for one in self.arms]


def restart_once(job: Job, launcher: Launcher, turn: Turn, given: Given) -> Generator[Event, None, Rows | Lost]:
    """One restart: fresh processes for every arm, then its blocks; return the rows of each dataset, or a Lost."""
    started_at, clock = datetime.now(UTC), _Clock()
    seed, cell = job.measure.seed, job.cell.id
    order = schedule.start_order(seed, cell, turn.restart, turn.group, turn.names)
    arms = {one.arm.name: one for one in turn.arms}
    ready = {name: arms[name] for name in order}
    processes = dict(zip(ready, launcher.start(Arm, len(ready)), strict=True))
    try:
        said = _make_ready(job, ready, processes, given, clock)
        if isinstance(said, Lost):
            return said
        own = [os.getpid(), *(answers["start"]["pid"] for answers in said.values())]
        gpu, visible = job.cell.target.needs_gpu, said[order[0]]["start"]["visible_gpus"]
        with (
            closing(Moments(gpu, visible)) as moments,
            closing(Monitor(gpu, own, visible)) as monitor,
            closing(Meter(gpu, visible)) as meter,
        ):
            slots = yield from _blocks(job, turn, processes, monitor, meter, clock)
            moment = {**moments.now(own), "versions": given.versions}
        if isinstance(slots, Lost):
            return slots
        lost = yield from _answers(job, turn, ready, processes, given, said)
        if lost is not None:
            return lost
    finally:
        for process in processes.values():
            process.kill()
    return restart_rows(
        job.cell,
        restart=turn.restart,
        group=turn.group,
        phase=turn.phase,
        started_at=started_at,
        seconds=clock.columns(),
        said=said,
        slots=slots,
        node=job.node,
        moment=moment,
        node_id=job.node_id,
        texts=given.texts,
    )


def _make_ready(
    job: Job, ready: Mapping[str, Prepared], processes: Mapping[str, Process], given: Given, clock: _Clock
) -> dict[str, dict[str, Any]] | Lost:
    """Start, load, warm up and check every arm; return arm → stage → what it said."""
    bounds = {name: accuracy.bounds(one.kind, one.settings, job.measure.accuracy) for name, one in ready.items()}

    def to_load(name: str) -> Sequence[Any]:
        one = ready[name]
        return one.folder, {**one.settings, "arm": name}, given.task, runs_as_it_loads(job, one)

    # starting and loading may share the cores; what runs the model goes one after the other, but for a GPU's first run
    stages: dict[str, tuple[bool, str, Callable[[str], Sequence[Any]]]] = {
        "start": (True, "identify", lambda name: ()),
        "load": (True, "load", to_load),
        "warmup": (False, "warm_up", lambda name: ()),
        "check": (False, "check", lambda name: (given.reference / REFERENCE, bounds[name], ready[name].kind)),
    }
    said: dict[str, dict[str, Any]] = {name: {} for name in ready}
    for stage, (together, method, arguments) in stages.items():
        with clock(stage):
            calls = {name: processes[name].call(method, *arguments(name)) for name in ready} if together else {}
            for name in ready:
                answer = (calls.get(name) or processes[name].call(method, *arguments(name))).wait()
                if isinstance(answer, Lost):
                    return replace(answer, arm=name, stage=stage)
                said[name][stage] = answer
    return said


def _answers(
    job: Job,
    turn: Turn,
    ready: Mapping[str, Prepared],
    processes: Mapping[str, Process],
    given: Given,
    said: Mapping[str, dict[str, Any]],
) -> Generator[Event, None, Lost | None]:
    """After the timing: ask every arm for its memory, and those of `turn.first` for what they say of a text.

    Memory comes first, since scoring takes some of its own.
    """
    for name, one in ready.items():
        bounds = accuracy.bounds(one.kind, one.settings, job.measure.accuracy)
        stages: dict[str, tuple[Any, ...]] = {"memory": ()}
        if name in turn.first:
            yield event("slot", job, detail=f"{turn.title} scoring {name}")
            stages |= {"generated": (), "text": (given.reference, bounds, one.kind)}
        for stage, arguments in stages.items():
            answer = processes[name].call(stage, *arguments).wait()
            if isinstance(answer, Lost):
                return replace(answer, arm=name, stage=stage)
            said[name][stage] = answer
    return None


def _blocks(
    job: Job, turn: Turn, processes: Mapping[str, Process], monitor: Monitor, meter: Meter, clock: _Clock
) -> Slots:
    """Time the wanted blocks; a disturbed one is dropped whole and made good by a further one, as often as allowed."""
    wanted, dropped = job.measure.blocks, 0
    washout_s = WASHOUT_GPU_S if job.cell.target.needs_gpu else WASHOUT_LEAST_S
    orders = schedule.block_orders(
        job.measure.seed, job.cell.id, turn.restart, turn.group, wanted + turn.may_drop, turn.names
    )
    slots: list[Slot] = []
    for block, order in enumerate(orders):
        if block - dropped == wanted:
            break
        monitor.begin()
        timed: list[Slot] = []
        before = meter.look()
        for position, name in enumerate(order):
            yield event("slot", job, detail=f"{turn.title} block {block - dropped + 1}/{wanted} {name}")
            at = datetime.now(UTC)
            answer = processes[name].call("slot", job.measure.runs, washout_s).wait()
            if isinstance(answer, Lost):
                return replace(answer, arm=name, stage="slot")
            clock.seconds["washout"] += answer["washout_s"]
            clock.seconds["timed"] += sum(answer["seconds"])
            after = meter.look()
            mine = {"block": block, "position": position, "arm": name, "at": at, "energy": spent(before, after)}
            timed.append({**mine, **answer})
            before = after
        seen = monitor.end()
        drop = seen.disturbed is not None and dropped < turn.may_drop
        slots += [{**slot, "kept": not drop, "seen": seen} for slot in timed]
        dropped += drop
        if seen.disturbed is not None:
            what = "dropped, to be timed again" if drop else "kept and flagged"
            yield event("slot", job, detail=f"{turn.title} block {block + 1} {what}: {seen.disturbed}")
    return slots


class _Clock:
    """Adds up where a restart's seconds go; what no named stage claims is `other`."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

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
