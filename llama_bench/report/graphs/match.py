"""Which node of one graph is which of another: by name, by all that goes in or comes out, and by its neighbours.

Two nodes are the same when operator, domain, attributes and the inputs and outputs that are there are equal and they
stand in the same place; a node that only reads from elsewhere stays the same, as in a pass's Effect.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_bench.report.graphs.read import Graph, Node

Key = Hashable | None


def match(before: Graph, after: Graph) -> dict[int, int]:
    """Return the nodes of `before` that are still in `after`: index → index.

    One name alone is not believed, since passes count on from numbers that exporters gave: what goes in, what comes
    out, a neighbour or a second name must agree. Where all around a node
    changed, the operators there or its name decide.
    """
    pairs = _Pairs(before, after)
    hashes = [{id(graph): made(graph) for graph in (before, after)} for made in (_from_inputs, _from_outputs)]
    for found in hashes:
        for named in (_name, _output):
            pairs.by(_both(found, named))
    pairs.by_name()
    pairs.grow()
    for found in hashes:
        pairs.by(_both(found, lambda node: ""), several=True)
        pairs.grow()
    pairs.by_name()
    pairs.grow()
    pairs.by(_around, several=True)
    pairs.by(lambda graph, node: (node.name and (node.name, node.identity)) or None)
    pairs.grow()
    return pairs.found


def _name(node: Node) -> str | None:
    return node.name or None


def _output(node: Node) -> str | None:
    return (node.outputs[0] or None) if node.outputs else None


def _around(graph: Graph, node: Node) -> Key:
    """What a node is, and the operators that it reads from and that read it."""
    sources = [graph.nodes[graph.made_by[name]].op if name in graph.made_by else "" for name in node.inputs]
    return node.identity, tuple(sources), tuple(sorted(graph.nodes[reader].op for reader in graph.after(node.index)))


def _both(hashes: dict[int, dict[int, str]], named: Callable[[Node], str | None]) -> Callable[[Graph, Node], Key]:
    """Return the key that is a hash and a name; none where there is no name."""
    return lambda graph, node: None if (name := named(node)) is None else (hashes[id(graph)][node.index], name)


class _Pairs:
    """The pairs found so far, in both directions."""

    def __init__(self, before: Graph, after: Graph) -> None:
        self.before, self.after = before, after
        self.found: dict[int, int] = {}
        self.taken: dict[int, int] = {}

    def add(self, old: int, new: int) -> bool:
        """Pair two nodes unless they differ or one of them has a partner."""
        if old in self.found or new in self.taken:
            return False
        if self.before.nodes[old].identity != self.after.nodes[new].identity:
            return False
        self.found[old], self.taken[new] = new, old
        return True

    def by(self, key: Callable[[Graph, Node], Key], *, several: bool = False) -> None:
        """Pair the nodes that alone have a key in both graphs; with `several` those that share it too, in order."""
        old: dict[Key, list[int]] = defaultdict(list)
        new: dict[Key, list[int]] = defaultdict(list)
        for groups, graph, taken in ((old, self.before, self.found), (new, self.after, self.taken)):
            for node in graph.nodes:
                if node.index not in taken and (found := key(graph, node)) is not None:
                    groups[found].append(node.index)
        for found, ours in old.items():
            theirs = new.get(found, [])
            if len(ours) == len(theirs) and (several or len(ours) == 1):
                for pair in zip(ours, theirs, strict=True):
                    self.add(*pair)

    def by_name(self) -> None:
        """Pair nodes of one name, of the node or of what it makes, that have a neighbour or a constant in common."""
        for named in (_name, _output):
            theirs = {named(node): node.index for node in self.after.nodes if node.index not in self.taken}
            for node in self.before.nodes:
                name = named(node)
                if name in theirs and name is not None and self._agree(node.index, theirs[name]):
                    self.add(node.index, theirs[name])

    def _agree(self, old: int, new: int) -> bool:
        before, after = self.before, self.after
        names = [(_name(node), _output(node)) for node in (before.nodes[old], after.nodes[new])]
        if names[0] == names[1] and None not in names[0]:
            return True
        for name, other in zip(before.nodes[old].inputs, after.nodes[new].inputs, strict=False):
            maker, another = before.made_by.get(name), after.made_by.get(other)
            if maker is None and another is None and name == other and name:
                return True
            if maker is not None and another is not None and self.found.get(maker) == another:
                return True
        readers = set(after.after(new))
        return any(self.found.get(reader) in readers for reader in before.after(old))

    def grow(self) -> None:
        """Pair the neighbours of pairs, until there is nothing left to pair."""
        waiting = deque(self.found.items())
        while waiting:
            old, new = waiting.popleft()
            for pair in self._neighbours(old, new):
                if self.add(*pair):
                    waiting.append(pair)

    def _neighbours(self, old: int, new: int) -> Iterable[tuple[int, int]]:
        before, after = self.before, self.after
        ours, theirs = before.nodes[old], after.nodes[new]
        for name, other in zip(ours.inputs, theirs.inputs, strict=False):
            if name in before.made_by and other in after.made_by:
                yield before.made_by[name], after.made_by[other]
        for name, other in zip(ours.outputs, theirs.outputs, strict=False):
            readers = self._open_readers(before, name, self.found)
            for kind, others in self._open_readers(after, other, self.taken).items():
                if len(readers.get(kind, ())) == len(others):
                    yield from zip(readers[kind], others, strict=True)

    @staticmethod
    def _open_readers(graph: Graph, name: str, taken: dict[int, int]) -> dict[tuple[str, int], list[int]]:
        """Return the readers of a value that have no partner yet, by what they are and where they read it."""
        found = defaultdict(list)
        for index, slot in graph.read_by.get(name, ()):
            if index not in taken:
                found[graph.nodes[index].identity, slot].append(index)
        return found


def _from_inputs(graph: Graph) -> dict[int, str]:
    """Return for each node a hash of itself and of all that it stands on."""
    values = {name: f"input {name}" for name in graph.inputs}
    hashes: dict[int, str] = {}
    for node in graph.nodes:
        inputs = [values.get(name, f"constant {graph.constants.get(name, name)}") for name in node.inputs]
        hashes[node.index] = _sha(node.identity, inputs, node.constants)
        values |= {name: f"{hashes[node.index]}:{i}" for i, name in enumerate(node.outputs)}
    return hashes


def _from_outputs(graph: Graph) -> dict[int, str]:
    """Return for each node a hash of itself and of all that stands on it."""
    ends = {name: i for i, name in enumerate(graph.outputs)}
    hashes: dict[int, str] = {}
    for node in reversed(graph.nodes):
        uses = [
            [*sorted((hashes[reader], slot) for reader, slot in graph.read_by.get(name, ())), ("end", ends.get(name))]
            for name in node.outputs
        ]
        hashes[node.index] = _sha(node.identity, uses, node.constants)
    return hashes


def _sha(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
