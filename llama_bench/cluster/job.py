"""What the parts of a cell's coordinator share: its job, its arms made ready, how it tells what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama_bench import parts
from llama_bench.cluster.launch import Launcher, Lost
from llama_bench.cluster.rows import where
from llama_bench.passes.info import Kind
from llama_bench.plan import Arm, Cell
from llama_bench.stats.progress import ONE_RESTART, Progress
from llama_bench.store import Store
from llama_bench.sweep import Measure

NICENESS = {"RAY_worker_niceness": "0"}
"""Ray's workers run at nice 15: beside one busy process they would take four times as long."""

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""num_gpus=0 no longer hides GPUs (Ray 2.60): CPU targets must not see one."""

NODE_MEMORY_SHARE = 0.8
"""Share of a node's memory for the arms of a cell: the coordinator and Ray need the rest."""

SLOT_S = 0.5
"""Between two slots that are told to who watches."""

ARM_TRIES = 2
"""Times in a row in which an arm's process may be lost before the arm is given up."""

SKIPPED = "skipped"
"""Kind of a failure that is none: an engine that this machine does not have."""

NO_ENGINE = "no engine"
"""Kind of the failure of a cell whose baseline cannot run on this node: no driver, no library, no package."""

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What a coordinator is told: the cell with its buildable arms, how to measure, where to write, and the node.

    `elsewhere` says that another node could go on with the cell.
    """

    cell: Cell
    measure: Measure
    store_uri: str
    run: str
    node_id: str
    node: Mapping[str, Any]
    memory_bytes: int
    retry_failed: bool = False
    ceilings: bool = True
    elsewhere: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the arms' processes; they are part of an arm's settings."""
        return NICENESS | ({} if self.cell.target.needs_gpu else NO_GPU)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An arm ready to be timed: the local folder of its variant, its settings, its manifest, its class."""

    arm: Arm
    folder: Path
    settings: Mapping[str, Any]
    manifest: Mapping[str, Any]
    kind: Kind


def failure(
    job: Job, store: Store, done: Progress, lost: Lost, restart: int | None = None, group: int | None = None
) -> Iterator[Event]:
    """Write a row of `failures`, take the arm out when it is given up, and tell it."""
    kind = lost.kind if lost.final else ONE_RESTART
    row: dict[str, Any] = {"restart": restart, "group": group, "recipe": lost.arm, "stage": lost.stage, "kind": kind}
    row |= {"message": lost.message, "node": job.node_id, "at": datetime.now(UTC)}
    stem = f"{job.cell.id}-f{len(parts.finished(store, job.run)['failures']):04d}"
    parts.write_part(store, job.run, "failures", stem, [{**where(job.cell), **row}])
    if lost.final and lost.arm is not None:
        done.lost.add(lost.arm)
    what = f"{job.cell.label} {lost.arm or ''}".strip()
    is_failure = lost.final and lost.kind != SKIPPED
    stage = SKIPPED if lost.kind == SKIPPED else lost.stage
    yield {"kind": "failure" if is_failure else "note", "label": what, "detail": f"{stage}: {lost.message}"}


def insist(
    job: Job,
    store: Store,
    done: Progress,
    arm: str,
    stage: str,
    launcher: Launcher,
    function: Callable[..., Any],
    *arguments: Any,
) -> Generator[Event, None, Any]:
    """Return what `function` returns in a process of its own, or how that was lost for good.

    A process that dies is a row of `failures`, and tried again as often as an arm's.
    """
    for left in reversed(range(ARM_TRIES)):
        found = launcher.once(function, *arguments)
        if not isinstance(found, Lost) or found.final or not left:
            break
        yield from failure(job, store, done, replace(found, arm=arm, stage=stage))
    return found


def spared(events: Iterator[Event]) -> Iterator[Event]:
    """Yield `events` without most of the slots: who watches needs one now and then, and each costs its driver time."""
    last = float("-inf")
    for one in events:
        if one["kind"] == "slot":
            if time.monotonic() - last < SLOT_S:
                continue
            last = time.monotonic()
        yield one


def event(
    kind: str, job: Job, state: str = "", done: int = 0, total: int = 0, seconds: float = 0.0, detail: str = ""
) -> Event:
    what = {"kind": kind, "label": job.cell.label, "state": state, "done": done, "total": total}
    return {**what, "seconds": seconds, "detail": detail}
