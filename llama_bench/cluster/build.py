"""Building: one Ray task an artifact, parents before children, every shared prefix once."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from llama_bench import node_cache, results
from llama_bench.bench.proc import peak_bytes
from llama_bench.claims import Claims, Driver
from llama_bench.cluster.connect import BUILDER, Node
from llama_bench.errors import LlamaBenchError
from llama_bench.estimate import build_kind, build_memory
from llama_bench.plan import Artifact, Plan
from llama_bench.store import Store
from llama_bench.sweep import Model, Pass, Text, Workload

POLL_S = 1.0
"""How often it is looked whether another driver has built what this one needs."""

TRAINING = ("distill",)
"""Families whose tasks run a network for minutes, and more quickly so with every CPU of a node."""


@dataclass(frozen=True, slots=True)
class Built:
    """The end of one build: `error` is None, or why there is no artifact."""

    id: str
    state: str  # finished | reused | failed | skipped | known
    seconds: float = 0.0
    error: str | None = None


def build(artifact: Artifact, store: Store) -> dict[str, Any]:
    """Build `artifact` into `store` and return its manifest; its parent must be there. Works without Ray.

    Raises WorkError when the export or the pass fails.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="llama-bench-") as name:
        made = _MAKE[artifact.kind](artifact, store, Path(name))
        manifest = {"label": artifact.label, "kind": artifact.kind, "parent": artifact.parent, "spec": artifact.spec}
        timed = {"build_s": time.perf_counter() - begin, "peak_bytes": peak_bytes()}
        saved = store.save(artifact.id, Path(name), {**manifest, **made, **timed})
    shutil.rmtree(_state(artifact, store), ignore_errors=True)
    return saved


def _export(artifact: Artifact, store: Store, folder: Path) -> dict[str, Any]:
    from llama_bench.model.export import export

    return {"export": export(*_model_and_workload(artifact.spec), folder)}


def _reference(artifact: Artifact, store: Store, folder: Path) -> dict[str, Any]:
    from llama_bench.model.reference import make

    text = artifact.spec["text"] and Text.model_validate(artifact.spec["text"])
    return {"reference": make(*_model_and_workload(artifact.spec), text, folder)}


def _pass(artifact: Artifact, store: Store, folder: Path) -> dict[str, Any]:
    from llama_bench.passes import apply

    assert artifact.parent is not None
    export = store.manifest(artifact.parent)
    while export["parent"] is not None:
        export = store.manifest(export["parent"])
    model, workload = _model_and_workload(export["spec"])
    step, source = Pass.model_validate(artifact.spec), store.fetch(artifact.parent)
    return {"effect": apply(step, source, folder, model, workload, _state(artifact, store)).to_dict()}


_MAKE: dict[str, Callable[[Artifact, Store, Path], dict[str, Any]]] = {
    "export": _export,
    "reference": _reference,
    "pass": _pass,
}


def _model_and_workload(spec: Mapping[str, Any]) -> tuple[Model, Workload]:
    return Model.model_validate(spec["model"]), Workload.model_validate(spec["workload"])


def _state(artifact: Artifact, store: Store) -> Path:
    """Return the folder in which a long pass keeps what a killed task must not lose; it is gone when all is built."""
    return store.cache / f"{node_cache.TEMPORARY}state-{artifact.id}"


def build_all(
    plan: Plan,
    wanted: Iterable[str],
    store: Store,
    run: str,
    nodes: Iterable[Node],
    known_failures: Mapping[str, str],
    claims: Claims,
    on_start: Callable[[str], None] = lambda label: None,
    on_wait: Callable[[str, Driver], None] = lambda label, driver: None,
) -> Iterator[Built]:
    """Build what `wanted` (variant ids) needs and the store lacks; yield each end as it comes.

    An artifact that failed before (`known_failures`: id → message) is not tried again but `known`; what stands on a
    failed one is `skipped` with the parent's message. Memory that no builder has is a failure at once, not an endless
    wait. What another driver builds now is waited for, and built here should that driver fail or die.
    """
    needed = closure(plan, wanted)
    builders = [node for node in nodes if node.builds]
    most = max((node.resources.get("memory", 0.0) for node in builders), default=None)
    ends: dict[str, Built] = {}
    waiting = dict(needed)
    running: dict[Any, tuple[Artifact, float]] = {}
    told: set[str] = set()
    while waiting or running:
        elsewhere = False
        for artifact in [a for a in waiting.values() if a.parent is None or a.parent in ends]:
            end = _without_building(artifact, ends, store, known_failures, memory_bytes(plan, artifact), most)
            if end is None and (holder := claims.take(piece(artifact))) is not None:
                elsewhere = True
                if artifact.id not in told:
                    told.add(artifact.id)
                    on_wait(artifact.label, holder)
                continue
            if end is None and store.has(artifact.id):  # another driver built it before we took it
                end = Built(artifact.id, "reused")
            del waiting[artifact.id]
            if end is None:
                on_start(artifact.label)
                running[_submit(plan, artifact, store, run, builders)] = (artifact, time.perf_counter())
            else:
                claims.release([piece(artifact)])
                ends[artifact.id] = end
                yield end
        if running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_S if elsewhere else None)
            for reference in done:
                artifact, begin = running.pop(reference)
                claims.release([piece(artifact)])
                ends[artifact.id] = _end(artifact, reference, time.perf_counter() - begin)
                yield ends[artifact.id]
        elif elsewhere:
            time.sleep(POLL_S)


