"""A tiny sweep, a store, and one Ray of this machine for all tests of the module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llama_bench
from llama_bench import versions
from llama_bench.bench import machine
from llama_bench.cluster.build import build
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.job import Job
from llama_bench.cluster.processes import Processes
from llama_bench.plan import make
from llama_bench.stats.views import Frames
from llama_bench.store import Store
from llama_bench.sweep import Sweep

FACTS = machine.facts()

TINY: dict[str, Any] = {
    "name": "tiny",
    "models": [
        {
            "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24,
            "vocab_size": 32, "head": "none", "exporter": "torchscript", "opset": 17,
        }
    ],
    "recipes": {
        "original": {},
        "eliminate_identity": {"passes": [{"onnxoptimizer": "eliminate_identity"}]},
        "level0": {"session": {"optimization_level": "disable"}},
    },
    "workloads": {"prefill": {"batch": 1, "sequence": 8, "outputs": "hidden"}},
    "targets": {"cpu": {"tag": "bench_cpu", "threads": 1}},
    "measure": {"restarts": 2, "blocks": 2, "runs": 3, "half_width": None, "seed": 3},
}  # fmt: skip


HEAD: dict[str, Any] = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True, "wait": False}
"""Options of the head of a `ray.cluster_utils.Cluster`: without the processes that nothing here looks at."""


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A sweep as plain data, to be changed and validated by the test."""
    import copy

    return copy.deepcopy(TINY)


@pytest.fixture
def two_arms(tiny: dict[str, Any]) -> dict[str, Any]:
    """A sweep whose one recipe besides the baseline takes ten times as long, in truth."""
    tiny["recipes"] = {"original": {}, "slower": {"session": {"slowdown": 9.0}}}
    return tiny


def measure(data: dict[str, Any], store: Store) -> tuple[Frames, list[dict[str, Any]]]:
    """Build and measure the cells of a sweep here, in plain processes; return its results and its events."""
    plan = make(Sweep.model_validate(data), {})
    for artifact in plan.artifacts.values():
        if not store.has(artifact.id):
            build(artifact, store)
    identity = Identity(plan.sweep.model_dump(mode="json"), "code", {}, [machine.fingerprint(FACTS)])
    run = find_or_start(store, plan, identity, {}, {"here": FACTS}).run
    jobs = [Job(cell, cell.measure, store.uri, run, "here", FACTS, 10**12) for cell in plan.cells]
    events = [event for job in jobs for event in measure_cell(job, Processes(job.environment))]
    return llama_bench.load(store.url(run)), events


def prebuild(sweep: Sweep, store: Store) -> None:
    """Build here, one after the other, what a run of a sweep needs: for tests of what comes after building."""
    for artifact in make(sweep, versions.stages()).artifacts.values():
        if not store.has(artifact.id):
            build(artifact, store)


@pytest.fixture
def sweep() -> Sweep:
    return Sweep.model_validate(TINY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray on this machine, with the tags that `connect` works out."""
    import ray

    from llama_bench.cluster import connect

    for left in (2, 1, 0):
        try:
            assert connect.connect()
            break
        except Exception:  # Ray gives its own processes 30 s to start, however busy the machine is
            ray.shutdown()
            if not left:
                raise
    yield
    ray.shutdown()
