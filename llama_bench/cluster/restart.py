"""One restart: fresh processes for every arm of a group, their warm-up and check, then the blocks of slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from llama_bench.bench import accuracy, schedule
from llama_bench.cluster.arm import Arm as ArmProcess
from llama_bench.cluster.job import Event, Job, Lost, Prepared, event, outcome
from llama_bench.cluster.rows import Rows, restart_rows

STAGES = ("start", "load", "warmup", "washout", "timed")
"""Where a restart's seconds go, as columns of `pieces` name it."""


def restart_once(
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
    by_name = {one.arm.name: one for one in arms}
    first = schedule.start_order(job.measure.seed, job.cell.id, restart, group, list(by_name))
    ready = {name: by_name[name] for name in first}
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
                    answer = outcome(calls[name] if together else call(name))
                    if isinstance(answer, Lost):
                        return replace(answer, arm=name, stage=stage)
                    said[name][stage] = answer
        orders = schedule.block_orders(job.measure.seed, job.cell.id, restart, group, job.measure.blocks, list(by_name))
        for block, order in enumerate(orders):
            for position, name in enumerate(order):
                yield event("slot", job, detail=f"{title} block {block + 1}/{len(orders)} {name}")
                at = datetime.now(UTC)
                answer = outcome(actors[name].slot.remote(job.measure.runs))
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