def piece(artifact: Artifact) -> str:
    """Return the name of the piece of work that builds `artifact`."""
    return f"build-{artifact.id}"


def closure(plan: Plan, wanted: Iterable[str]) -> dict[str, Artifact]:
    """Return the artifacts of `wanted` and all that they stand on, parents first."""
    needed: set[str] = set()
    for name in wanted:
        step: str | None = name
        while step is not None and step not in needed:
            needed.add(step)
            step = plan.artifacts[step].parent
    return {name: artifact for name, artifact in plan.artifacts.items() if name in needed}


def memory_bytes(plan: Plan, artifact: Artifact) -> int:
    """Estimate the peak memory of building `artifact`."""
    export = artifact
    while export.parent is not None:
        export = plan.artifacts[export.parent]
    model = Model.model_validate(export.spec["model"])
    return build_memory(model, build_kind(artifact))


def cpus(artifact: Artifact, memory: int, builders: Iterable[Node]) -> float:
    """Return the CPUs of a build task, of which Ray makes its threads.

    Training takes all of the largest of the `builders` that have its `memory`, everything else one.
    """
    if artifact.spec.get("family") not in TRAINING:
        return 1.0
    able = (node.resources for node in builders if node.resources.get("memory", 0.0) >= memory)
    return max((resources.get("CPU", 1.0) for resources in able), default=1.0)


def _without_building(
    artifact: Artifact,
    ends: Mapping[str, Built],
    store: Store,
    known_failures: Mapping[str, str],
    memory: int,
    most: float | None,
) -> Built | None:
    """Return how `artifact` ends without being built: it is there, cannot be, or has failed; None when it is to do."""
    if store.has(artifact.id):
        return Built(artifact.id, "reused")
    parent = ends.get(artifact.parent or "")
    if parent is not None and parent.error is not None:
        return Built(artifact.id, "skipped", error=parent.error)
    if artifact.id in known_failures:
        return Built(artifact.id, "known", error=known_failures[artifact.id])
    if most is None:
        return Built(artifact.id, "failed", error=f"{artifact.label}: no node offers {BUILDER}")
    if memory > most:
        need = f"{artifact.label}: needs {memory / 1e9:.1f} GB of memory, the largest builder has {most / 1e9:.1f} GB"
        return Built(artifact.id, "failed", error=need)
    return None


def _submit(plan: Plan, artifact: Artifact, store: Store, run: str, builders: Iterable[Node]) -> Any:
    task, memory = _fresh_task if needs_fresh_process(artifact) else _pass_task, memory_bytes(plan, artifact)
    options = task.options(num_cpus=cpus(artifact, memory, builders), memory=memory, name=artifact.label)
    return options.remote(artifact, store.uri, run)


def needs_fresh_process(artifact: Artifact) -> bool:
    """Whether a build leaves much behind in its process: all but onnxoptimizer, which has processes of its own."""
    return artifact.kind != "pass" or artifact.spec["family"] != "onnxoptimizer"


def _end(artifact: Artifact, reference: Any, seconds: float) -> Built:
    try:
        error = ray.get(reference)
    except RayError as lost:
        error = f"{artifact.label}: {type(lost).__name__}: {str(lost).splitlines()[0]}"
    return Built(artifact.id, "finished" if error is None else "failed", seconds, error)


def _task(artifact: Artifact, store_uri: str, run: str) -> str | None:
    """Build in a Ray worker and write the piece; return None, or the message of what went wrong."""
    store, begin, started_at = Store(store_uri), time.perf_counter(), datetime.now(UTC)
    try:
        build(artifact, store)
    except LlamaBenchError as error:
        return f"{artifact.label}: {error}"
    except MemoryError:
        return f"{artifact.label}: not enough memory"
    except Exception as error:  # a fault of a library or of ours: one failed variant, never the end of the sweep
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{artifact.label}: {type(error).__name__}: {error} ({Path(last.filename).name}:{last.lineno})"
    wall = time.perf_counter() - begin
    row = {"piece": piece(artifact), "kind": "build", "started_at": started_at, "wall_s": wall}
    node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else None
    results.write_part(store, run, "pieces", piece(artifact), [{**row, "node": node, "other_s": wall}])
    return None


_REMOTE: dict[str, Any] = {"resources": {BUILDER: 1}, "max_retries": 2}

# Torch and the quantisers leave gigabytes in their process: a fresh one each time gives them back before anything is
# timed.
_fresh_task: Any = ray.remote(max_calls=1, **_REMOTE)(_task)
_pass_task: Any = ray.remote(**_REMOTE)(_task)
