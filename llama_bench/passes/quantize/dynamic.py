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
from llama_bench.passes.quantize.channels import rounded
from llama_bench.passes.quantize.linear import Linear
from llama_bench.passes.quantize.options import Dynamic
from llama_bench.passes.quantize.smooth import smoothed

if TYPE_CHECKING:
    import onnx_ir as ir

WHAT = "quantize dynamic"
CONTRIB = "com.microsoft"


def work(given: Work) -> None:
    """Quantise the linear layers of the source's graph one at a time; holds one of them and what is quantised."""
    options: Dynamic = given.options
    model = files.read(given.source)
    groups = linear.alike(linear.find(model.graph, options.exclude, WHAT), WHAT)
    quantised = by_token if options.activations == "token" else by_tensor
    for layers in _smoothed(given, model, groups):
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
            yield smoothed(forward, layers, options.smooth)[0]
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
    said = {"per_channel": options.per_channel, "reduce_range": options.reduce_range}
    found = rounded(layer.matrix(), options.weight_type, **said)
    arrays = dict(zip(("int8", "scale", "zero_point"), found, strict=False))
    return tuple(linear.add_constant(graph, f"{name}.{part}", array) for part, array in arrays.items())
