"""Linear layers in int8: weights once and for all, what they are multiplied with anew in every run.

Written in ONNX's own operators, DynamicQuantizeLinear → MatMulInteger → Cast → Mul, of which ONNX Runtime makes
MatMulIntegerToFloat or DynamicQuantizeMatMul. Layers that read one value share its DynamicQuantizeLinear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.errors import WorkError
from llama_bench.passes.fuse import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import linear
from llama_bench.passes.quantize.blocks import Floats
from llama_bench.passes.quantize.linear import Linear
from llama_bench.passes.quantize.options import Dynamic

if TYPE_CHECKING:
    import onnx_ir as ir

WHAT = "quantize dynamic"

OUTPUTS_AT_ONCE = 1024
"""Outputs whose weights are worked on together; it bounds the memory that their copies take."""


def work(given: Work) -> None:
    """Quantise the linear layers of the source's graph one at a time; holds one of them and what is quantised."""
    import onnx_ir as ir

    options: Dynamic = given.options
    model = files.read(given.source)
    shared: dict[ir.Value, ir.Node] = {}
    installed: dict[ir.Value, tuple[ir.Value, ...]] = {}  # a weight that two layers share is quantised once
    for layer in linear.find(model.graph, options.exclude, WHAT):
        if layer.weight.dtype != ir.DataType.FLOAT:
            raise WorkError(f"{WHAT}: node {layer.node.name}: its weight is {layer.weight.dtype}, not FLOAT")
        if layer.weight not in installed:
            installed[layer.weight] = _constants(layer, options)
        if layer.x not in shared:
            shared[layer.x] = _quantise(layer)
        _install(layer, shared[layer.x], *installed[layer.weight])
    files.write(model, given.destination)


def _quantise(layer: Linear) -> ir.Node:
    """Put the node that quantises what `layer` reads before it: uint8 numbers, their scale and their zero point."""
    import onnx_ir as ir

    node = ir.node("DynamicQuantizeLinear", [layer.x], num_outputs=3, name=f"{layer.x.name}_quantised")
    for value, dtype in zip(node.outputs, (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8), strict=True):
        value.type = ir.TensorType(dtype)
    assert layer.node.graph is not None
    layer.node.graph.insert_before(layer.node, node)
    return node


def _install(
    layer: Linear, quantised: ir.Node, weight: ir.Value, scale: ir.Value, zero_point: ir.Value | None = None
) -> None:
    import onnx_ir as ir

    x, x_scale, x_zero_point = quantised.outputs
    name = layer.node.name
    inputs = [x, weight, x_zero_point, *([zero_point] if zero_point is not None else [])]
    product = ir.node("MatMulInteger", inputs, name=f"{name}_int8")
    cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
    scales = ir.node("Mul", [x_scale, scale], name=f"{name}_scales")
    scaled = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{name}_scaled")
    linear.replace(layer, [product, cast, scales, scaled])


def _constants(layer: Linear, options: Dynamic) -> tuple[ir.Value, ...]:
    """Put the quantised weight [in, out], its scales and, of unsigned ones, zero points into the layer's graph."""
    graph, name = layer.node.graph, layer.weight.name
    assert graph is not None
    arrays = dict(zip(("int8", "scale", "zero_point"), rounded(layer.matrix(), options), strict=False))
    return tuple(linear.add_constant(graph, f"{name}.{part}", array) for part, array in arrays.items())


def rounded(matrix: Floats, options: Dynamic) -> tuple[np.ndarray[Any, Any], ...]:
    """Return `matrix` [in, out] in 8 (or 7) bits, its scale [out] or [], and zero points of unsigned numbers.

    The ranges are those of ONNX Runtime's own quantiser: symmetric −127…127, or 0…255 over the range and zero.
    """
    axis = 0 if options.per_channel else None
    low, high = np.minimum(matrix.min(axis), 0), np.maximum(matrix.max(axis), 0)
    if options.weight_type == "qint8":
        largest = 63 if options.reduce_range else 127
        scale, zero_point = np.maximum(-low, high) / largest, np.zeros_like(low)
        least = -largest
    else:
        largest = 127 if options.reduce_range else 255
        scale = (high - low) / largest
        zero_point = np.round(-low / np.where(scale == 0, 1, scale))
        least = 0
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    numbers = np.empty(matrix.shape, options.weight_type.removeprefix("q"))
    for start in range(0, matrix.shape[1], OUTPUTS_AT_ONCE):
        some = slice(start, start + OUTPUTS_AT_ONCE)
        of_some = some if options.per_channel else ()
        q = np.round(matrix[:, some] / scale[of_some]) + zero_point[of_some]
        numbers[:, some] = q.clip(least, largest)
    return (numbers, scale) if options.weight_type == "qint8" else (numbers, scale, zero_point.astype(np.uint8))
