"""ONNX graphs: reading them with or without their weights, walking them, and naming them by what they compute.

The canonical hash of a model does not see names, the order of nodes, doc strings or metadata: a value is named by the
operator, domain and attributes that make it and by the hashes of what goes in; a weight by its bytes; a graph input
by its name and type. Two models with one hash compute the same thing with the same nodes and weights.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from math import prod
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from llama_bench import external_data, threads
from llama_bench.errors import WorkError

MODEL = "model.onnx"
"""The graph's file in a variant's folder."""

PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
"""Element types of which several share a byte; numpy counts them as whole bytes."""

CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class External:
    """Where the bytes of a tensor lie outside its model: `length` bytes of `path` from `offset`."""

    tensor: str
    path: Path
    offset: int
    length: int


def load(path: Path, *, weights: bool = False) -> ModelProto:
    """Read the model at `path`; with `weights`, every external tensor's bytes too, so that nothing stays outside.

    Unlike `onnx.load` it reads hard-linked data files, which is how a store hands out weights without a copy.
    Raises WorkError when the file is no model, or when external data is missing or cut off.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise WorkError(f"{path}: not a readable ONNX model ({error})") from error
    if not model.graph.output:
        raise WorkError(f"{path}: not a readable ONNX model (a graph without outputs)")
    for tensor in tensors(model) if weights else ():
        if is_external(tensor):
            where = external(tensor, path.parent)
            with where.path.open("rb") as file:
                file.seek(where.offset)
                tensor.raw_data = file.read(where.length)
            tensor.ClearField("external_data")
            tensor.data_location = TensorProto.DEFAULT
    return model


def is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def external(tensor: TensorProto, folder: Path) -> External:
    """Return where the bytes of the external `tensor` of a model in `folder` lie.

    Raises WorkError when the file is missing, outside the folder, too short, or holds another number of bytes than the
    shape needs.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path, offset = folder / external_data.location(tensor, folder), int(entries.get("offset", 0))
    if not path.is_file():
        raise WorkError(f"{path}: the weights' file is missing (tensor {tensor.name!r} lies in it)")
    size, wanted = path.stat().st_size, tensor_bytes(tensor)
    length = int(entries["length"]) if "length" in entries else size - offset
    if offset + length > size or length != wanted:
        raise WorkError(
            f"{path}: tensor {tensor.name!r} needs {wanted} bytes at {offset}; its entry says {length}, "
            f"the file has {max(size - offset, 0)} from there"
        )
    return External(tensor.name, path, offset, length)


def external_tensors(model: ModelProto, folder: Path) -> list[External]:
    """Return every external tensor of `model`, subgraphs included; raises WorkError as :func:`external` does."""
    return [external(tensor, folder) for tensor in tensors(model) if is_external(tensor)]


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes of `tensor`'s elements as ONNX stores them raw."""
    whole = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = PACKED_BITS.get(TensorProto.DataType.Name(tensor.data_type), whole)
    return (int(prod(tensor.dims)) * bits + 7) // 8


def model_bytes(path: Path) -> int:
    """Return the bytes of the model at `path`: its graph's file and the external data it refers to."""
    ranges = {(e.path, e.offset, e.length) for e in external_tensors(load(path), path.parent)}
    return path.stat().st_size + sum(length for _, _, length in ranges)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield `graph` and every graph inside the attributes of its nodes (If, Loop, Scan)."""
    yield graph
    for node in graph.node:
        for inner in _bodies(node):
            yield from graphs(inner)


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node of `model`, those of subgraphs and model-local functions too."""
    for graph in graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of `model`: initialisers, sparse ones, and those in attributes, at any depth."""
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def histogram(model: ModelProto) -> dict[str, int]:
    """Return operator → how many nodes of it `model` has, subgraphs included, by name."""
    return dict(sorted(Counter(node.op_type for node in nodes(model)).items()))


def signature(model: ModelProto) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs by name with type and shape, and the outputs by name with element type.

    An output's shape is an annotation that a pass may lose; an input's is part of what is asked for.
    """
    return (
        {value.name: _type(value) for value in model.graph.input},
        {value.name: _type(value)[0] for value in model.graph.output},
    )


