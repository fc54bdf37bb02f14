"""What is made of each arm, once a cell and before it is timed: the rows of `variants`, and on GPUs of `kernels`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama_bench import parts
from llama_bench.bench import kernels
from llama_bench.cluster import profiling
from llama_bench.cluster.job import Event, Job, Prepared, event, failure, insist
from llama_bench.cluster.launch import Function, Launcher, Lost
from llama_bench.cluster.rows import kernel_rows, variant_row, where
from llama_bench.engines import ENGINES, Task, executed
from llama_bench.engines import onnxruntime as engine
from llama_bench.stats.progress import Progress
from llama_bench.store import Store


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found of a session: what is executed, None of an engine without a graph, and what a GPU does in a run.

    `profile` is None on a CPU, and where the kernels could not be seen.
    """

    executed: executed.Executed | None
    profile: kernels.Profile | None


Found = dict[str, Examined | Lost]
"""Graph and settings of a session → what was found of it, or how that was lost."""

Graphs = dict[str, executed.Executed | Lost | None]
"""Session → what it executes, None of an engine without a graph, or how that was lost."""


def examine(
    job: Job,
    launcher: Launcher,
    store: Store,
    done: Progress,
    ready: Mapping[str, Prepared],
    task: Task,
    found: Found,
    count: int = 1,
) -> Iterator[Event]:
    """Write the rows that the cell still lacks of `variants` and `kernels`; an arm without a session is lost.

    Arms with the same stored graph and settings are examined once, since they are the same session; `found` keeps
    what came of it. Up to `count` sessions are looked at side by side.
    """
    todo = [one for name, one in ready.items() if name not in done.examined]
    if not todo:
        return
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    sessions: dict[str, Prepared] = {}
    for one in todo:
        if (key := _key(one)) not in found:
            sessions.setdefault(key, one)
    graphs = yield from _graphs(job, launcher, store, done, sessions, task, count)
    found |= yield from _profiled(job, launcher, sessions, graphs, task, count)
    rows, seen = [], []
    for one in todo:
        what = found[_key(one)]
        if isinstance(what, Lost):
            yield from failure(job, store, done, replace(what, arm=one.arm.name, stage="examine", final=True))
        else:
            effects = _effects(store, one.arm.variant)
            given = (one.manifest, effects, one.settings, what.executed, what.profile)
            rows.append(variant_row(job.cell, one.arm, *given))
            seen += kernel_rows(job.cell, one.arm, what.profile)
            done.examined[one.arm.name] = rows[-1]
    stem = f"{job.cell.id}-x" + ("" if len(done.examined) == len(rows) else str(len(done.examined)))
    parts.write_part(store, job.run, "variants", stem, rows)
    if seen:
        parts.write_part(store, job.run, "kernels", stem, seen)
    wall = time.perf_counter() - begin
    piece = {"piece": stem, "kind": "examine", "node": job.node_id, "started_at": started_at, "wall_s": wall}
    parts.write_part(store, job.run, "pieces", stem, [{**where(job.cell), **piece, "other_s": wall}])


def _key(one: Prepared) -> str:
    return str(one.manifest["graph_sha256"]) + engine.settings_sha256(one.settings)


def _graphs(
    job: Job,
    launcher: Launcher,
    store: Store,
    done: Progress,
    sessions: Mapping[str, Prepared],
    task: Task,
    count: int,
) -> Generator[Event, None, Graphs]:
    """Find out what each session executes, `count` at a time.

    One that fails beside others is tried again by itself: they may have taken its memory, here or on the GPU.
    """
    found: Graphs = {key: None for key, one in sessions.items() if not ENGINES[one.arm.recipe.engine].graph}
    todo = [key for key in sessions if key not in found]
    for first in range(0, len(todo), count):
        some = {key: sessions[key] for key in todo[first : first + count]}
        names = ", ".join(one.arm.name for one in some.values())
        yield event("slot", job, detail=f"examining {names}")
        if len(some) > 1:
            answers = _at_once(launcher, list(some.values()), task)
            found |= {k: one for k, one in zip(some, answers, strict=True) if not isinstance(one, Lost)}
        for key, one in some.items():
            if key not in found:
                given = (one.folder, one.settings, task)
                found[key] = yield from insist(
                    job, store, done, one.arm.name, "examine", launcher, _examine_one, *given
                )
    return {key: found[key] for key in sessions}


def _at_once(launcher: Launcher, sessions: Sequence[Prepared], task: Task) -> list[executed.Executed | Lost]:
    processes = launcher.start(Function, len(sessions))
    try:
        given = zip(processes, sessions, strict=True)
        calls = [process.call("run", _examine_one, one.folder, one.settings, task) for process, one in given]
        return [call.wait() for call in calls]
    finally:
        for process in processes:
            process.kill()


def _profiled(
    job: Job, launcher: Launcher, sessions: Mapping[str, Prepared], graphs: Graphs, task: Task, count: int
) -> Generator[Event, None, Found]:
    """Put what is executed and, on a GPU, which kernels run together; a profile that fails is told, and left out."""
    lost = {key: what for key, what in graphs.items() if isinstance(what, Lost)}
    found: Found = {key: Examined(what, None) for key, what in graphs.items() if not isinstance(what, Lost)}
    if job.cell.target.needs_gpu and found:
        yield event("slot", job, detail=f"profiling the kernels of {len(found)} sessions")
        seen = profiling.profiles(launcher, [sessions[key] for key in found], task, count)
        for (key, what), profile in zip(list(found.items()), seen, strict=True):
            if isinstance(profile, str):
                detail = f"no profile of {sessions[key].arm.name}'s kernels: {profile}"
                yield event("note", job, detail=detail)
            elif isinstance(what, Examined):
                found[key] = replace(what, profile=profile)
    return {**found, **lost}


def _examine_one(folder: Path, settings: Mapping[str, Any], task: Task) -> executed.Executed:
    """In a process of its own: saving the executed graph costs several times a load, and memory."""
    return executed.examine(folder, settings, task, Path(tempfile.gettempdir()))


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
