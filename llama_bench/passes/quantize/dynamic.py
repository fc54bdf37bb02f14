"""Linear layers in int8: weights once and for all, what they are multiplied with anew in every run.

With one scale for a whole tensor it is ONNX's own DynamicQuantizeLinear → MatMulInteger → Cast → Mul, of which ONNX
Runtime makes MatMulIntegerToFloat or DynamicQuantizeMatMul. Trained models have single tokens with numbers a thousand
times as large as those of all others, which that scale rounds to nothing; so each token can have its own, for which
ONNX has no operator. Layers that read one value share its quantised form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.errors import LlamaBenchError, WorkError
from llama_bench.passes import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import calibration, linear
from llama_bench.passes.quantize.blocks import Floats
from llama_bench.passes.quantize.linear import Linear
from llama_bench.passes.quantize.options import Dynamic
from llama_bench.passes.quantize.smooth import smooth

if TYPE_CHECKING:
    import onnx_ir as ir

WHAT = "quantize dynamic"
CONTRIB = "com.microsoft"

OUTPUTS_AT_ONCE = 1024
"""Outputs whose weights are worked on together; it bounds the memory that their copies take."""


def work(given: Work) -> None:
    """Quantise the linear layers of the source's graph one at a time; holds one of them and what is quantised."""
    import onnx_ir as ir

    options: Dynamic = given.options
    model = files.read(given.source)
    alike: dict[ir.Value, list[Linear]] = {}
    for layer in linear.find(model.graph, options.exclude, WHAT):
        if layer.weight.dtype != ir.DataType.FLOAT:
            raise WorkError(f"{WHAT}: node {layer.node.name}: its weight is {layer.weight.dtype}, not FLOAT")
        alike.setdefault(layer.x, []).append(layer)
    quantised = by_token if options.activations == "token" else by_tensor
    for layers in _smoothed(given, model, list(alike.values())):
        x = quantised(layers[0])
        for layer in layers:
            _install(layer, x, *_constants(layer, options))
    model.graph.opset_imports[CONTRIB] = 1
    files.write(model, given.destination)


def _smoothed(given: Work, model: ir.Model, groups: Sequence[Sequence[Linear]]) -> Iterator[Sequence[Linear]]:
    """Yield the layers that read one value; they must be installed before the next ones are asked for."""
    options: Dynamic = given.options
    if options.smooth is None:
        yield from groups
        return
    try:
        forward = calibration.Forward(model, calibration.feeds(given, options, model.graph), given.state)
        for layers in groups:
            x = layers[0].x
            [seen] = forward.at(x)
            smoothed = smooth(layers, seen, options.smooth)
            if smoothed[0].x is x and smoothed[0].factors is not None:  # the norm that makes it was changed
                forward.divide(x, smoothed[0].factors)
            yield smoothed
    except LlamaBenchError as error:
        raise WorkError(f"{WHAT} smooth: {error}") from error


@dataclass(frozen=True, slots=True)
class Quantised:
    """What layers read, as uint8 `numbers`: (numbers − `zero_point`) · `scale`, by token where it is `of_tokens`."""

    numbers: ir.Value
    scale: ir.Value
    zero_point: ir.Value
    of_tokens: bool


def by_tensor(layer: Linear) -> Quantised:
    """Quantise what `layer` reads, just before it, with one scale and one zero point."""
    import onnx_ir as ir

    node = ir.node("DynamicQuantizeLinear", [layer.x], num_outputs=3, name=f"{layer.x.name}_quantised")
    numbers, scale, zero_point = node.outputs
    linear.insert_before(layer, [node])
    return Quantised(numbers, scale, zero_point, of_tokens=False)


def by_token(layer: Linear) -> Quantised:
    """Quantise what `layer` reads, just before it, with a scale [..., 1] for each token and the zero point 128.

    Unsigned: MLAS multiplies signed numbers on this side 50 times slower on an x86 CPU.
    """
    import onnx_ir as ir

    x, graph = layer.x, layer.node.graph
    assert graph is not None
    name, nodes = f"{x.name}_quantised", []

    def add(op: str, inputs: list[ir.Value], last: str, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes, name=f"{name}_{last}"))
        return nodes[-1].outputs[0]

    def constant(what: str, number: Any) -> ir.Value:
        return linear.constant(graph, f"int8.{what}", number)

    # opset 18 made the axes of a reduction an input
    axes = {"axes": [-1]} if graph.opset_imports[""] < 18 else {}
    last = [] if axes else [constant("last_axis", np.array([-1]))]
    high = add("ReduceMax", [x, *last], "high", keepdims=1, **axes)
    low = add("ReduceMin", [x, *last], "low", keepdims=1, **axes)
    largest = add("Max", [high, add("Neg", [low], "minus_low")], "largest")
    scale = add("Mul", [largest, constant("step", np.float32(1 / 127))], "scale")
    # QuantizeLinear has scales along one axis, so the tokens of all sequences come in a row
    scales = add("Reshape", [scale, constant("row", np.array([-1]))], "scales")
    tokens = add("Reshape", [x, constant(f"rows_{layer.shape[0]}", np.array([-1, layer.shape[0]]))], "tokens")
    middle = ir.tensor(np.array([128], np.uint8))
    middles = add("ConstantOfShape", [add("Shape", [scales], "count")], "middles", value=middle)
    rows = add("QuantizeLinear", [tokens, scales, middles], "rows", axis=0)
    numbers = add("Reshape", [rows, add("Shape", [x], "shape")], "numbers")
    linear.insert_before(layer, nodes)
    return Quantised(numbers, scale, constant("middle", np.uint8(128)), of_tokens=True)


def _install(
    layer: Linear, x: Quantised, weight: ir.Value, scale: ir.Value, zero_point: ir.Value | None = None
) -> None:
    import onnx_ir as ir

    name, graph = layer.node.name, layer.node.graph
    assert graph is not None
    points = [] if zero_point is None else [zero_point]
    if x.of_tokens:
        one = linear.constant(graph, "int8.one", np.float32(1))
        inputs = [x.numbers, weight, one, scale, x.zero_point, *points]
        product = ir.node("MatMulIntegerToFloat", inputs, domain=CONTRIB, name=f"{name}_int8")
        scaled = ir.node("Mul", [product.outputs[0], x.scale], name=f"{name}_scaled")
        linear.replace(layer, [product, scaled])
    else:
        product = ir.node("MatMulInteger", [x.numbers, weight, x.zero_point, *points], name=f"{name}_int8")
        cast = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_cast")
        scales = ir.node("Mul", [x.scale, scale], name=f"{name}_scales")
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
