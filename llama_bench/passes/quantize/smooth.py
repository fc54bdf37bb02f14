"""SmoothQuant (Xiao, Lin, Seznec, Wu, Demouth & Han 2023): channels that are large in every token go to the weights.

x · W = (x / s) · (s · W) with a factor s for each channel, so what is multiplied and what it is multiplied with share
the difficulty of rounding. 1 / s goes into the norm that makes x where one does, else into a Mul.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.passes.quantize import linear
from llama_bench.passes.quantize.blocks import Floats
from llama_bench.passes.quantize.linear import Linear

if TYPE_CHECKING:
    import onnx_ir as ir

    from llama_bench.passes.quantize.calibration import Forward

LEAST = 1e-5
"""What a largest number counts at least, as in the authors' code: a channel may be silent on the text."""

NORMS = {
    ("", "SimplifiedLayerNormalization"): 1,
    ("", "RMSNormalization"): 1,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): 2,
}
"""Operator that ends with a product by a vector → the place of that vector among its inputs."""


def smooth(layers: Sequence[Linear], seen: Sequence[np.ndarray[Any, Any]], strength: float) -> list[Linear]:
    """Move large channels from what `layers` all read into their weights, and return the layers as they are now.

    `seen` are arrays [..., K] of what they read. `strength` 0 leaves weights equally large in all channels, 1 what
    is read.
    """
    activations = np.max([np.abs(array).reshape(-1, array.shape[-1]).max(0) for array in seen], axis=0)
    weights = np.max([np.abs(layer.matrix()).max(1) for layer in layers], axis=0)
    factors = np.maximum(activations, LEAST) ** strength / np.maximum(weights, LEAST) ** (1 - strength)
    factors = np.maximum(factors, LEAST).astype(np.float32)
    _divide(layers, factors)
    return [replace(layer, factors=factors) for layer in layers]


def smoothed(
    forward: Forward, layers: Sequence[Linear], strength: float
) -> tuple[list[Linear], list[np.ndarray[Any, Any]]]:
    """Smooth `layers`, which read one value, by what `forward` shows there; return them and what they read now."""
    x = layers[0].x
    [seen] = forward.at(x)
    after = smooth(layers, seen, strength)
    factors = after[0].factors
    assert factors is not None
    if after[0].x is x:  # the norm that makes it was changed
        forward.divide(x, factors)
    return after, [array / factors for array in seen]


def _divide(layers: Sequence[Linear], factors: Floats) -> None:
    """Let what `layers` read be smaller by `factors`."""
    import onnx_ir as ir

    x, graph = layers[0].x, layers[0].node.graph
    assert graph is not None
    place = _place(x)
    if place is not None and {use.node for use in x.uses()} == {layer.node for layer in layers}:
        node, i = place
        vector = node.inputs[i]
        assert vector is not None and vector.const_value is not None
        smaller = vector.const_value.numpy().astype(np.float32) / factors
        node.replace_input_with(i, linear.add_constant(graph, f"{vector.name}.smooth", smaller))
        return
    inverse = linear.add_constant(graph, f"{x.name}.smooth", 1 / factors)
    divided = ir.node("Mul", [x, inverse], name=f"{x.name}_smooth")
    linear.insert_before(layers[0], [divided])
    for layer in layers:
        layer.node.replace_input_with(0, divided.outputs[0])


def _place(x: ir.Value) -> tuple[ir.Node, int] | None:
    """Return the node that makes `x` as a product with a constant vector [K], and where it reads that."""
    node = x.producer()
    if node is None or x is not node.outputs[0]:
        return None
    places = [NORMS[key]] if (key := (node.domain, node.op_type)) in NORMS else []
    if node.op_type == "Mul" and node.domain == "":
        places = [0, 1]
    for i in places:
        vector = node.inputs[i]
        held = None if vector is None else vector.const_value
        if held is not None and len(held.shape) == 1 and held.size > 1:
            return node, i
    return None
