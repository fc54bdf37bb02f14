"""A cell's GPU before anything is timed on it: can it be used, who else is there, how many arms fit at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from llama_bench.bench import nvml, schedule
from llama_bench.cluster.job import Event, Job, Prepared
from llama_bench.cluster.launch import GPU_MEMORY, Launcher, Lost
from llama_bench.estimate import arm_bytes, gpu_arm_bytes, gpu_host_bytes
from llama_bench.sweep import CONTROL

SHARE = 0.9
"""Share of a GPU's free memory for the arms: what is in pieces cannot be used, and estimates are no more than that."""

AT_ONCE = 12
"""Sessions that are examined side by side at most: each copies its model and loads it, and nothing is timed."""

GONE_S = 3.0
"""A process that has ended is gone from its GPU after about so long; who is still there then is foreign."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a process on the arms' GPU sees: the GPU's memory, None where it does not tell, and who is there."""

    memory: nvml.Memory | None
    occupants: tuple[nvml.Occupant, ...]


def look(wait_s: float = GONE_S) -> Seen:
    """In a process that uses no GPU itself but sees the arms': look at it, and give those that end time to be gone."""
    gpu, until = nvml.Gpu(), time.monotonic() + wait_s
    try:
        while True:
            others = tuple(one for one in gpu.occupants() if one.pid != os.getpid())
            if not others or time.monotonic() >= until:
                return Seen(gpu.memory(), others)
            time.sleep(0.1)
    finally:
        gpu.close()


def looked_at(job: Job, launcher: Launcher) -> Generator[Event, None, nvml.Memory | None]:
    """Look at the GPU of a cell that wants one; tell who else is there, and return its memory where it is known."""
    if not job.cell.target.needs_gpu:
        return None
    seen: Seen | Lost = launcher.once(look)
    if isinstance(seen, Lost):  # the arms will say what is wrong, if anything is
        return None
    if seen.occupants:
        there = ", ".join(map(str, seen.occupants))
        why = (
            f"other processes are on the GPU: {there}; their work blurs this cell's verdicts: end them, or run it again"
        )
        yield {"kind": "doubt", "label": job.cell.label, "detail": why}
    return seen.memory


def groups(job: Job, arms: Sequence[Prepared], each: Mapping[str, int], memory: nvml.Memory | None) -> list[list[str]]:
    """Split arms into groups that fit into the node's memory and into the GPU's, baseline and control in each.

    `each` are the arms' bytes on the host. Of the GPU's memory that is an estimate, so the least of groups is tried
    whatever it says. Raises ValueError where the host's memory does not take them.
    """
    names = [one.arm.name for one in arms]
    always = [name for name in (job.cell.baseline, CONTROL) if name in names]
    by_host = schedule.groups(names, always, dict(each), job.memory_bytes)
    if memory is None:
        return by_host
    held = {one.arm.name: _held(job, one) for one in arms}
    least = sum(held[name] for name in always) + max((held[n] for n in names if n not in always), default=0)
    by_gpu = schedule.groups(names, always, held, max(int(SHARE * memory.free), least))
    return max(by_host, by_gpu, key=len)


def side_by_side(job: Job, arms: Sequence[Prepared], each: Mapping[str, int], memory: nvml.Memory | None) -> int:
    """Return how many sessions may be examined at once: by the node's cores and memory, and by the GPU's memory.

    `each` are the arms' bytes on the host. One that is examined holds its model twice, since it saves what it executes.
    """
    cores = int(job.node["physical_cores"])  # on a CPU each session runs on several
    room = [AT_ONCE, cores if job.cell.target.needs_gpu else cores // 2]
    if arms:
        room.append(job.memory_bytes // (2 * max(each[one.arm.name] for one in arms)))
    if arms and memory is not None:
        room.append(int(SHARE * memory.free) // max(_held(job, one) for one in arms))
    return max(1, min(room))


def compiles(one: Prepared) -> bool:
    """Return whether an arm chooses its kernels by timing them, and keeps its choice: it may do so only by itself."""
    return bool(one.settings.get("inductor"))


def runs_as_it_loads(job: Job, one: Prepared) -> bool:
    """Return whether an arm makes its first run while the others load: on a GPU that takes each of them seconds."""
    return job.cell.target.needs_gpu and not compiles(one)


def host_bytes(job: Job, one: Prepared) -> int:
    """Return the memory of an arm's process on the host; where a GPU holds its model, that of reading it."""
    if not job.cell.target.needs_gpu:
        return arm_bytes(job.cell.model, job.cell.workload)
    return gpu_host_bytes(job.cell.model, job.cell.workload, _stored(one))


def _held(job: Job, one: Prepared) -> int:
    return gpu_arm_bytes(job.cell.model, job.cell.workload, _stored(one))


def _stored(one: Prepared) -> int:
    return sum(size for _, size in one.manifest["weights"])


def halves(names: Sequence[str], always: Sequence[str]) -> list[list[str]]:
    """Return two groups in place of one whose arms did not fit onto the GPU together; [] where it is the least."""
    others = [name for name in names if name not in always]
    if len(others) < 2:
        return []
    kept, middle = [name for name in names if name in always], (len(others) + 1) // 2
    return [[*kept, *others[:middle]], [*kept, *others[middle:]]]


def crowded(lost: Lost, names: Sequence[str], always: Sequence[str]) -> Lost:
    """Return what is written of a restart whose arms did not fit onto the GPU: whose fault it is, and what is done.

    In the least of groups it is the arm's beside baseline and control, whoever of them asked last.
    """
    assert lost.kind == GPU_MEMORY
    others, count = [name for name in names if name not in always], len(names)
    if len(others) > 1:
        why = f"{lost.message}; {count} arms share the GPU: from here on fewer at a time"
        return replace(lost, message=why, final=False)
    why = f"{lost.message}; {lost.arm} shares the GPU with {count - 1} more, the fewest that can be compared"
    return replace(lost, arm=others[0] if others else lost.arm, message=why, final=False)