def canonical_sha256(path: Path) -> str:
    """Return the canonical hash of the model at `path`, 64 hexadecimal digits.

    Covers operator sets, inputs by name and type, outputs by name and order, every node (dead ones too), every weight
    (unused and doubled ones too), subgraphs and model-local functions. Raises WorkError for a torn model.
    """
    model = load(path)
    _hash_ahead(model, path.parent)
    hasher = _Hasher(path.parent)
    inputs = {value.name: _sha("input", value.name, _type(value)) for value in model.graph.input}
    outputs = [output.name for output in model.graph.output]
    functions = sorted(
        _sha(_domain(f.domain), f.name, f.overload, list(f.attribute), _opsets(f.opset_import), hasher.function(f))
        for f in model.functions
    )
    body = hasher.graph(model.graph, inputs)
    return _sha("model", _opsets(model.opset_import), sorted(inputs.values()), outputs, functions, body)


def node_identities(model: ModelProto, folder: Path) -> Counter[str]:
    """Return how often each kind of node occurs: operator, domain, attributes, which inputs and outputs it has.

    What a node is connected to is left out on purpose: taking one Identity away must count as one node changed, not
    as that and all nodes downstream of it. `folder` is where the model's external data lies.
    """
    hasher = _Hasher(folder)
    return Counter(hasher.node(node, ["value" if name else "" for name in node.input]) for node in nodes(model))


