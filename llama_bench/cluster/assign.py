"""Which cell an idle node measures next. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from llama_bench.cluster.connect import Node
from llama_bench.plan import Cell

Family = tuple[str, str]


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
) -> list[Cell]:
    """Return the cells of `waiting` that `node` may measure, the one to begin with first.

    A family stays on the node where it began (`homes`: family → node), so that its sizes can be compared; a family
    without a home comes next, and one of another node's rather than idling. A cell of which restarts are there
    (`begun`: cell → fingerprint of the machine) goes on on such a machine alone while there is one: its restarts are
    never pooled with those of other hardware. `nodes` are all that live, `hardware` has the fingerprint of each.
    """

    def may(cell: Cell) -> bool:
        machine = begun.get(cell.id)
        there = {hardware[one.id] for one in nodes if one.serves(cell.target)}
        return node.serves(cell.target) and (machine in (None, hardware[node.id]) or machine not in there)

    able = [cell for cell in waiting if may(cell)]
    return sorted(able, key=lambda cell: _rank(homes.get(family(cell)), node))


def _rank(home: str | None, node: Node) -> int:
    return 1 if home is None else 0 if home == node.id else 2
