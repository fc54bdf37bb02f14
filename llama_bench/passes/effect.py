"""What a pass did to a model: nodes, operators, bytes, seconds, and whether anything changed at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Effect:
    """The difference between a model before and after a pass.

    `nodes_changed` counts nodes added and nodes removed, a node being its operator, domain and attributes; a node that
    only reads from elsewhere is not counted. `histogram_difference` is operator → nodes after − before, without
    zeros. Bytes are those of the graph and its weights. `changed` is False when only names, the order of nodes or
    annotations differ.
    """

    nodes_before: int
    nodes_after: int
    nodes_changed: int
    histogram_difference: dict[str, int]
    bytes_before: int
    bytes_after: int
    seconds: float
    changed: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Effect:
        return cls(**values)


def effect(source: Path, destination: Path, seconds: float) -> Effect:
    """Compare the models in the folders `source` and `destination`; `seconds` is what the pass took.

    Raises WorkError when either model or its weights cannot be read.
    """
    from llama_bench import graph  # onnx is heavy, and the table of passes is read by every command

    before, after = source / graph.MODEL, destination / graph.MODEL
    old, new = graph.load(before), graph.load(after)
    old_nodes, new_nodes = graph.node_identities(old, source), graph.node_identities(new, destination)
    difference = Counter(graph.histogram(new))
    difference.subtract(graph.histogram(old))
    return Effect(
        nodes_before=old_nodes.total(),
        nodes_after=new_nodes.total(),
        nodes_changed=(new_nodes - old_nodes).total() + (old_nodes - new_nodes).total(),
        histogram_difference={op: count for op, count in sorted(difference.items()) if count},
        bytes_before=graph.model_bytes(before),
        bytes_after=graph.model_bytes(after),
        seconds=seconds,
        changed=graph.canonical_sha256(before) != graph.canonical_sha256(after),
    )
