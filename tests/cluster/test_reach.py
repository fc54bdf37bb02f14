"""Whether nodes reach the store, on a cluster of two nodes of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from llama_bench.bench import machine
from llama_bench.cluster import connect, reach
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event
from llama_bench.cluster.fleet import Fleet
from llama_bench.cluster.reach import Introduction
from llama_bench.errors import WorkError
from llama_bench.store import Store
from llama_bench.sweep import Target

from .conftest import HEAD


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, **HEAD, "resources": {"builder": 1}})
    try:
        cluster.add_node(wait=False, **small, resources={"bench_cpu": 1})
        cluster.wait_for_nodes(timeout=200)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield connect.nodes()
    finally:
        ray.shutdown()
        cluster.shutdown()


def said(store: Store, nodes: list[Node]) -> dict[str, str | None]:
    """Introduce every node to the store; return why each cannot work with it."""
    asked = [Introduction(store, node) for node in nodes]
    answers = {one.node.id: one.answered(reach.ANSWER_S) for one in asked}
    assert all(answer is not None for answer in answers.values())
    return {node_id: answer.why for node_id, answer in answers.items() if answer is not None}


@pytest.mark.ray
def test_a_folder_that_all_see_is_reached_by_all_and_nothing_is_left_in_it(nodes: list[Node], tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert said(store, nodes) == {node.id: None for node in nodes}
    assert store.root is not None
    assert list(store.root.iterdir()) == []


@pytest.mark.ray
def test_a_store_of_one_process_alone_is_reached_by_no_other(nodes: list[Node]) -> None:
    assert said(Store("memory://"), nodes) == {node.id: reach.OTHER for node in nodes}


class Elsewhere(Store):
    """A store that tells nodes an address that leads them elsewhere, as a folder on a disk of their own would."""

    def __init__(self, place: Path, told: Any) -> None:
        super().__init__(place)
        self.uri = str(told)


@pytest.mark.ray
def test_a_folder_of_the_same_name_on_another_disk_is_told_from_the_store(nodes: list[Node], tmp_path: Path) -> None:
    store = Elsewhere(tmp_path / "store", tmp_path / "other")
    assert set(said(store, nodes).values()) == {reach.OTHER}


@pytest.mark.ray
def test_a_place_that_a_node_cannot_write_is_named(nodes: list[Node], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = said(Elsewhere(tmp_path / "store", tmp_path / "file"), nodes)
    assert all(why is not None and "is a file, not a folder" in why for why in found.values())
    assert set(found) == {node.id for node in nodes}


@pytest.mark.ray
def test_an_introduction_tells_what_machine_a_node_is(nodes: list[Node], tmp_path: Path) -> None:
    answer = Introduction(Store(tmp_path / "store"), nodes[0]).answered(reach.ANSWER_S)
    assert answer is not None
    assert machine.fingerprint(answer.facts) == machine.fingerprint(machine.facts())


@pytest.mark.ray
def test_a_fleet_has_the_nodes_with_work_and_without_any_that_reaches_the_store_says_why(
    nodes: list[Node], tmp_path: Path
) -> None:
    events: list[Event] = []
    fleet = Fleet(Store(tmp_path / "store"), {"cpu": Target(tag="bench_cpu")}, [], events.append)
    assert fleet.look(wait=True)
    assert fleet.nodes == nodes
    assert [node.id for node in fleet.builders()] == [node.id for node in nodes if node.builds]
    assert not fleet.look()  # too soon to ask again
    lame = Fleet(Elsewhere(tmp_path / "a", tmp_path / "b"), {"cpu": Target(tag="bench_cpu")}, [], events.append)
    with pytest.raises(WorkError, match=r"no node reaches the store; \d+\.\d+\.\d+\.\d+: it finds another store"):
        lame.look(wait=True)
    assert sum("left out, it does not reach the store" in event.detail for event in events) == 2
