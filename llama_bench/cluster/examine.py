"""What ONNX Runtime makes of each arm, once a cell and before anything is timed: the rows of `variants`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llama_bench import parts
from llama_bench.cluster.job import Event, Job, Prepared, event, failure, insist
from llama_bench.cluster.launch import Launcher, Lost
from llama_bench.cluster.rows import variant_row, where
from llama_bench.engines import ENGINES, Task, executed
from llama_bench.engines import onnxruntime as engine
from llama_bench.stats.progress import Progress
from llama_bench.store import Store


def examine(
    job: Job,
    launcher: Launcher,
    store: Store,
    done: Progress,
    ready: Mapping[str, Prepared],
    task: Task,
    found: dict[str, executed.Executed | Lost | None],
) -> Iterator[Event]:
    """Write the `variants` rows that the cell still lacks; an arm whose session cannot be made is lost.

    Arms with the same stored graph and settings are examined once, since they are the same session; `found` keeps
    what came of it, None of an engine that executes no graph.
    """
    todo = [one for name, one in ready.items() if name not in done.examined]
    if not todo:
        return
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    rows = []
    for one in todo:
        key = one.manifest["graph_sha256"] + engine.settings_sha256(one.settings)
        if not ENGINES[one.arm.recipe.engine].graph:
            found[key] = None
        if key not in found:
            yield event("slot", job, detail=f"examining {one.arm.name}")
            given = (_examine_one, one.folder, one.settings, task)
            found[key] = yield from insist(job, store, done, one.arm.name, "examine", launcher, *given)
        what = found[key]
        if isinstance(what, Lost):
            yield from failure(job, store, done, replace(what, arm=one.arm.name, stage="examine", final=True))
        else:
            effects = _effects(store, one.arm.variant)
            rows.append(variant_row(job.cell, one.arm, one.manifest, effects, one.settings, what))
            done.examined[one.arm.name] = rows[-1]
    stem = f"{job.cell.id}-x" + ("" if len(done.examined) == len(rows) else str(len(done.examined)))
    parts.write_part(store, job.run, "variants", stem, rows)
    wall = time.perf_counter() - begin
    piece = {"piece": stem, "kind": "examine", "node": job.node_id, "started_at": started_at, "wall_s": wall}
    parts.write_part(store, job.run, "pieces", stem, [{**where(job.cell), **piece, "other_s": wall}])


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
