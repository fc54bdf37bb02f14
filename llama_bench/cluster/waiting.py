"""The cells that wait to be measured: which one a node takes next, and which of them no node is there for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

from llama_bench.cluster.assign import ELSEWHERE, HOME, HOMELESS, Family, family, order
from llama_bench.cluster.autoscaler import Need, need
from llama_bench.cluster.connect import Node
from llama_bench.cluster.fleet import Fleet
from llama_bench.plan import Cell
from llama_bench.sweep import Target

CELL_TRIES = 3
"""A coordinator that is lost so often without a finished restart between gives its cell up."""


class Waiting:
    """Cells whose artifacts are built and that nobody measures yet.

    `begun_before` looks up the hardware that cells were begun on by earlier drivers (cell id → fingerprint); it is
    called once, and only where nodes differ.
    """

    def __init__(self, fleet: Fleet, begun_before: Callable[[], Mapping[str, str]]) -> None:
        self._fleet, self._begun_before = fleet, begun_before
        self.cells: list[Cell] = []
        self._homes: dict[Family, str] = {}
        self._begun: dict[str, str] = {}
        self._looked_up = False
        self._avoided: dict[str, set[str]] = defaultdict(set)  # cell → nodes that have lost it
        self._losses: Counter[str] = Counter()  # cell → times in a row that its coordinator was lost

    def add(self, cell: Cell) -> None:
        self.cells.append(cell)

    def again(self, cell: Cell) -> None:
        """Let a cell wait that was taken."""
        self.cells.insert(0, cell)

    def lost(self, cell: Cell, node: Node) -> bool:
        """Take in that `node` has lost the coordinator of `cell`; return whether the cell may be tried again.

        It is, on that node only while there is no other.
        """
        self._losses[cell.id] += 1
        self._avoided[cell.id].add(node.id)
        return self._losses[cell.id] < CELL_TRIES

    def went_on(self, cell: Cell) -> None:
        """Take in that a restart of `cell` was finished: what is lost from now on is counted anew."""
        self._losses[cell.id] = 0

    def turns(self, idle: Callable[[Node], bool]) -> list[tuple[Node, int]]:
        """Return in which order `idle` nodes choose, each with how strange a cell may be to it.

        A node that is at home goes before one that would only help, and new families go to nodes without one.
        """
        families = Counter(self._living_homes().values())
        nodes = sorted(filter(idle, self._fleet.nodes), key=lambda node: families[node.id])
        return [(node, strangest) for strangest in (HOME, HOMELESS, ELSEWHERE) for node in nodes]

    def candidates(self, node: Node, strangest: int = ELSEWHERE) -> list[Cell]:
        """Return the cells that `node` may measure, the one to begin with first."""
        fleet = self._fleet
        if len(set(fleet.hardware.values())) > 1 and not self._looked_up:
            self._looked_up = True
            self._begun = {**self._begun_before(), **self._begun}
        found = order(self.cells, node, fleet.nodes, self._living_homes(), self._begun, fleet.hardware, strangest)
        return [cell for cell in found if node.id not in self._avoided[cell.id] or not self._has_another(cell, node)]

    def remove(self, cell: Cell) -> None:
        self.cells.remove(cell)

    def begun(self, cell: Cell, node: Node) -> None:
        """Remember that `node` measures `cell`, and is home to its family unless another living one is."""
        if family(cell) not in self._living_homes():
            self._homes[family(cell)] = node.id
        self._begun.setdefault(cell.id, self._fleet.hardware[node.id])

    def elsewhere(self, cell: Cell, node: Node) -> bool:
        """Whether another node is to go on with the cell, should `node` lose it now.

        Not when that would give the whole cell up: its last coordinator gives up the arm that cannot be timed.
        """
        return self._losses[cell.id] + 1 < CELL_TRIES and self._has_another(cell, node)

    def homeless(self) -> dict[Need, tuple[Target, int]]:
        """Return for what is asked of nodes one such target, and how many families wait for it without a home."""
        homes = self._living_homes()
        found: dict[Need, tuple[Target, set[Family]]] = {}
        for cell in self.cells:
            if family(cell) not in homes:
                found.setdefault(need(cell.target), (cell.target, set()))[1].add(family(cell))
        return {key: (target, len(families)) for key, (target, families) in found.items()}

    def _has_another(self, cell: Cell, node: Node) -> bool:
        """Whether there is another node of the same hardware that has not lost the cell."""
        hardware, avoided = self._fleet.hardware, self._avoided[cell.id]
        return any(
            other.id != node.id and hardware[other.id] == hardware[node.id] and other.id not in avoided
            for other in self._fleet.serving(cell.target)
        )

    def _living_homes(self) -> dict[Family, str]:
        alive = {node.id for node in self._fleet.nodes}
        return {one: home for one, home in self._homes.items() if home in alive}
