"""Repeated layers, found in the structure alone: equal stretches of a graph, one after another.

Names are not needed, many exporters and passes lose them. Where they tell layers apart they decide, among the places
where a repeated stretch could be said to begin, which one it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_bench.report.graphs.kinds import OPERATORS

if TYPE_CHECKING:
    from llama_bench.report.graphs.read import Graph

LEAST_NODES, LEAST_PRODUCTS = 4, 2
"""A stretch with fewer nodes, or fewer products of matrices, is no layer, but the rotation of queries and keys, say."""

MOST_LOST = 0.5
"""Where the stored order shows less than this share of the nodes as repeated, an order of our own is tried too."""

PRODUCTS = frozenset((*OPERATORS["product"].split(), *OPERATORS["attention"].split())) - {"RotaryEmbedding"}
"""Products of matrices; in our own order a node must be one, or stand on one, to belong to a layer."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """`times` equal stretches of `period` nodes each, one after another, from place `start` of the order."""

    start: int
    period: int
    times: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.times


@dataclass(frozen=True, slots=True)
class Folded:
    """The drawn nodes in order, and the repeated stretches in it; they do not overlap."""

    order: tuple[int, ...]
    stretches: tuple[Stretch, ...]


def fold(graph: Graph, shown: Sequence[int], marks: Mapping[int, str] | None = None) -> Folded:
    """Return the repeated stretches of the `shown` nodes of `graph` (indexes, in order).

    Nodes are equal when operator, attributes, constants' sizes and their entry in `marks` are; so a layer that a pass
    changed is not folded with one that it left alone.
    """
    labels = {index: _label(graph, index, marks or {}) for index in shown}
    stored = _folded(graph, list(shown), labels)
    if len(shown) < 2 * LEAST_NODES or _covered(stored) >= MOST_LOST * len(shown):
        return stored
    own = _folded(graph, _own_order(graph, shown, labels), labels)
    return own if _covered(own) > _covered(stored) else stored


def _covered(folded: Folded) -> int:
    return sum(stretch.period * stretch.times for stretch in folded.stretches)


def _label(graph: Graph, index: int, marks: Mapping[int, str]) -> str:
    node = graph.nodes[index]
    return repr((node.identity, [graph.constants.get(name, "") for name in node.inputs], marks.get(index, "")))


def _folded(graph: Graph, order: list[int], labels: Mapping[int, str]) -> Folded:
    import numpy as np

    numbers: dict[str, int] = {}
    sequence = np.array([numbers.setdefault(labels[index], len(numbers)) for index in order])
    found: list[Stretch] = []
    products = np.cumsum([0, *(graph.nodes[index].op in PRODUCTS for index in order)])
    _search(graph, order, sequence, products, 0, len(order), found)
    return Folded(tuple(order), tuple(sorted(found, key=lambda stretch: stretch.start)))


def _search(
    graph: Graph, order: list[int], sequence: Any, products: Any, low: int, high: int, found: list[Stretch]
) -> None:
    """Add the best stretch between two places, then those left and right of it; `products` counts those before."""
    best = _best(sequence[low:high], products[low : high + 1])
    if best is None:
        return
    start, period, times, slack = best
    start = _begin(graph, order, low + start, slack, period)
    stretch = Stretch(start, period, times)
    found.append(stretch)
    _search(graph, order, sequence, products, low, stretch.start, found)
    _search(graph, order, sequence, products, stretch.stop, high, found)


def _best(sequence: Any, products: Any) -> tuple[int, int, int, int] | None:
    """Return (start, period, times, slack) of the repetition that covers most; it may begin up to slack places later.

    Every period p is tried: where a run of m places equals the one p further on, (m + p) // p stretches repeat.
    """
    import numpy as np

    best, most = None, 0
    for period in range(LEAST_NODES, len(sequence) // 2 + 1):
        if (len(sequence) // period) * period <= most:
            continue
        unequal = np.flatnonzero(sequence[period:] != sequence[:-period])
        edges = np.concatenate(([-1], unequal, [len(sequence) - period]))
        lengths = np.diff(edges) - 1
        longest = int(lengths.argmax())
        length = int(lengths[longest])
        times, start = length // period + 1, int(edges[longest]) + 1
        if times * period > most and times > 1 and products[start + period] - products[start] >= LEAST_PRODUCTS:
            most = times * period
            best = (start, period, times, length + period - times * period)
    return best


def _begin(graph: Graph, order: list[int], start: int, slack: int, period: int) -> int:
    """Return where the stretch is best said to begin: where names say so, else where fewest values cross."""
    place = {index: i for i, index in enumerate(order)}
    last = {
        i: max((place[reader] for reader in graph.after(index) if reader in place), default=-1)
        for i, index in enumerate(order[: start + slack + 1])
    }

    def cost(begin: int) -> tuple[bool, int, int]:
        layers = [graph.nodes[order[i]].layer for i in (begin - 1, begin) if 0 <= i < len(order)]
        named = len(layers) == 2 and layers[1] is not None and layers[0] != layers[1]
        # a value that is read beyond this stretch too, such as a mask, crosses wherever it begins
        crossing = sum(begin <= last[i] < begin + period for i in range(begin))
        return not named, crossing, begin

    return min(cost(begin) for begin in range(start, start + slack + 1))[2]


def _own_order(graph: Graph, shown: Sequence[int], labels: Mapping[int, str]) -> list[int]:
    """Return the nodes in an order that hangs on the structure alone, whatever order they are stored in.

    First what stands on no product (the embedding, the mask, the rotary angles), which all layers may read; then the
    rest from the farthest to the nearest to the outputs, which puts layer after layer.
    """
    inside = set(shown)
    deep: set[int] = set()
    for index in shown:
        if graph.nodes[index].op in PRODUCTS or any(source in deep for source in graph.before(index)):
            deep.add(index)
    height: dict[int, int] = {}
    for index in reversed(shown):
        height[index] = 1 + max((height[reader] for reader in graph.after(index) if reader in inside), default=0)
    left = {index: sum(source in inside for source in graph.before(index)) for index in shown}

    def key(index: int) -> tuple[bool, int, str, int]:
        return index in deep, -height[index], labels[index], index

    ready = [key(index) for index in shown if not left[index]]
    heapq.heapify(ready)
    order = []
    while ready:
        index = heapq.heappop(ready)[3]
        order.append(index)
        for reader in graph.after(index):
            if reader in inside:
                left[reader] -= 1
                if not left[reader]:
                    heapq.heappush(ready, key(reader))
    return order