class _Hasher:
    """Hashes the parts of one model whose external data lies in `folder`.

    A scope maps the names that can be read to the hashes of their values.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def graph(self, graph: GraphProto, outer: Mapping[str, str]) -> str:
        """Hash `graph`; `outer` holds its inputs and whatever it captures."""
        weights = {tensor.name: self.tensor(tensor) for tensor in graph.initializer}
        for sparse in graph.sparse_initializer:
            parts = (self.tensor(sparse.values), self.tensor(sparse.indices), list(sparse.dims))
            weights[sparse.values.name] = _sha("sparse", *parts)
        scope = {**outer, **weights}
        for name in weights.keys() & {value.name for value in graph.input}:
            # a weight that is an input too is a default that the caller may override, so it is no constant
            scope[name] = _sha("default", outer[name], weights[name])
        return self.body(graph.node, scope, [output.name for output in graph.output], sorted(weights.values()))

    def function(self, function: onnx.FunctionProto) -> str:
        scope = {name: _sha("parameter", i) for i, name in enumerate(function.input)}
        return self.body(function.node, scope, function.output, [])

    def body(self, body: Iterable[NodeProto], scope: dict[str, str], outputs: Iterable[str], weights: list[str]) -> str:
        every: list[str] = []
        for node in _in_order(list(body)):
            identity = self.node(node, [_value(scope, name, node.op_type) for name in node.input], scope)
            every.append(identity)
            scope.update({name: _sha("output", identity, i) for i, name in enumerate(node.output) if name})
        return _sha("graph", [_value(scope, name, "an output") for name in outputs], sorted(every), weights)

    def node(self, node: NodeProto, inputs: list[str], scope: Mapping[str, str] | None = None) -> str:
        """Hash `node` with the hashes of its inputs; without a scope its subgraphs are left out."""
        attributes = sorted(self.attribute(attribute, scope) for attribute in node.attribute)
        present = _trimmed([bool(name) for name in node.output])
        return _sha(_domain(node.domain), node.op_type, node.overload, attributes, _trimmed(inputs), present)

    def attribute(self, attribute: AttributeProto, scope: Mapping[str, str] | None) -> str:
        bodies = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        held = [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]
        rest = AttributeProto()
        rest.CopyFrom(attribute)
        for name in ("g", "graphs", "t", "tensors", "doc_string"):
            rest.ClearField(name)
        inner = [] if scope is None else [self.inner(graph, scope) for graph in bodies]
        return _sha(rest.SerializeToString(deterministic=True), [self.tensor(tensor) for tensor in held], inner)

    def inner(self, graph: GraphProto, scope: Mapping[str, str]) -> str:
        """Hash a subgraph: its own inputs count by position."""
        own = {value.name: _sha("parameter", i, _type(value)) for i, value in enumerate(graph.input)}
        return self.graph(graph, {**scope, **own})

    def tensor(self, tensor: TensorProto) -> str:
        """Hash type, shape and bytes; where and how the bytes are stored makes no difference."""
        if is_external(tensor):
            content = _content(external(tensor, self.folder))
        elif tensor.data_type == TensorProto.STRING:
            content = _sha(list(tensor.string_data))
        else:
            has_raw = tensor.HasField("raw_data")
            raw = tensor if has_raw else onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor))
            content = hashlib.sha256(raw.raw_data).hexdigest()
        return _sha(tensor.data_type, list(tensor.dims), content)


def _hash_ahead(model: ModelProto, folder: Path) -> None:
    """Hash what `model` keeps outside it, several tensors at once; what is remembered of it is then found."""
    threads.each(_content, {(e.path, e.offset, e.length): e for e in external_tensors(model, folder)}.values())


def _content(where: External) -> str:
    status = where.path.stat()
    identity = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    return _range_sha256(_File(identity, where.path), where.offset, where.length)


@dataclass(frozen=True, slots=True)
class _File:
    """A file by device, inode, time and size: hard links of one file are equal."""

    identity: tuple[int, int, int, int]
    path: Path = field(compare=False)


@lru_cache(maxsize=4096)
def _range_sha256(file: _File, offset: int, length: int) -> str:
    """Hash a range of a file; remembered, because an effect needs it more than once."""
    digest = hashlib.sha256()
    if length:
        with file.path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            for start in range(offset, offset + length, CHUNK):
                with view[start : min(start + CHUNK, offset + length)] as piece:
                    digest.update(piece)
            view.release()
    return digest.hexdigest()


def _sha(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> list[tuple[str, int]]:
    return sorted((_domain(entry.domain), entry.version) for entry in imports)


def _trimmed(items: list[Any]) -> list[Any]:
    """Drop what is empty at the end: an optional input left out and one named '' are the same."""
    while items and not items[-1]:
        items = items[:-1]
    return items


def _type(value: ValueInfoProto) -> tuple[Any, ...]:
    """Return (element type, shape); a dimension is a number, a name, or None. Other than tensors: their bytes."""
    if not value.type.HasField("tensor_type"):
        return (value.type.SerializeToString(deterministic=True), None)
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return (tensor.elem_type, None)
    dims = [getattr(dim, dim.WhichOneof("value") or "", None) for dim in tensor.shape.dim]
    return (tensor.elem_type, tuple(dims))


def _value(scope: Mapping[str, str], name: str, reader: str) -> str:
    if not name:
        return ""
    if name not in scope:
        raise WorkError(f"the graph is torn: {reader} reads {name!r}, which nothing makes")
    return scope[name]


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _reads(node: NodeProto) -> set[str]:
    """Return what `node` reads, and every name inside its subgraphs (those made there are in no outer graph)."""
    names = set(node.input)
    for body in _bodies(node):
        names.update(output.name for output in body.output)
        for inner in body.node:
            names |= _reads(inner)
    return names


def _in_order(body: list[NodeProto]) -> Iterator[NodeProto]:
    """Yield the nodes so that each comes after those that it reads from, in whatever order they are stored."""
    made_by = {name: i for i, node in enumerate(body) for name in node.output if name}
    order = TopologicalSorter(
        {i: {made_by[name] for name in _reads(node) if name in made_by} for i, node in enumerate(body)}
    )
    try:
        yield from (body[i] for i in order.static_order())
    except CycleError as error:
        raise WorkError("the graph is torn: a node reads, through others, its own output") from error
