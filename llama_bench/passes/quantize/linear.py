"""The linear layers of a graph: products with a constant matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench import threads
from llama_bench.errors import WorkError
from llama_bench.passes.names import matches, unmatched

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Linear:
    """A MatMul or Gemm with a constant: `weight` [in, out], or [out, in] where it is `transposed`.

    `factors` [in], where there are any, belong to the weight.
    """

    node: ir.Node
    weight: ir.Value
    transposed: bool
    factors: np.ndarray[Any, np.dtype[np.float32]] | None = None

    @property
    def x(self) -> ir.Value:
        """What is multiplied, as the graph has it now."""
        x = self.node.inputs[0]
        assert x is not None
        return x

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        assert self.weight.const_value is not None
        rows, columns = self.weight.const_value.shape.numpy()
        return (columns, rows) if self.transposed else (rows, columns)

    def matrix(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Read the weight, float32 [in, out], into memory of its own."""
        import onnx_ir as ir

        tensor = self.weight.const_value
        assert tensor is not None
        array, matrix = tensor.numpy(), np.empty(self.shape, np.float32)
        if self.transposed:
            threads.turned(array, matrix)
        else:
            _copy(array, matrix)
        del array
        if isinstance(tensor, ir.ExternalTensor):
            tensor.release()  # else all that was ever read of the file stays mapped
        if self.factors is not None:
            matrix *= self.factors[:, None]
        return matrix


def _copy(array: np.ndarray[Any, Any], matrix: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    """Copy the numbers of `array`, of any type, into `matrix`."""

    def some(start: int, end: int) -> None:
        matrix[start:end] = array[start:end]

    threads.rows(some, matrix.shape, matrix.itemsize)


def find(graph: ir.Graph, exclude: Sequence[str], what: str) -> list[Linear]:
    """Return the linear layers of `graph`, in its order, without those whose names match `exclude`.

    Raises WorkError, which begins with `what`, when there is none or when a pattern matches none.
    """
    layers = [layer for node in graph if (layer := _linear(node)) is not None]
    if not layers:
        raise WorkError(f"{what}: the graph has no MatMul or Gemm with a constant matrix in floating point")
    if (pattern := unmatched([layer.node for layer in layers], exclude)) is not None:
        raise WorkError(f"{what}: exclude {pattern!r} matches none of the {len(layers)} linear layers")
    kept = [layer for layer in layers if not matches(layer.node, exclude)]
    if not kept:
        raise WorkError(f"{what}: exclude leaves none of the {len(layers)} linear layers")
    return kept


def alike(layers: Sequence[Linear], what: str) -> list[list[Linear]]:
    """Return `layers` in groups that read one value, in the order of their first.

    Raises WorkError, which begins with `what`, when a weight is not in fp32.
    """
    import onnx_ir as ir

    groups: dict[ir.Value, list[Linear]] = {}
    for layer in layers:
        if layer.weight.dtype != ir.DataType.FLOAT:
            raise WorkError(f"{what}: node {layer.node.name}: its weight is {layer.weight.dtype}, not FLOAT")
        groups.setdefault(layer.x, []).append(layer)
    return list(groups.values())


def _linear(node: ir.Node) -> Linear | None:
    if node.op_type == "MatMul" and node.domain == "":
        turned = False
    elif node.op_type == "Gemm" and node.domain == "" and _is_plain(node):
        turned = bool(node.attributes.get_int("transB", 0))
    else:
        return None
    x, weight = node.inputs[:2]
    if x is None or weight is None or x.const_value is not None:
        return None
    before = weight.producer()
    if before is not None and before.op_type == "Transpose" and before.inputs[0] is not None:
        # without constant folding the exporter leaves nn.Linear's [out, in] to be turned in every run
        weight, turned = before.inputs[0], not turned
    held = weight.const_value
    if held is None or not weight.is_initializer() or len(held.shape) != 2 or not held.dtype.is_floating_point():
        return None
    if 1 in held.shape.numpy():  # positions times RoPE's frequencies, in graphs of onnxscript: no weights
        return None
    return Linear(node, weight, turned)


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm is x · B + C and no more."""
    factors = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    return node.attributes.get_int("transA", 0) == 0 and all(factor == 1.0 for factor in factors)


def replace(layer: Linear, nodes: Sequence[ir.Node]) -> None:
    """Let `nodes`, in order and in no graph yet, compute the layer's product; a Gemm's constant is added after them."""
    import onnx_ir as ir

    node, graph = layer.node, layer.node.graph
    assert graph is not None
    new = [*nodes]
    if len(node.inputs) > 2 and (bias := node.inputs[2]) is not None:
        new.append(ir.node("Add", [new[-1].outputs[0], bias], name=f"{node.name}_bias"))
    for each in new:
        each.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    old, result = node.outputs[0], new[-1].outputs[0]
    result.type, result.shape, result.name, old.name = old.type, old.shape, old.name, None
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def insert_before(layer: Linear, nodes: Sequence[ir.Node]) -> None:
    """Put `nodes`, in order, just before the layer's own."""
    assert layer.node.graph is not None
    layer.node.graph.insert_before(layer.node, nodes)


def constant(graph: ir.Graph, name: str, number: Any) -> ir.Value:
    """Return the graph's constant called `name`, which is made from `number` when it is first asked for."""
    return graph.initializers.get(name) or add_constant(graph, name, np.asarray(number))


def add_constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """Give `graph` a constant under `name`, or the first free name like it, and return it."""
    import onnx_ir as ir

    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
    free = next(n for n in names if n not in graph.initializers)
    tensor = ir.tensor(array, name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
