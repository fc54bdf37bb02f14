"""Linear layers in int8 by scales that text fixes: ONNX's QuantizeLinear and DequantizeLinear around each product.

A run looks for no scales any more, and engines other than ONNX Runtime know the pattern: OpenVINO multiplies int8 where
it finds it. But one scale serves all tokens, and what the text did not show is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama_bench.errors import LlamaBenchError, WorkError
from llama_bench.passes import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import calibration, linear
from llama_bench.passes.quantize.blocks import Floats
from llama_bench.passes.quantize.channels import rounded
from llama_bench.passes.quantize.linear import Linear
from llama_bench.passes.quantize.options import Static
from llama_bench.passes.quantize.smooth import smoothed

WHAT = "quantize static"

LEAST = 1e-30
"""A scale's least size: what is zero in all of the text still needs one."""


def work(given: Work) -> None:
    """Quantise the linear layers of the source's graph one at a time, each seeing what those before it now make."""
    options: Static = given.options
    model = files.read(given.source)
    groups = linear.alike(linear.find(model.graph, options.exclude, WHAT), WHAT)
    try:
        forward = calibration.Forward(model, calibration.feeds(given, options, model.graph), given.state)
        for layers in groups:
            if options.smooth is None:
                [seen] = forward.at(layers[0].x)
            else:
                layers, seen = smoothed(forward, layers, options.smooth)
            _install(layers, *scale_of(seen, options), options)
    except LlamaBenchError as error:
        raise WorkError(f"{WHAT}: {error}") from error
    files.write(model, given.destination)


def scale_of(seen: Sequence[Floats], options: Static) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return scale and zero point, float32 and uint8 [], with which 0…255 cover what was `seen`.

    A number stands for (number − zero point) · scale.
    """
    everything = np.concatenate([array.ravel() for array in seen])
    low, high = np.percentile(everything, [100 - options.percentile, options.percentile])
    low, high = min(low, 0.0), max(high, 0.0)  # zero must stay zero: masks and padding are
    if options.symmetric:
        scale, zero_point = max(-low, high, LEAST) / 127, 128
    else:
        scale = max(high - low, LEAST) / 255
        zero_point = round(-low / scale)
    return np.array(scale, np.float32), np.array(zero_point, np.uint8)


def _install(
    layers: Sequence[Linear], scale: np.ndarray[Any, Any], zero_point: np.ndarray[Any, Any], options: Static
) -> None:
    """Quantise what `layers` all read, once, and the weight of each."""
    import onnx_ir as ir

    graph, x = layers[0].node.graph, layers[0].x
    assert graph is not None
    of_x = [
        linear.add_constant(graph, f"{x.name}.scale", scale),
        linear.add_constant(graph, f"{x.name}.zero_point", zero_point),
    ]
    numbers = ir.node("QuantizeLinear", [x, *of_x], name=f"{x.name}_quantised")
    back = ir.node("DequantizeLinear", [numbers.outputs[0], *of_x], name=f"{x.name}_dequantised")
    linear.insert_before(layers[0], [numbers, back])
    for layer in layers:
        held = layer.weight.name
        said = {"per_channel": options.per_channel, "reduce_range": options.reduce_range}
        weight, of_weight = rounded(layer.matrix(), "qint8", **said)
        parts = {"int8": weight, "scale": of_weight, "zero_point": np.zeros_like(of_weight, np.int8)}
        inputs = [linear.add_constant(graph, f"{held}.{part}", array) for part, array in parts.items()]
        along = {"axis": 1} if options.per_channel else {}
        matrix = ir.node("DequantizeLinear", inputs, along, name=f"{layer.node.name}_weight")
        product = ir.node("MatMul", [back.outputs[0], matrix.outputs[0]], name=f"{layer.node.name}_int8")
        linear.replace(layer, [matrix, product])
