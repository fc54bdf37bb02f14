"""Which cell a node measures next."""

from __future__ import annotations

from typing import Any

from llama_bench.cluster.assign import family, order
from llama_bench.cluster.connect import Node
from llama_bench.plan import Cell, make
from llama_bench.sweep import Sweep

from .conftest import TINY

A, B = (Node(name, name, {"CPU": 2.0, "bench_cpu": 1.0}) for name in "AB")
GPU = Node("G", "G", {"CPU": 2.0, "bench_gpu": 1.0, "GPU": 1.0})

BOTH = [A, B]

ALIKE = {"A": "epyc", "B": "epyc"}


def cells() -> list[Cell]:
    """Two sizes × two workloads on a CPU target, the sizes of a workload one after the other."""
    data: dict[str, Any] = {
        **TINY,
        "workloads": {"short": {"sequence": 4, "outputs": "hidden"}, "long": {"sequence": 8, "outputs": "hidden"}},
    }
    data["models"] = [{**TINY["models"][0], "hidden_size": size} for size in (16, 32)]
    found = make(Sweep.model_validate(data), {}).cells
    return sorted(found, key=lambda cell: (cell.workload_name, cell.model.hidden_size))


def names(found: list[Cell]) -> list[str]:
    return [f"{cell.workload_name}{cell.model.hidden_size}" for cell in found]


def test_without_homes_the_order_is_the_plans() -> None:
    assert names(order(cells(), A, BOTH, {}, {}, ALIKE)) == ["long16", "long32", "short16", "short32"]


def test_a_family_stays_on_its_node_and_others_are_left_the_new_ones() -> None:
    waiting = cells()[1:]
    homes = {family(cells()[0]): "A"}
    assert names(order(waiting, A, BOTH, homes, {}, ALIKE)) == ["long32", "short16", "short32"]
    assert names(order(waiting, B, BOTH, homes, {}, ALIKE)) == ["short16", "short32", "long32"]


def test_a_node_that_would_idle_takes_of_another_nodes_family() -> None:
    waiting = cells()[1:2]
    assert names(order(waiting, B, BOTH, {family(waiting[0]): "A"}, {}, ALIKE)) == ["long32"]


def test_a_node_gets_no_cell_that_it_does_not_serve() -> None:
    assert order(cells(), GPU, [GPU], {}, {}, {"G": "h200"}) == []


def test_a_begun_cell_waits_for_hardware_of_its_kind() -> None:
    waiting, differ = cells(), {"A": "epyc", "B": "xeon"}
    begun = {waiting[0].id: "epyc"}
    assert names(order(waiting, A, BOTH, {}, begun, differ))[0] == "long16"
    assert "long16" not in names(order(waiting, B, BOTH, {}, begun, differ))


def test_a_begun_cell_whose_hardware_is_gone_goes_on_elsewhere() -> None:
    waiting = cells()
    assert "long16" in names(order(waiting, B, BOTH, {}, {waiting[0].id: "arm"}, {"A": "epyc", "B": "xeon"}))


def test_hardware_that_does_not_serve_the_target_is_not_waited_for() -> None:
    waiting = cells()
    found = order(waiting, B, [GPU, B], {}, {waiting[0].id: "h200"}, {"B": "xeon", "G": "h200"})
    assert "long16" in names(found)
