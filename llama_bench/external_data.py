"""A model's weights apart from its graph: cut out and named by their content.

Files are memory-mapped, so a model of any size costs little memory here.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench import threads
from llama_bench.errors import WorkError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

GRAPH = "model.onnx"
WEIGHT_BYTES = 1024
"""Tensors of at least this many bytes are stored apart; smaller ones cost less inside the graph than as files."""

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9  # field numbers of onnx.proto
_LENGTH_DELIMITED = 2


@dataclass(frozen=True)
class Cut:
    """A graph that refers to its weights by content, the weights by SHA-256, and the files that they came from."""

    graph: bytes
    weights: dict[str, memoryview]
    sources: frozenset[str]


def cut(folder: Path) -> Cut:
    """Cut the weights out of `folder`/model.onnx, wherever they are: inside the file or in external data.

    Every initializer of the main graph and every external tensor of at least `WEIGHT_BYTES` becomes a weight, named
    by the SHA-256 of its bytes (which is also its external location); smaller ones end up inside the graph. The same
    model gives the same bytes, however its weights were laid out. Raises WorkError when the model is no ONNX file, or
    its external data is missing, too short or outside the folder.
    """
    path = folder / GRAPH
    model, inline = _parse(path)
    sources: set[str] = set()
    apart: list[tuple[TensorProto, memoryview]] = []
    external = [tensor for tensor in _tensors(model) if _is_external(tensor)]
    for index, tensor in enumerate(model.graph.initializer):
        data = inline.get(index)
        if data is None:
            data = _typed_bytes(tensor)
        if data is not None:
            apart.append((tensor, data))
    for tensor in external:
        sources.add(location(tensor, folder))
        data = _external_bytes(tensor, folder, path)
        if len(data) >= WEIGHT_BYTES:
            apart.append((tensor, data))
        else:
            _put_inside(tensor, data)
    weights: dict[str, memoryview] = {}
    for (tensor, data), name in zip(apart, threads.each(sha256, [data for _, data in apart]), strict=True):
        _refer(tensor, data, name, weights)
    return Cut(model.SerializeToString(deterministic=True), weights, frozenset(sources))


def sha256(data: memoryview) -> str:
    """Return the SHA-256 of `data` in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def map_file(path: Path) -> memoryview:
    """Return the bytes of `path`, memory-mapped and unchangeable."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # an empty file cannot be mapped
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _refer(tensor: TensorProto, data: memoryview, name: str, weights: dict[str, memoryview]) -> None:
    from onnx import TensorProto

    weights.setdefault(name, data)
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", name), ("length", str(len(data)))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _put_inside(tensor: TensorProto, data: memoryview) -> None:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = bytes(data)


def _is_external(tensor: TensorProto) -> bool:
    return tensor.HasField("data_location") and tensor.data_location == tensor.EXTERNAL


def _typed_bytes(tensor: TensorProto) -> memoryview | None:
    """Return the raw bytes of a large tensor whose values are written number by number; None for all others."""
    from onnx import numpy_helper

    if _is_external(tensor) or tensor.HasField("raw_data") or tensor.data_type in (tensor.STRING, tensor.UNDEFINED):
        return None
    data = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    return memoryview(data) if len(data) >= WEIGHT_BYTES else None


def check(folder: Path) -> None:
    """Raise WorkError when `folder`/model.onnx says that data lies anywhere but in the folder itself."""
    model, _ = _parse(folder / GRAPH)
    for tensor in _tensors(model):
        if _is_external(tensor):
            location(tensor, folder)


def location(tensor: TensorProto, folder: Path) -> str:
    """Return the name of the file that holds an external tensor of the model in `folder`, which must be a bare name."""
    name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if not name or name in (".", "..") or set(name) & set("/\\\0"):
        raise WorkError(
            f"{folder / GRAPH}: tensor {tensor.name!r} keeps its data at {name!r}, which is no file beside it"
        )
    return name


def _external_bytes(tensor: TensorProto, folder: Path, path: Path) -> memoryview:
    file = folder / location(tensor, folder)
    values = {entry.key: entry.value for entry in tensor.external_data}
    if file.is_symlink() or not file.is_file():
        raise WorkError(f"{file}: missing (or no plain file), though {path.name} keeps tensor {tensor.name!r} there")
    data = map_file(file)
    try:
        start = int(values.get("offset", 0))
        length = int(values.get("length", len(data) - start))
    except ValueError as error:
        raise WorkError(f"{path}: tensor {tensor.name!r} has an external offset or length that is no number") from error
    if start < 0 or length < 0 or start + length > len(data):
        raise WorkError(
            f"{file}: truncated: {len(data)} bytes, but tensor {tensor.name!r} ends at byte {start + length}"
        )
    return data[start : start + length]


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[TensorProto]:
    node: NodeProto
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def _parse(path: Path) -> tuple[ModelProto, dict[int, memoryview]]:
    """Return the model without the large raw bytes of its main graph's initializers, and those by their index.

    protobuf would copy the whole file to parse it; the bytes of the weights are skipped before it sees them.
    """
    import onnx

    if not path.is_file():
        raise WorkError(f"{path}: missing")
    try:
        slim, weights = _without_weights(map_file(path))
        model = onnx.load_model_from_string(slim)
    except Exception as error:  # ours, and protobuf's DecodeError, which has no public home
        raise WorkError(f"{path}: truncated, or not an ONNX model") from error
    if not model.HasField("graph"):
        raise WorkError(f"{path}: truncated, or not an ONNX model")
    return model, {index: weight for index, weight in enumerate(weights) if weight is not None}


def _without_weights(model: memoryview) -> tuple[bytes, list[memoryview | None]]:
    weights: list[memoryview | None] = []
    pieces: list[bytes | memoryview] = []
    for number, wire, whole, value in _fields(model):
        if number == _MODEL_GRAPH and wire == _LENGTH_DELIMITED:
            graph: list[bytes | memoryview] = []
            for inner, inner_wire, inner_whole, inner_value in _fields(value):
                if inner == _GRAPH_INITIALIZER and inner_wire == _LENGTH_DELIMITED:
                    tensor, weight = _without_raw_data(inner_value)
                    weights.append(weight)
                    graph.append(_delimited(inner, tensor) if weight is not None else inner_whole)
                else:
                    graph.append(inner_whole)
            pieces.append(_delimited(number, b"".join(graph)))
        else:
            pieces.append(whole)
    return b"".join(pieces), weights


def _without_raw_data(tensor: memoryview) -> tuple[bytes, memoryview | None]:
    kept: list[memoryview] = []
    weight = None
    for number, wire, whole, value in _fields(tensor):
        if number == _TENSOR_RAW_DATA and wire == _LENGTH_DELIMITED and len(value) >= WEIGHT_BYTES:
            weight = value
        else:
            kept.append(whole)
    return b"".join(kept), weight


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview, memoryview]]:
    """Yield number, wire type, whole bytes and value bytes of each field (protobuf.dev, "Encoding")."""
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == 0:
            _, end = _varint(message, position)
        elif wire == _LENGTH_DELIMITED:
            length, position = _varint(message, position)
            end = position + length
        elif wire in (1, 5):
            end = position + (8 if wire == 1 else 4)
        else:
            raise ValueError(f"wire type {wire}")
        if end > len(message):
            raise ValueError("a field ends behind its message")
        yield tag >> 3, wire, message[start:end], message[position:end]
        position = end


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _delimited(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _LENGTH_DELIMITED) + _encoded(len(value)) + value


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
