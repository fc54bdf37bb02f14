"""What a pass did to a graph, rewrite by rewrite: the nodes removed, added, and those that new ones stand for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llama_bench.report.graphs.match import match
from llama_bench.report.graphs.scene import Marked

if TYPE_CHECKING:
    from llama_bench.report.graphs.read import Graph, Node


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One place that changed: indexes of the nodes removed from `before` and added to `after`, both in order."""

    removed: tuple[int, ...]
    added: tuple[int, ...]

    @property
    def fused(self) -> bool:
        """Whether the added nodes stand for the removed ones."""
        return bool(self.removed and self.added)


@dataclass(frozen=True)
class Difference:
    """Two graphs, the nodes that are in both (index → index), and the places that differ."""

    before: Graph
    after: Graph
    same: Mapping[int, int]
    rewrites: tuple[Rewrite, ...]

    @property
    def removed(self) -> list[Node]:
        """The nodes of `before` that are gone, those that were replaced too."""
        return [node for node in self.before.nodes if node.index not in self.same]

    @property
    def added(self) -> list[Node]:
        """The nodes of `after` that were not there, those that replace others too."""
        kept = set(self.same.values())
        return [node for node in self.after.nodes if node.index not in kept]

    @cached_property
    def resized(self) -> dict[int, int]:
        """The nodes that stayed and read constants of other sizes or types, as pruning leaves them: index → index."""
        return {old: new for old, new in self.same.items() if self._sizes_differ(old, new)}

    @property
    def changed(self) -> bool:
        """Whether anything differs that a picture could show."""
        return bool(self.rewrites or self.resized)

    @cached_property
    def kinds(self) -> list[list[Rewrite]]:
        """Equal rewrites together, the most frequent first; Constants that only became initialisers come last."""
        groups: dict[Any, list[Rewrite]] = defaultdict(list)
        for rewrite in self.rewrites:
            groups[self._signature(rewrite)].append(rewrite)
        return sorted(groups.values(), key=lambda group: (self.only_constants(group[0]), -len(group)))

    def only_constants(self, rewrite: Rewrite) -> bool:
        """Whether nothing but Constants came or went here."""
        ops = [self.before.nodes[index].op for index in rewrite.removed]
        return all(op == "Constant" for op in (*ops, *(self.after.nodes[index].op for index in rewrite.added)))

    def marks(self) -> tuple[Marked, Marked]:
        """Return the marks of both graphs; the number of a rewrite is that of its kind, so equal layers stay equal."""
        old: tuple[dict[int, str], dict[int, int]] = ({}, {})
        new: tuple[dict[int, str], dict[int, int]] = ({}, {})
        for number, kind in enumerate(self.kinds, 1):
            for rewrite in kind:
                sides = ((old, rewrite.removed, "replaced", "removed"), (new, rewrite.added, "fused", "added"))
                for (marks, numbers), indexes, fused, alone in sides:
                    marks |= dict.fromkeys(indexes, fused if rewrite.fused else alone)
                    numbers |= dict.fromkeys(indexes, number if rewrite.fused else 0)
        for one, other in self.resized.items():
            old[0][one] = new[0][other] = "resized"
        return Marked(*old), Marked(*new)

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as data: nodes by operator and name, and the operators before and after."""

        def said(node: Node) -> dict[str, str]:
            return {"op": node.op, "name": node.name, "output": node.outputs[0] if node.outputs else ""}

        def ops(graph: Graph, indexes: tuple[int, ...]) -> dict[str, int]:
            return dict(sorted(Counter(graph.nodes[index].op for index in indexes).items()))

        return {
            "nodes": [len(self.before.nodes), len(self.after.nodes)],
            "removed": [said(node) for node in self.removed],
            "added": [said(node) for node in self.added],
            "fused": [
                {
                    "into": [said(self.after.nodes[new]) for new in rewrite.added],
                    "from": [said(self.before.nodes[old]) for old in rewrite.removed],
                }
                for rewrite in self.rewrites
                if rewrite.fused
            ],
            "resized": [said(self.after.nodes[new]) for new in self.resized.values()],
            "rewrites": [
                {
                    "times": len(kind),
                    "removed": ops(self.before, kind[0].removed),
                    "added": ops(self.after, kind[0].added),
                }
                for kind in self.kinds
            ],
            "histogram": self.histogram(),
        }

    def histogram(self) -> dict[str, list[int]]:
        """Return operator → [how many before, how many after], by name."""
        old, new = self.before.histogram(), self.after.histogram()
        return {op: [old.get(op, 0), new.get(op, 0)] for op in sorted({*old, *new})}

    def _sizes_differ(self, old: int, new: int) -> bool:
        pairs = zip(self.before.nodes[old].inputs, self.after.nodes[new].inputs, strict=False)
        before, after = self.before.constants, self.after.constants
        return any(a in before and b in after and before[a] != after[b] for a, b in pairs)

    def _signature(self, rewrite: Rewrite) -> Any:
        """What equal rewrites share: operators and how they are connected; sizes of weights are not looked at."""
        return _shape(self.before, rewrite.removed), _shape(self.after, rewrite.added)


def _shape(graph: Graph, indexes: tuple[int, ...]) -> Any:
    inside = set(indexes)
    ops = sorted(graph.nodes[index].op for index in indexes)
    links = sorted(
        (graph.nodes[index].op, graph.nodes[reader].op)
        for index in indexes
        for reader in graph.after(index)
        if reader in inside
    )
    return tuple(ops), tuple(links)


def compare(before: Graph, after: Graph) -> Difference:
    """Return what differs between two graphs."""
    same = match(before, after)
    removed = {node.index for node in before.nodes if node.index not in same}
    back = {new: old for old, new in same.items()}
    added = [node.index for node in after.nodes if node.index not in back]
    origins = _Origins(before, after, same, back)
    cones = _cones(before, after, added, removed, origins)
    return Difference(before, after, same, _rewrites(before, after, removed, added, cones, origins))


@dataclass(frozen=True)
class _Origins:
    """Which value of `before` a value of `after` is."""

    before: Graph
    after: Graph
    same: Mapping[int, int]
    back: Mapping[int, int]

    def of(self, name: str) -> str | None:
        """Return the value's name in `before`, None when it was not there.

        It is told by its node's partner, by a reader that stayed the same, or by its name, which passes keep; a name
        that a node of `before` still carries, or an output that nobody reads, tells nothing.
        """
        maker = self.after.made_by.get(name)
        if maker in self.back and maker is not None:
            slot = self.after.nodes[maker].outputs.index(name)
            outputs = self.before.nodes[self.back[maker]].outputs
            return outputs[slot] if slot < len(outputs) else None
        if maker is not None and name not in self.after.read_by and name not in self.after.outputs:
            return None
        for reader, slot in self.after.read_by.get(name, ()):
            if reader in self.back:
                inputs = self.before.nodes[self.back[reader]].inputs
                if slot < len(inputs) and inputs[slot]:
                    return inputs[slot]
        known = self.before.made_by.get(name)
        if known is not None:
            return None if known in self.same else name
        return name if name in self.before.inputs or name in self.before.constants else None


def _cones(before: Graph, after: Graph, added: list[int], removed: set[int], origins: _Origins) -> dict[int, set[int]]:
    """Return for each added node the removed ones between what it reads and what it makes.

    What several share, such as a mask that every layer's attention takes in, belongs to none of them. A cone inside
    another is the nearer one's; and what a node can only reach because it reads a new value is the maker's of that.
    """
    cones: dict[int, set[int]] = {}
    stops: dict[int, set[str]] = {}  # a new node that feeds another one stops where it stops
    makers: dict[int, set[int]] = {}
    for index in added:
        node = after.nodes[index]
        known = {name: origins.of(name) for name in node.inputs if name}
        makers[index] = {after.made_by[name] for name, old in known.items() if old is None and name in after.made_by}
        stops[index] = {old for old in known.values() if old is not None}
        stops[index].update(*(stops.get(maker, ()) for maker in makers[index]))
        wanted = [origin for name in node.outputs if name and (origin := origins.of(name)) is not None]
        cone: set[int] = set()
        while wanted:
            name = wanted.pop()
            maker = before.made_by.get(name)
            if maker is not None and maker in removed and maker not in cone and name not in stops[index]:
                cone.add(maker)
                wanted += before.nodes[maker].inputs
        cones[index] = cone
    holders: dict[int, list[int]] = defaultdict(list)
    for index, cone in cones.items():
        for old in cone:
            holders[old].append(index)
    owned: dict[int, set[int]] = {index: set() for index in added}
    for old, everyone in holders.items():
        several = [index for index in everyone if not makers[index] & set(everyone)] or everyone
        nearer = min(several, key=lambda index: len(cones[index]))
        if all(cones[nearer] <= cones[index] for index in several):
            owned[nearer].add(old)
    return owned


def _rewrites(
    before: Graph,
    after: Graph,
    removed: set[int],
    added: list[int],
    cones: Mapping[int, set[int]],
    origins: _Origins,
) -> tuple[Rewrite, ...]:
    """Group what changed: an added node with its cone, with new nodes that only feed it, and with what fell with it."""
    group: dict[tuple[str, int], tuple[str, int]] = {}

    def root(item: tuple[str, int]) -> tuple[str, int]:
        while group.setdefault(item, item) != item:
            item = group[item]
        return item

    def join(one: tuple[str, int], other: tuple[str, int]) -> None:
        group[root(one)] = root(other)

    changed = set(added)
    between: set[int] = set()  # new nodes that feed several rewrites
    for index in added:
        for old in cones[index]:
            join(("removed", old), ("added", index))
    for index in reversed(added):
        if not cones[index] and not any(origins.of(name) for name in after.nodes[index].outputs if name):
            readers = [reader for reader in after.after(index) if reader in changed]
            groups = {root(("added", reader)) for reader in readers}
            shared = [reader for reader in readers if reader in between]
            if len(groups) == 1:
                join(("added", index), ("added", readers[0]))
            else:
                between.add(index)
                for reader in shared:
                    join(("added", index), ("added", reader))
            if readers and all(reader in between for reader in readers):
                between.add(index)
    free = removed - {old for cone in cones.values() for old in cone}
    for old in sorted(free, reverse=True):  # what was read later first
        readers = before.after(old)
        around = {root(("removed", reader)) if reader in removed else None for reader in readers}
        if len(around) == 1 and None not in around:  # nothing but one rewrite read it, so it fell with that
            join(("removed", old), ("removed", readers[0]))
            if readers[0] not in free:
                free.discard(old)
        for reader in readers:
            if reader in free and old in free:
                join(("removed", old), ("removed", reader))
    members: dict[tuple[str, int], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for old in sorted(removed):
        members[root(("removed", old))][0].append(old)
    for index in added:
        members[root(("added", index))][1].append(index)
    found = [Rewrite(tuple(olds), tuple(news)) for olds, news in members.values()]
    return tuple(sorted(found, key=lambda one: (*one.removed, *one.added)))
