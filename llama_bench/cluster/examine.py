"""What is made of each arm, once a cell and before it is timed: the rows of `variants`, and on GPUs of `kernels`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama_bench import engines, parts
from llama_bench.bench import kernels
from llama_bench.cluster.job import Event, Job, Prepared, event, failure, insist
from llama_bench.cluster.launch import Launcher, Lost
from llama_bench.cluster.rows import kernel_rows, variant_row, where
from llama_bench.engines import ENGINES, Task, executed
from llama_bench.engines import onnxruntime as engine
from llama_bench.stats.progress import Progress
from llama_bench.store import Store

UNSEEN = "torch finds no GPU here, or is a build without CUPTI"
"""Why there is no profile of an arm's kernels where nothing failed."""


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found of a session: what is executed, None of an engine without a graph, and what a GPU does in a run.

    `profile` is None on a CPU, and where the kernels could not be seen.
    """

    executed: executed.Executed | None
    profile: kernels.Profile | None


Found = dict[str, Examined | Lost]
"""Graph and settings of a session → what was found of it, or how that was lost."""


def examine(
    job: Job,
    launcher: Launcher,
    store: Store,
    done: Progress,
    ready: Mapping[str, Prepared],
    task: Task,
    found: Found,
) -> Iterator[Event]:
    """Write the rows that the cell still lacks of `variants` and `kernels`; an arm without a session is lost.

    Arms with the same stored graph and settings are examined once, since they are the same session; `found` keeps
    what came of it.
    """
    todo = [one for name, one in ready.items() if name not in done.examined]
    if not todo:
        return
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    rows, seen = [], []
    for one in todo:
        key = one.manifest["graph_sha256"] + engine.settings_sha256(one.settings)
        if key not in found:
            yield event("slot", job, detail=f"examining {one.arm.name}")
            found[key] = yield from _examine(job, launcher, store, done, one, task)
        what = found[key]
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


def _examine(
    job: Job, launcher: Launcher, store: Store, done: Progress, one: Prepared, task: Task
) -> Generator[Event, None, Examined | Lost]:
    """Find out what is executed and, on a GPU, which kernels run; each in a process of its own.

    A profile that fails costs the arm nothing: it is told, and left out.
    """
    what: executed.Executed | Lost | None = None
    given = (one.folder, one.settings, task)
    if ENGINES[one.arm.recipe.engine].graph:
        what = yield from insist(job, store, done, one.arm.name, "examine", launcher, _examine_one, *given)
    if isinstance(what, Lost):
        return what
    if not job.cell.target.needs_gpu:
        return Examined(what, None)
    profile = launcher.once(_profile_one, *given)
    if not isinstance(profile, kernels.Profile):
        why = profile.message if isinstance(profile, Lost) else UNSEEN
        yield event("note", job, detail=f"no profile of {one.arm.name}'s kernels: {why}")
        return Examined(what, None)
    return Examined(what, profile)


def _examine_one(folder: Path, settings: Mapping[str, Any], task: Task) -> executed.Executed:
    """In a process of its own: saving the executed graph costs several times a load, and memory."""
    return executed.examine(folder, settings, task, Path(tempfile.gettempdir()))


def _profile_one(folder: Path, settings: Mapping[str, Any], task: Task) -> kernels.Profile | None:
    """In a process of its own: the session as it is timed, alone on the GPU, and CUPTI may crash."""
    return kernels.profile(lambda: engines.open_session(folder, settings, task))


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
