"""Joining a cluster that runs already, with RAY_ADDRESS as `ray job submit` sets it."""

from __future__ import annotations

import pytest
import ray
from ray.cluster_utils import Cluster

from llama_bench.cluster import connect
from llama_bench.sweep import Target

from .conftest import HEAD

pytestmark = pytest.mark.ray


def test_with_ray_address_set_it_joins_that_cluster_and_sees_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**HEAD, "num_cpus": 1, "resources": {"bench_moon": 1}, "object_store_memory": 80 * 2**20},
    )
    try:
        cluster.wait_for_nodes(timeout=200)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert connect.connect() is False  # joined, so not ours to shut down
        [node] = connect.nodes()
        assert node.tags == ["bench_moon"]
        assert not node.builds
        assert connect.unserved({"here": Target(tag="bench_moon")}, [node]) == {}
        assert list(connect.unserved({"there": Target(tag="bench_cpu")}, [node])) == ["there"]
    finally:
        ray.shutdown()
        cluster.shutdown()
