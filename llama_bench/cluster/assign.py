"""Which cell an idle node measures next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llama_bench.cluster.connect import Node
from llama_bench.plan import Cell

Family = tuple[str, str]

HOME, HOMELESS, ELSEWHERE = range(3)
"""What a cell's family is to a node: at home there, at home nowhere, at home elsewhere. The less strange the better."""


def family(cell: Cell) -> Family:
    """Return what cells share whose models are compared by size: the workload and the target."""
    return cell.workload_name, cell.target_name


def order(
    waiting: Iterable[Cell],
    node: Node,
    nodes: Sequence[Node],
    homes: Mapping[Family, str],
    begun: Mapping[str, str],
    hardware: Mapping[str, str],
    strangest: int = ELSEWHERE,
) -> list[Cell]:
    """Return the cells of `waiting` that `node` may measure, the one to begin with first.

    A family stays on the node where it began (`homes`: family → node), so that its sizes can be compared; a family
    without a home comes next, and one of another node's rather than idling. A cell of which restarts are there
    (`begun`: cell → fingerprint of the machine) goes on on such a machine alone while there is one: its restarts are
    never pooled with those of other hardware. `strangest` leaves out what is stranger. `nodes` are all that
    live, `hardware` has the fingerprint of each.
    """

    def may(cell: Cell) -> bool:
        machine = begun.get(cell.id)
        there = {hardware[one.id] for one in nodes if one.serves(cell.target)}
        return node.serves(cell.target) and (machine in (None, hardware[node.id]) or machine not in there)

    able = [(_strangeness(homes.get(family(cell)), node), cell) for cell in waiting if may(cell)]
    return [cell for strange, cell in sorted(able, key=lambda pair: pair[0]) if strange <= strangest]


def _strangeness(home: str | None, node: Node) -> int:
    return HOMELESS if home is None else HOME if home == node.id else ELSEWHERE
