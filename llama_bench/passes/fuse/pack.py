"""Linear layers that read the same value as one product: query, key and value; gate and up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from llama_bench.passes.fuse.values import add_constant, constant_shape
from llama_bench.passes.made import Made, Rows, release


@dataclass(frozen=True, slots=True)
class Linear:
    """A product with a constant matrix [in, out], and the sum with a constant vector [out] where one follows."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value


def fuse_qkv(model: ir.Model) -> int:
    """Pack the three linear layers of one input into one; say how often. Widths may differ (grouped heads)."""
    return _pack_all(model.graph, 3, "qkv")


def fuse_gate_up(model: ir.Model) -> int:
    """Pack the two linear layers of one input into one; say how often."""
    return _pack_all(model.graph, 2, "gate_up")


def feed_packed(graph: ir.Graph) -> None:
    """Let GroupQueryAttention read the packed product itself where its query, key and value are the parts of one."""
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        query, key, value = node.inputs[:3]
        split = query.producer() if query is not None else None
        if split is not None and split.op_type == "Split" and split.outputs == (query, key, value):
            for i, packed in enumerate((split.inputs[0], None, None)):
                node.replace_input_with(i, packed)
            graph.remove(split, safe=True)


def _pack_all(graph: ir.Graph, size: int, name: str) -> int:
    groups = [group for group in _groups(graph) if len(group) == size and _alike(group)]
    for group in groups:
        _pack(graph, group, f"{group[0].x.name}.{name}")
    feed_packed(graph)
    return len(groups)


def _groups(graph: ir.Graph) -> Iterator[list[Linear]]:
    """Yield the linear layers of each value that has some, in the order of the graph."""
    readers: dict[ir.Value, list[Linear]] = {}
    for node in graph:
        if (linear := _linear(node)) is not None:
            readers.setdefault(linear.x, []).append(linear)
    yield from readers.values()


def _linear(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMul" or node.domain:
        return None
    x, weight = node.inputs
    if x is None or weight is None or len(constant_shape(weight) or ()) != 2:
        return None
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not product.is_graph_output():
        bias = uses[0].node.inputs[1 - uses[0].idx]
        if bias is not None and len(constant_shape(bias) or ()) == 1:
            return Linear(x, weight, bias, uses[0].node.outputs[0])
    return Linear(x, weight, None, product)


def _alike(group: Sequence[Linear]) -> bool:
    kinds = {(linear.weight.dtype, linear.bias is None) for linear in group}
    return len(kinds) == 1 and not any(linear.result.is_graph_output() for linear in group)


def _pack(graph: ir.Graph, group: Sequence[Linear], name: str) -> None:
    x = group[0].x
    packed, widths = _joined([linear.weight for linear in group])
    nodes = [ir.node("MatMul", [x, add_constant(graph, f"{name}.weight", packed)], name=f"{name}.MatMul")]
    biases = [linear.bias for linear in group if linear.bias is not None]
    if biases:
        bias = add_constant(graph, f"{name}.bias", _joined(biases)[0])
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias], name=f"{name}.Add"))
    like = group[0].result
    for node in nodes:  # later fusions and passes look at types and shapes
        node.outputs[0].name, node.outputs[0].type = node.name, like.type
        node.outputs[0].shape = None if like.shape is None else ir.Shape([*list(like.shape)[:-1], sum(widths)])
    sizes = add_constant(graph, f"{name}.widths", np.array(widths, dtype=np.int64))
    split = ir.node("Split", [nodes[-1].outputs[0], sizes], {"axis": -1}, num_outputs=len(group), name=f"{name}.Split")
    readers = {use.node for use in x.uses()}
    first = next(node for node in graph if node in readers)
    graph.insert_before(first, [*nodes, split])
    results = [linear.result for linear in group]
    for part, result in zip(split.outputs, results, strict=True):
        part.name, part.shape, part.type = result.name, result.shape, result.type
    ir.convenience.replace_all_uses_with(results, split.outputs)
    graph.remove([maker for result in results if (maker := result.producer()) is not None], safe=True)


def _joined(values: Sequence[ir.Value]) -> tuple[ir.LazyTensor, list[int]]:
    """Return the constants side by side along their last axis, put together only as they are written, and widths."""
    tensors = [tensor for value in values if (tensor := ir.convenience.get_const_tensor(value)) is not None]
    shapes = [shape for value in values if (shape := constant_shape(value)) is not None]
    widths = [shape[-1] for shape in shapes]
    dtype, joint = tensors[0].dtype, ir.Shape([*shapes[0][:-1], sum(widths)])
    if len(joint) == 1:
        return ir.LazyTensor(
            lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors])), dtype=dtype, shape=joint
        ), widths

    @contextmanager
    def joined() -> Iterator[Rows]:
        arrays = [tensor.numpy() for tensor in tensors]

        def some(target: np.ndarray[Any, Any], start: int, end: int) -> None:
            np.concatenate([array[start:end] for array in arrays], axis=-1, out=target)

        yield some
        arrays.clear()
        for tensor in tensors:
            release(tensor)

    return Made(joined, dtype, joint, None), widths
