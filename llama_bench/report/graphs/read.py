"""A model's graph as it is drawn: its nodes in order, what is constant, and what only serves shapes. No weights."""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, WorkError
from llama_bench.report.graphs.words import constant, layer, sizes, text

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, TensorProto

SHAPE_SLOTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Pad": (1, 3),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Unsqueeze": (1,), "ReduceMean": (1,), "ReduceSum": (1,),
    "ReduceMax": (1,), "Trilu": (1,), "TopK": (1,), "CumSum": (1,),
}  # fmt: skip
"""Operator → its inputs that are shapes, axes or places, not data."""

PLUMBING = frozenset((
    "Shape", "Size", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze", "Cast", "Add", "Sub", "Mul", "Div", "Mod",
    "Floor", "Min", "Max", "Range", "ConstantOfShape", "Where", "Equal", "Reshape", "Expand", "Identity", "ReduceProd",
    "Not", "And", "Or", "Less", "Greater", "Split",
))  # fmt: skip
"""Operators that compute shapes, where all that they make is read as one."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `constants` are (slot, what) of its constant inputs: a weight's name and sizes, a small one's values.

    `identity` covers operator, domain, attributes and which inputs and outputs there are; `layer` is the number that
    its name gives, if any; `shape` says that it is a constant or only computes shapes.
    """

    index: int
    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    identity: str
    text: str
    constants: tuple[tuple[int, str], ...]
    layer: int | None = None
    shape: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """The nodes of a model, each after those that it reads from; `nodes[i].index` is i.

    `constants` maps the name of an initialiser or a Constant's output to its sizes and type; `made_by` a value to its
    node, `read_by` a value to (node, slot) of those that read it.
    """

    path: Path
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, str]
    made_by: Mapping[str, int] = field(default_factory=dict)
    read_by: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def before(self, index: int) -> list[int]:
        """Return the nodes that node `index` reads from, each once, in the order of its inputs."""
        return list(dict.fromkeys(self.made_by[name] for name in self.nodes[index].inputs if name in self.made_by))

    def after(self, index: int) -> list[int]:
        """Return the nodes that read what node `index` makes, each once."""
        return list(
            dict.fromkeys(reader for name in self.nodes[index].outputs for reader, _ in self.read_by.get(name, ()))
        )

    def histogram(self) -> dict[str, int]:
        """Return operator → how many nodes of it, by name; nodes inside subgraphs are not counted."""
        counts: dict[str, int] = defaultdict(int)
        for node in self.nodes:
            counts[node.op] += 1
        return dict(sorted(counts.items()))


def read(path: Path) -> Graph:
    """Read the graph at `path`, a model's file or a folder that holds a `model.onnx`; its weights are not needed.

    Raises InputError when nothing is there, WorkError when it is no ONNX model.
    """
    from llama_bench import graph

    file = path / graph.MODEL if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such file; a variant is a .onnx file, or a folder with a {graph.MODEL}")
    return build(graph.load(file), file)


def build(model: ModelProto, path: Path) -> Graph:
    """Return the graph of `model`; `path` is where it came from. Raises WorkError for nodes in a circle."""
    known = dict(_constants(model))
    protos = _in_order(list(model.graph.node), path)
    nodes = [_node(i, proto, known) for i, proto in enumerate(protos)]
    made_by = {name: node.index for node in nodes for name in node.outputs if name}
    readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for node in nodes:
        for slot, name in enumerate(node.inputs):
            if name:
                readers[name].append((node.index, slot))
    read_by = {name: tuple(found) for name, found in readers.items()}
    outputs = tuple(value.name for value in model.graph.output)
    shapes = _serve_shapes(nodes, read_by, set(outputs))
    given = tuple(value.name for value in model.graph.input if value.name not in known)
    marked = tuple(_marked(node, node.index in shapes) for node in nodes)
    described = {name: sizes(tensor) for name, tensor in known.items()}
    return Graph(path, marked, given, outputs, described, made_by, read_by)


def _marked(node: Node, shape: bool) -> Node:
    from dataclasses import replace

    return replace(node, shape=shape) if shape else node


def _constants(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initialisers, and the tensors of Constant nodes."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute:
            yield node.output[0], _tensor_of(node.attribute[0])


def _tensor_of(attribute: AttributeProto) -> TensorProto:
    import numpy as np
    import onnx

    if attribute.HasField("t"):
        return attribute.t
    value = onnx.helper.get_attribute_value(attribute)
    text = isinstance(value, bytes | str) or (isinstance(value, list) and value and isinstance(value[0], bytes))
    return onnx.numpy_helper.from_array(np.array(0 if text else value))


def _in_order(protos: list[NodeProto], path: Path) -> list[NodeProto]:
    """Every node after those that it reads from; otherwise as they are stored."""
    made_by = {name: i for i, proto in enumerate(protos) for name in proto.output if name}
    waits = [{made_by[name] for name in _reads(proto) if name in made_by} for proto in protos]
    readers: dict[int, list[int]] = defaultdict(list)
    for i, wanted in enumerate(waits):
        for j in wanted:
            readers[j].append(i)
    ready = [i for i, wanted in enumerate(waits) if not wanted]
    heapq.heapify(ready)
    left = [len(wanted) for wanted in waits]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(protos[i])
        for j in readers[i]:
            left[j] -= 1
            if not left[j]:
                heapq.heappush(ready, j)
    if len(order) < len(protos):
        raise WorkError(f"{path}: the graph is torn: a node reads, through others, its own output")
    return order


def _reads(proto: NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs' readings of outer values too."""
    yield from proto.input
    for attribute in proto.attribute:
        for body in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
            for inner in body.node:
                yield from _reads(inner)
            yield from (output.name for output in body.output)


def _node(index: int, proto: NodeProto, known: Mapping[str, TensorProto]) -> Node:
    captured = dict.fromkeys(name for name in _reads(proto) if name and name not in proto.input)
    inputs = (*proto.input, *captured)
    present = ("".join("1" if name else "0" for name in names).rstrip("0") for names in (proto.input, proto.output))
    attributes = sorted(_digest(attribute) for attribute in proto.attribute)
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    constants = tuple(
        (slot, constant(known[name]))
        for slot, name in enumerate(inputs)
        if name in known and proto.op_type != "Constant"
    )
    return Node(
        index,
        proto.name,
        proto.op_type,
        inputs,
        tuple(proto.output),
        _sha(domain, proto.op_type, proto.overload, attributes, *present),
        text(proto, inputs, known),
        constants,
        layer(proto),
    )


def _digest(attribute: AttributeProto) -> str:
    from onnx import AttributeProto

    rest = AttributeProto()
    rest.CopyFrom(attribute)
    rest.ClearField("doc_string")
    return hashlib.sha256(rest.SerializeToString(deterministic=True)).hexdigest()


def _sha(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _serve_shapes(
    nodes: list[Node], read_by: Mapping[str, tuple[tuple[int, int], ...]], outputs: set[str]
) -> frozenset[int]:
    """Return the constants, and the nodes of which all that they make is read as shapes, axes or places."""
    found: set[int] = set()
    for node in reversed(nodes):
        if node.op == "Constant":
            found.add(node.index)
        if node.op not in PLUMBING or outputs & set(node.outputs):
            continue
        readers = [place for name in node.outputs for place in read_by.get(name, ())]
        if readers and all(i in found or slot in SHAPE_SLOTS.get(nodes[i].op, ()) for i, slot in readers):
            found.add(node.index)
    return frozenset(found)
