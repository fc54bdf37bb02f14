"""What a graph costs, counted in it: operations of matrix products and convolutions, bytes of weights and results.

Shapes come from ONNX's own inference for inputs of given sizes, over the graph without its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llama_bench.errors import WorkError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Shape: TypeAlias = Sequence[int]

SMALL_BYTES = 1024
"""Constants up to this size may be shapes and axes, which inference reads; larger ones are weights."""

LOOKED_THROUGH = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")
"""Operators between an input and the table that it looks up."""

REDUCED = ("FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2")
"""Types of weights that are kept in less than fp32: such a file may be computed faster than in fp32."""

OPAQUE = (
    "If", "Loop", "Scan", "Einsum", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention", "GroupQueryAttention",
    "DeformConv",
)  # fmt: skip
"""Operators whose products are not counted here."""


def _matmul(node: NodeProto, x: Shape, w: Shape, out: Shape) -> int:
    return 2 * math.prod(out) * (x[-1] if len(x) else 1)


def _gemm(node: NodeProto, x: Shape, w: Shape, out: Shape) -> int:
    turned = next((a.i for a in node.attribute if a.name == "transA"), 0)
    return 2 * math.prod(out) * x[0 if turned else 1]


def _conv(node: NodeProto, x: Shape, w: Shape, out: Shape) -> int:
    return 2 * math.prod(out) * math.prod(w[1:])


def _conv_transpose(node: NodeProto, x: Shape, w: Shape, out: Shape) -> int:
    return 2 * math.prod(x) * math.prod(w[1:])


PRODUCTS: dict[str, tuple[int, Callable[[NodeProto, Shape, Shape, Shape], int]]] = {
    "MatMul": (1, _matmul),
    "Gemm": (1, _gemm),
    "MatMulInteger": (1, _matmul),
    "QLinearMatMul": (3, _matmul),
    "FusedMatMul": (1, _matmul),
    "MatMulNBits": (1, _matmul),
    "Conv": (1, _conv),
    "ConvInteger": (1, _conv),
    "QLinearConv": (3, _conv),
    "ConvTranspose": (1, _conv_transpose),
}
"""Operator → the place of its second factor, and its operations from the shapes of x, that factor and the result."""


def weights(model: ModelProto) -> dict[str, Any]:
    """Return bytes of all weights, of those that products read, and whether any is kept in less than fp32."""
    from onnx import TensorProto

    from llama_bench import graph

    held = {tensor.name: tensor for tensor in model.graph.initializer}
    origin = _origins(model)
    read = {
        origin[name]
        for node in model.graph.node
        if node.op_type in PRODUCTS
        for name in node.input
        if origin.get(name) in held
    }
    types = {TensorProto.DataType.Name(tensor.data_type) for tensor in graph.tensors(model)}
    return {
        "weight_bytes": sum(graph.tensor_bytes(tensor) for tensor in graph.tensors(model) if _has_bytes(tensor)),
        "product_bytes": sum(graph.tensor_bytes(held[name]) for name in read if _has_bytes(held[name])),
        "reduced": any(name in REDUCED or name.startswith("FLOAT8") for name in types),
    }


def _has_bytes(tensor: TensorProto) -> bool:
    return tensor.data_type not in (tensor.STRING, tensor.UNDEFINED)


def _origins(model: ModelProto) -> dict[str, str]:
    """Return value → the weight that it is, turned or unpacked."""
    found = {tensor.name: tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Transpose", "Identity", "DequantizeLinear", "Cast") and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def table_rows(model: ModelProto) -> dict[str, int]:
    """Return input → the rows of the smallest table that it looks up (Gather of a weight along its first axis)."""
    flat = inlined(model).graph
    dims = {tensor.name: list(tensor.dims) for tensor in flat.initializer}
    origin = {value.name: value.name for value in flat.input}
    found: dict[str, int] = {}
    for node in flat.node:
        if node.op_type in LOOKED_THROUGH and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and node.input[1] in origin and dims.get(node.input[0]):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name, rows = origin[node.input[1]], dims[node.input[0]][0]
            if axis == 0:
                found[name] = min(found.get(name, rows), rows)
    return found


def inlined(model: ModelProto) -> ModelProto:
    """Return `model` with its local functions written out."""
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model


def light(path: Path) -> ModelProto:
    """Read the graph at `path` without the values of its weights: what is left of any model is small."""
    from llama_bench import graph

    model = inlined(graph.load(path))
    for tensor in model.graph.initializer:
        if not _has_bytes(tensor) or (not graph.is_external(tensor) and graph.tensor_bytes(tensor) <= SMALL_BYTES):
            continue
        tensor.ClearField("external_data")
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value="left-out")
    return model


def open_weights(model: ModelProto) -> ModelProto:
    """Turn the weights that `light` left out into inputs, in place, so that ONNX's checker asks for no files."""
    from onnx import helper

    held = [tensor for tensor in model.graph.initializer if tensor.data_location == tensor.EXTERNAL]
    kept = [tensor for tensor in model.graph.initializer if tensor.data_location != tensor.EXTERNAL]
    named = {value.name for value in model.graph.input}
    opened = [tensor for tensor in held if tensor.name not in named]
    model.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in opened)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def count(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the numbers of :class:`llama_bench.sweep_own.OwnCost` for inputs of these shapes.

    `least_operations` are those of products with a weight, which no rewrite leaves out: equal ones once, none whose
    result is not read or is a constant, and of convolutions those of one point (larger ones can be had for fewer
    multiplications: Winograd 1980; Lavin & Gray 2016). Raises WorkError when the shapes contradict the graph.
    """
    graph = _inferred(path, shapes)
    known = {name: shape for name, (shape, _) in graph.items()}
    model = light(path)
    live = _live(model)
    constant = {tensor.name for tensor in model.graph.initializer}
    number: dict[str, str] = {}
    operations = least = 0
    uncounted: str | None = None
    seen: set[tuple[Any, ...]] = set()
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if node.op_type == "Constant" or (inputs and all(name in constant for name in inputs)):
            constant.update(node.output)
            continue
        key = (node.op_type, node.domain, *(number.get(name, name) for name in node.input), _attributes(node))
        again = key in seen
        seen.add(key)
        for i, name in enumerate(node.output):
            number[name] = f"{hash(key)}:{i}"
        if node.op_type in OPAQUE:
            uncounted = uncounted or f"{node.op_type} {node.name or node.output[0]} is not counted"
        if node.op_type not in PRODUCTS:
            continue
        place, formula = PRODUCTS[node.op_type]
        taken = [known.get(name) for name in (node.input[0], node.input[place], node.output[0])]
        if any(shape is None for shape in taken):
            uncounted = uncounted or f"the shapes of {node.op_type} {node.name or node.output[0]} are not known"
            continue
        x, w, out = (shape or () for shape in taken)
        found = formula(node, x, w, out)
        operations += found
        spread = "Conv" in node.op_type and math.prod(w[2:]) > 1
        by_weight = node.input[place] in constant or node.input[0] in constant
        if by_weight and not spread and not again and live & {*node.output}:
            least += found
    return {
        "operations": operations,
        "least_operations": least,
        "input_bytes": sum(_bytes(graph, value.name) for value in model.graph.input if value.name in shapes),
        "output_bytes": sum(_bytes(graph, value.name) for value in model.graph.output),
        "live_bytes": _peak(model, graph, constant),
        "uncounted": uncounted,
    }


def _inferred(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return value → its shape and the bytes of a number, of all values whose shapes ONNX can tell."""
    import onnx

    model = light(path)
    for value in model.graph.input:
        if value.name in shapes:
            value.type.tensor_type.shape.Clear()
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for value in model.graph.output:  # symbols of the file stand in the way of numbers
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    del model.graph.value_info[:]
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        said = next((line for line in str(error).splitlines() if "error" in line.lower()), str(error))
        raise WorkError(f"{path}: inputs of {_words(shapes)} do not fit the graph: {said.strip()[:200]}") from None
    return dict(_shapes(model))


def _shapes(model: ModelProto) -> Iterator[tuple[str, tuple[tuple[int, ...], int]]]:
    from onnx import helper

    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            width = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize if kind.elem_type else 4
            yield value.name, (tuple(dim.dim_value for dim in kind.shape.dim), width)
    for tensor in model.graph.initializer:
        yield tensor.name, (tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _words(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())


def _attributes(node: NodeProto) -> bytes:
    return b"".join(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)


def _bytes(graph: Mapping[str, tuple[tuple[int, ...], int]], name: str) -> int:
    shape, width = graph.get(name, ((0,), 0))
    return math.prod(shape) * width


def _live(model: ModelProto) -> set[str]:
    """Return the values from which an output is made."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):  # a valid graph has its nodes in the order of their results
        if needed & {*node.output}:
            needed.update(node.input)
            needed.update(name for inner in _captured(node) for name in inner)
    return needed


def _captured(node: NodeProto) -> Iterator[set[str]]:
    from llama_bench import graph

    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in graph.graphs(body):
                for one in inner.node:
                    yield {*one.input}


def _peak(model: ModelProto, graph: Mapping[str, tuple[tuple[int, ...], int]], constant: set[str]) -> int:
    """Return the most bytes of inputs and results that are alive at once when nodes run in their order."""
    last = {name: at for at, node in enumerate(model.graph.node) for name in node.input}
    for value in model.graph.output:
        last[value.name] = len(model.graph.node)
    alive = {value.name: _bytes(graph, value.name) for value in model.graph.input if value.name not in constant}
    now = most = sum(alive.values())
    for at, node in enumerate(model.graph.node):
        for name in node.output:
            if name and name not in constant:
                alive[name] = _bytes(graph, name)
                now += alive[name]
        most = max(most, now)
        for name in {*node.input, *node.output}:
            if last.get(name, at) <= at:
                now -= alive.pop(name, 0)
    return most
