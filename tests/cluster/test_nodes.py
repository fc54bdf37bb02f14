"""A cluster of a head, a builder and two bench nodes: who builds, who measures what, and a node that is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import ray
from ray.cluster_utils import Cluster

import llama_bench
from llama_bench.cluster import connect, driver
from llama_bench.cluster.events import Event
from llama_bench.store import Store
from llama_bench.sweep import Sweep

from .conftest import HEAD, prebuild

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}
BENCH: dict[str, Any] = {**SMALL, "num_cpus": 1, "resources": {"bench_cpu": 1}}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in connect.LOCAL.items():  # as on a machine alone: workers need no environment of their own
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = Cluster(initialize_head=True, head_node_args={**SMALL, **HEAD, "num_cpus": 0})
    try:
        found.add_node(wait=False, **SMALL, num_cpus=1, resources={"builder": 1})
        found.wait_for_nodes(timeout=200)
        ray.init(address=found.address, logging_level="ERROR", log_to_driver=False)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def sizes(tiny: dict[str, Any]) -> dict[str, Any]:
    """Two workloads at two sizes each, with more restarts than anybody has patience for in one cell."""
    tiny["models"] = [{**tiny["models"][0], "hidden_size": size} for size in (16, 32)]
    tiny["workloads"] = {f"of{n}": {"sequence": n, "outputs": "hidden"} for n in (4, 8)}
    tiny["recipes"] = {"original": {}}
    tiny["measure"] |= {"confirm": False}
    return tiny


def test_builds_stay_on_the_builder_and_families_on_their_bench_node(
    cluster: Cluster, sizes: dict[str, Any], tmp_path: Path
) -> None:
    for _ in range(2):
        cluster.add_node(wait=False, **BENCH)
    cluster.wait_for_nodes(timeout=200)
    store = Store(tmp_path / "store")
    result = driver.run(Sweep.model_validate(sizes), store)
    assert (result.measured, result.failures, result.unserved) == (4, [], {})
    tags = {node["NodeID"]: set(node["Resources"]) for node in ray.nodes()}
    pieces = llama_bench.load(store.url(result.run)).pieces.collect()
    assert all("builder" in tags[node] for node in pieces.filter(kind="build")["node"])
    restarts = pieces.filter(kind="restart")
    assert all("bench_cpu" in tags[node] for node in restarts["node"])
    assert restarts["node"].n_unique() == 2  # both had work
    homes = restarts.group_by("workload").agg(pl.col("node").n_unique())
    assert homes["node"].to_list() == [1, 1]


def test_a_lost_bench_node_costs_its_restart_and_the_cell_ends_elsewhere(
    cluster: Cluster, sizes: dict[str, Any], tmp_path: Path
) -> None:
    sizes["workloads"].pop("of8")
    sizes["measure"]["restarts"] = 6
    prebuild(Sweep.model_validate(sizes), Store(tmp_path / "store"))
    bench = [cluster.add_node(wait=False, **BENCH) for _ in range(2)]
    cluster.wait_for_nodes(timeout=200)
    store, events, gone = Store(tmp_path / "store"), list[Event](), threading.Event()

    def watch(event: Event) -> None:
        events.append(event)
        if event.kind == "restart" and event.done == 2 and not gone.is_set():
            gone.set()
            cluster.remove_node(bench[0], allow_graceful=False)

    result = driver.run(Sweep.model_validate(sizes), store, on_event=watch)
    assert gone.is_set()
    assert (result.measured, result.failures) == (2, [])
    frames = llama_bench.load(store.url(result.run))
    assert frames.speedups.collect().height == 2 * 2  # cells, the original and its control
    counts = frames.pieces.filter(kind="restart").group_by("cell").len().collect()
    assert counts["len"].to_list() == [6, 6]
    lost = frames.failures.collect()
    assert len(lost) <= 2
    assert set(lost["kind"]) <= {"lost"}
    assert any("this node was lost" in event.detail for event in events)


def test_when_the_last_node_of_a_tag_is_lost_its_cells_fail_with_that_reason(
    cluster: Cluster, sizes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_bench.cluster.fleet.REJOIN_S", 5.0)
    sizes["measure"]["restarts"] = 6
    prebuild(Sweep.model_validate(sizes), Store(tmp_path / "store"))
    bench = cluster.add_node(wait=False, **BENCH)
    cluster.wait_for_nodes(timeout=200)
    store, gone = Store(tmp_path / "store"), threading.Event()

    def watch(event: Event) -> None:
        if event.kind == "restart" and not gone.is_set():
            gone.set()
            cluster.remove_node(bench, allow_graceful=False)

    result = driver.run(Sweep.model_validate(sizes), store, on_event=watch)
    assert result.measured == 0
    assert len(result.failures) == 4
    assert all("no node offers bench_cpu any more" in failure for failure in result.failures)
