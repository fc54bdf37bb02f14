"""Nodes that come and go, and what an autoscaler could bring, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_bench.bench import machine
from llama_bench.cluster import fleet as module
from llama_bench.cluster.autoscaler import NodeType
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event
from llama_bench.cluster.fleet import Fleet
from llama_bench.cluster.reach import Answer
from llama_bench.store import Store
from llama_bench.sweep import Target

from .conftest import FACTS

CPU, GPU = Target(tag="bench_cpu"), Target(tag="bench_gpu", provider="CUDAExecutionProvider")
BUILDER = Node("b", "10.0.0.1", {"CPU": 4.0, "builder": 4.0, "memory": 8e9})
BENCH = Node("c", "10.0.0.2", {"CPU": 4.0, "bench_cpu": 1.0, "memory": 4e9})
BROUGHT = NodeType("gpu", {"CPU": 8.0, "bench_gpu": 1.0, "GPU": 1.0}, 2, {})


class AtOnce:
    """An introduction that is answered as soon as it is asked for."""

    why: str | None = None

    def __init__(self, store: Store, node: Node) -> None:
        self.node = node

    def answered(self, wait_s: float = 0.0) -> Answer:
        return Answer(self.why, FACTS)

    def close(self) -> None: ...


Look = Callable[..., Fleet]


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes that live, to be changed by the test."""
    nodes: list[Node] = []
    monkeypatch.setattr(module.connect, "nodes", lambda: list(nodes))
    monkeypatch.setattr(module, "Introduction", AtOnce)
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    return nodes


def fleet(tmp_path: Path, types: list[NodeType], events: list[Event] | None = None) -> Fleet:
    tell = (events if events is not None else []).append
    return Fleet(Store(tmp_path / "store"), {"A": GPU, "B": CPU}, types, tell)


def test_nodes_without_work_here_are_none_of_the_fleet(alive: list[Node], tmp_path: Path) -> None:
    alive += [BUILDER, BENCH, Node("h", "10.0.0.3", {"CPU": 0.0}), Node("m", "10.0.0.4", {"bench_moon": 1.0})]
    found = fleet(tmp_path, [])
    assert found.look()
    assert found.nodes == [BUILDER, BENCH]
    assert found.serving(CPU) == [BENCH]
    assert found.most_memory() == 8e9


def test_nodes_that_come_and_go_are_noticed_and_a_loss_is_told(alive: list[Node], tmp_path: Path) -> None:
    events: list[Event] = []
    found = fleet(tmp_path, [], events)
    alive.append(BENCH)
    assert found.look()
    assert not found.look()
    alive.remove(BENCH)
    assert found.look()
    assert found.nodes == []
    assert [event.detail for event in events if event.kind == "note"] == ["this node was lost (bench_cpu)"]


def test_a_node_that_did_not_reach_the_store_is_asked_again_and_the_reason_is_told_once(
    alive: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    found = fleet(tmp_path, [], events)
    alive.append(BENCH)
    monkeypatch.setattr(AtOnce, "why", "Not a directory")
    for _ in range(2):
        assert not found.look()
    monkeypatch.setattr(AtOnce, "why", None)
    assert not found.look()  # it is not yet time
    monkeypatch.setattr(module, "ASK_AGAIN_S", 0.0)
    found = fleet(tmp_path, [], events)
    monkeypatch.setattr(AtOnce, "why", "Not a directory")
    for _ in range(3):
        assert not found.look()
    monkeypatch.setattr(AtOnce, "why", None)
    assert found.look()
    assert found.nodes == [BENCH]
    told = [event.detail for event in events if event.detail.startswith("left out")]
    assert told == 2 * ["left out, it does not reach the store: Not a directory"]


def test_the_last_node_of_a_tag_is_waited_for_a_while(
    alive: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fleet(tmp_path, [])
    alive.append(BENCH)
    found.look()
    alive.remove(BENCH)
    found.look()
    assert not found.has_lost(CPU)
    assert found.may_return("bench_cpu")
    monkeypatch.setattr(module, "REJOIN_S", 0.0)
    assert found.has_lost(CPU)
    alive.append(BENCH)
    found.look()
    assert not found.has_lost(CPU)


def test_a_target_is_served_by_what_is_there_or_can_be_brought(alive: list[Node], tmp_path: Path) -> None:
    alive.append(BENCH)
    without, with_types = fleet(tmp_path, []), fleet(tmp_path, [BROUGHT])
    for found in (without, with_types):
        found.look()
    assert list(without.unserved()) == ["A"]
    assert with_types.unserved() == {}
    assert not with_types.has_lost(GPU)
    assert fleet(tmp_path, [NodeType("gpu", BROUGHT.resources, 0, {})]).unserved().keys() == {"A", "B"}


def test_a_runs_machines_are_its_fixed_nodes_and_what_can_be_brought(alive: list[Node], tmp_path: Path) -> None:
    found = fleet(tmp_path, [BROUGHT])
    alive += [BENCH, BUILDER]
    found.look()
    before = found.machines()
    assert machine.fingerprint(FACTS) in before
    assert any(said.startswith("gpu of an autoscaler") for said in before)
    alive.append(Node("g", "10.0.0.9", {**BROUGHT.resources, "memory": 9e9}))
    found.look()
    assert len(found.nodes) == 3
    assert found.machines() == before  # whether it is there at the moment does not matter


def test_a_builder_of_unknown_memory_is_believed_to_have_enough(alive: list[Node], tmp_path: Path) -> None:
    assert fleet(tmp_path, []).most_memory() is None
    assert fleet(tmp_path, [NodeType("b", {"builder": 1.0}, 1, {})]).most_memory() == float("inf")
    assert fleet(tmp_path, [NodeType("b", {"builder": 1.0, "memory": 3e9}, 1, {})]).most_memory() == 3e9
