"""A build as a Ray task: what runs on the builder, what it tells the driver, and what it asks of its node."""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from llama_bench import parts
from llama_bench.cluster.build import build
from llama_bench.cluster.connect import BUILDER, Node, on
from llama_bench.errors import LlamaBenchError, StoreError
from llama_bench.plan import Artifact
from llama_bench.store import reopen

TRAINING = ("distill",)
"""Families whose tasks run a network for minutes, and more quickly so with every CPU of a node."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a build came to nothing; `passing` is what may work later or on another node."""

    kind: str
    message: str
    passing: bool


OUT_OF_MEMORY = "out of memory"

MEMORY_WORDS = (
    "bad_alloc",  # C++
    "out of memory",  # CUDA, and this process
    "can't allocate memory",  # torch
    "cannot allocate memory",  # the operating system
    "failed to map segment",  # a shared library is loaded
    "can't start new thread",  # there is no room for its stack
)
"""Words of libraries that have no MemoryError for it."""


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def submit(
    artifact: Artifact,
    store_uri: str,
    run: str,
    memory: int,
    builders: Iterable[Node],
    there: Node | None,
    *,
    large: bool = False,
) -> Any:
    """Start the build on any of the builders, or on the one that is named; return the stream of what it tells.

    That is the id of its node, and, at its end, None or a Fault. Nothing is tried again by Ray, which would do so for
    ever where memory is short: who waits for it decides.
    """
    task = _fresh_task if needs_fresh_process(artifact) else _pass_task
    options: dict[str, Any] = {} if there is None else {"scheduling_strategy": on(there, soft=True)}
    options |= {"num_cpus": cpus(artifact, memory, builders, large=large), "memory": memory, "name": artifact.label}
    return task.options(**options).remote(artifact, store_uri, run)


def piece(artifact: Artifact) -> str:
    """Return the name of the piece of work that builds `artifact`."""
    return f"build-{artifact.id}"


def cpus(artifact: Artifact, memory: int, builders: Iterable[Node], *, large: bool = False) -> float:
    """Return the CPUs of a build task, of which Ray makes its threads (:func:`llama_bench.threads.count`).

    Training, and a build of a `large` model's gigabytes, takes all of the largest of the `builders` that have its
    `memory`; everything else takes one.
    """
    if not large and artifact.spec.get("family") not in TRAINING:
        return 1.0
    able = (node.resources for node in builders if node.resources.get("memory", 0.0) >= memory)
    return max((resources.get("CPU", 1.0) for resources in able), default=1.0)


def needs_fresh_process(artifact: Artifact) -> bool:
    """Whether a build leaves much behind in its process: all but onnxoptimizer, which has processes of its own."""
    return artifact.kind != "pass" or artifact.spec["family"] != "onnxoptimizer"


def _task(artifact: Artifact, store_uri: str, run: str) -> Iterator[str | Fault | None]:
    """Build in a Ray worker and write the piece; tell the node first, and at last what went wrong."""
    node = ray.get_runtime_context().get_node_id()
    yield node
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    try:
        store = reopen(store_uri)
        if not store.has(artifact.id):  # an earlier try may have died between the artifact and its row
            build(artifact, store)
        wall = time.perf_counter() - begin
        row = {"piece": piece(artifact), "kind": "build", "started_at": started_at, "wall_s": wall}
        parts.write_part(store, run, "pieces", piece(artifact), [{**row, "node": node, "other_s": wall}])
    except Exception as error:  # a fault of a library or of ours: one failed variant, never the end of the sweep
        yield fault(artifact, error)
    else:
        yield None


def fault(artifact: Artifact, error: Exception) -> Fault:
    """Return what a build's exception means: memory, room and connections may be there another time or elsewhere."""
    if any(isinstance(one, MemoryError) or _tells_of_memory(str(one)) for one in _causes(error)):
        return Fault(OUT_OF_MEMORY, f"{artifact.label}: not enough memory", True)
    if isinstance(error, LlamaBenchError):
        return Fault("failed", f"{artifact.label}: {error}", isinstance(error, StoreError))
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    # a node may lack a library, or the room to map it or to write, that another one has
    passing = isinstance(error, ImportError) or (isinstance(error, OSError) and error.errno in NO_ROOM)
    return Fault("failed", f"{artifact.label}: {type(error).__name__}: {error} ({where})", passing)


def _tells_of_memory(message: str) -> bool:
    return any(word in message.lower() for word in MEMORY_WORDS)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what it was raised from: a library's MemoryError is often dressed in words of ours."""
    while error is not None:
        yield error
        error = error.__cause__


_REMOTE: dict[str, Any] = {"resources": {BUILDER: 1}, "max_retries": 0, "num_returns": "streaming"}

# Torch and the quantisers leave gigabytes in their process: a fresh one each time gives them back before anything is
# timed.
_fresh_task: Any = ray.remote(max_calls=1, **_REMOTE)(_task)
_pass_task: Any = ray.remote(**_REMOTE)(_task)
