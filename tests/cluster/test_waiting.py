"""Cells that wait, on nodes that have lost some of them, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_bench.cluster.connect import Node
from llama_bench.cluster.fleet import Fleet
from llama_bench.cluster.waiting import CELL_TRIES, Waiting
from llama_bench.plan import Cell, make
from llama_bench.store import Store
from llama_bench.sweep import Sweep

from .conftest import TINY

NODES = [Node(name, name, {"CPU": 2.0, "bench_cpu": 1.0}) for name in "ABCD"]


@pytest.fixture
def cell() -> Cell:
    return make(Sweep.model_validate(TINY), {}).cells[0]


def waiting_on(nodes: list[Node], cell: Cell, tmp_path: Path, **hardware: str) -> Waiting:
    """Return cells that wait on `nodes`, which are alike unless their hardware is said."""
    fleet = Fleet(Store(tmp_path / "store"), {"cpu": cell.target}, [], lambda event: None)
    fleet.nodes = list(nodes)
    fleet.hardware = {node.id: hardware.get(node.id, "epyc") for node in nodes}
    waiting = Waiting(fleet, dict[str, str])
    waiting.add(cell)
    return waiting


def test_a_cell_goes_to_a_node_that_has_not_lost_it_while_there_is_one(cell: Cell, tmp_path: Path) -> None:
    a, b = NODES[:2]
    waiting = waiting_on([a, b], cell, tmp_path)
    assert waiting.lost(cell, a)
    assert waiting.candidates(a) == []
    assert waiting.candidates(b) == [cell]
    assert waiting.lost(cell, b)
    assert waiting.candidates(a) == waiting.candidates(b) == [cell]


def test_a_node_of_other_hardware_is_no_elsewhere(cell: Cell, tmp_path: Path) -> None:
    a, b = NODES[:2]
    assert waiting_on([a, b], cell, tmp_path).elsewhere(cell, a)
    assert not waiting_on([a, b], cell, tmp_path, B="xeon").elsewhere(cell, a)
    assert not waiting_on([a], cell, tmp_path).elsewhere(cell, a)


def test_a_cell_is_given_up_after_losses_in_a_row_and_a_finished_restart_begins_anew(
    cell: Cell, tmp_path: Path
) -> None:
    waiting = waiting_on(NODES, cell, tmp_path)
    for node in NODES[: CELL_TRIES - 1]:
        assert waiting.lost(cell, node)
    waiting.went_on(cell)
    for node in NODES[: CELL_TRIES - 1]:
        assert waiting.lost(cell, node)
    assert not waiting.lost(cell, NODES[-1])


def test_the_last_coordinator_of_a_cell_gives_up_an_arm_and_not_the_cell_however_many_nodes_there_are(
    cell: Cell, tmp_path: Path
) -> None:
    waiting = waiting_on(NODES, cell, tmp_path)
    said: list[Any] = []
    for node in NODES[:CELL_TRIES]:
        said.append(waiting.elsewhere(cell, node))
        waiting.lost(cell, node)
    assert said == [True] * (CELL_TRIES - 1) + [False]
