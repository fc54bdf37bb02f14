"""Whether nodes reach the store, on a cluster of two nodes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from llama_bench.cluster import connect, reach
from llama_bench.cluster.connect import Node
from llama_bench.errors import WorkError
from llama_bench.store import Store


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "resources": {"builder": 1}})
    try:
        cluster.add_node(**small, resources={"bench_cpu": 1})
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield connect.nodes()
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.ray
def test_a_folder_that_all_see_is_reached_by_all_and_nothing_is_left_in_it(nodes: list[Node], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert reach.unreachable(store, nodes) == {}
    assert store.root is not None
    assert list(store.root.iterdir()) == []


@pytest.mark.ray
def test_a_store_of_one_process_alone_is_reached_by_no_other(nodes: list[Node]) -> None:
    assert reach.unreachable(Store("memory://"), nodes) == {node.id: reach.OTHER for node in nodes}


class Elsewhere(Store):
    """A store that tells nodes an address that leads them elsewhere, as a folder on a disk of their own would."""

    def __init__(self, place: Path, told: Any) -> None:
        super().__init__(place)
        self.uri = str(told)


@pytest.mark.ray
def test_a_folder_of_the_same_name_on_another_disk_is_told_from_the_store(nodes: list[Node], tmp_path: Path) -> None:
    store = Elsewhere(tmp_path / "store", tmp_path / "other")
    assert set(reach.unreachable(store, nodes).values()) == {reach.OTHER}


@pytest.mark.ray
def test_a_place_that_a_node_cannot_write_is_named(nodes: list[Node], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = reach.unreachable(Elsewhere(tmp_path / "store", tmp_path / "file"), nodes)
    assert all("is a file, not a folder" in why for why in found.values())
    assert set(found) == {node.id for node in nodes}


def test_nodes_that_do_not_reach_the_store_are_left_out_and_without_any_the_first_says_why() -> None:
    a, b = Node("a", "10.0.0.1", {}), Node("b", "10.0.0.2", {})
    assert reach.without([a, b], {"a": "why"}) == [b]
    assert reach.without([], {}) == []
    with pytest.raises(WorkError, match=r"no node reaches the store; 10\.0\.0\.1: why"):
        reach.without([a], {"a": "why"})
