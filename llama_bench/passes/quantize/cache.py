"""The KV cache in 8 or 4 bits: keys and values of GroupQueryAttention by scales that text tells beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.errors import LlamaBenchError, WorkError
from llama_bench.passes import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import calibration, linear
from llama_bench.passes.quantize.options import Cache

if TYPE_CHECKING:
    import onnx_ir as ir

WHAT = "quantize kv_cache"
OPERATOR = "GroupQueryAttention"
PAST, SCALES = 3, 12
"""Places of GroupQueryAttention's inputs past_key and k_scale; those of the value come after them."""

LARGEST = {8: 127, 4: 7}
"""Bits → the number that the largest key or value becomes. Symmetric: GroupQueryAttention has no zero points."""


def work(given: Work) -> None:
    """Let every layer keep its keys and values in few bits; the graph's past and present are int8, or uint8 pairs.

    Raises WorkError when a layer's cache is not that of a GroupQueryAttention, or when it is quantised already.
    """
    options: Cache = given.options
    model = files.read(given.source)
    layers = _layers(model.graph)
    try:
        forward = calibration.Forward(model, calibration.feeds(given, options, model.graph), given.state)
        seen = [[_largest(arrays, options) for arrays in forward.at(*node.outputs[1:3])] for node in layers]
    except LlamaBenchError as error:
        raise WorkError(f"{WHAT}: {error}") from error
    for node, largest in zip(layers, seen, strict=True):
        _quantise(node, [array / LARGEST[options.bits] for array in largest], options)
    files.write(model, given.destination)


def _largest(arrays: Sequence[np.ndarray[Any, Any]], options: Cache) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the largest size of a number in `arrays` [B, KV, S, D]: [1, KV, 1, D], or [1] for all channels."""
    each = np.max([np.abs(array.astype(np.float32)).max((0, 2), keepdims=True) for array in arrays], axis=0)
    each = np.where(each == 0, 1, each).astype(np.float32)  # a channel that was always zero: any scale will do
    return each if options.per_channel else each.max(keepdims=True).reshape(1)


def _layers(graph: ir.Graph) -> list[ir.Node]:
    """Return the attention of every layer; raises WorkError when a cache cannot be quantised."""
    import onnx_ir as ir

    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    caches = [value for value in graph.inputs if value.name and value.name.startswith("past.")]
    if not caches:
        raise WorkError(f"{WHAT}: the graph has no KV cache")
    for value in caches:
        users = [use.node for use in value.uses()]
        if [user.op_type for user in users] != [OPERATOR]:
            found = ", ".join(f"{user.name} ({user.op_type})" for user in users) or "nothing"
            raise WorkError(f"{WHAT}: {value.name} is read by {found}, not by a {OPERATOR}")
        if value.dtype not in floats:
            raise WorkError(f"{WHAT}: {value.name} is {value.dtype}: quantised already")
    layers = list(dict.fromkeys(use.node for value in caches for use in value.uses()))
    for node in layers:
        if not all(value.is_graph_output() for value in node.outputs[1:3]):
            raise WorkError(f"{WHAT}: node {node.name}: its cache is no output of the graph")
    return layers


def _quantise(node: ir.Node, scales: Sequence[np.ndarray[Any, Any]], options: Cache) -> None:
    """Give `node` the scales of its keys and values, and its cache the type of quantised numbers."""
    import onnx_ir as ir

    assert node.graph is not None
    if len(node.inputs) < SCALES + 2:
        node.resize_inputs(SCALES + 2)
    kind = "PER_CHANNEL" if options.per_channel else "PER_TENSOR"
    for i, (part, scale) in enumerate(zip("kv", scales, strict=True)):
        held = linear.add_constant(node.graph, f"{node.outputs[1 + i].name}.scale", scale)
        node.replace_input_with(SCALES + i, held)
        node.attributes[f"{part}_quant_type"] = ir.AttrString(f"{part}_quant_type", kind)
        past = node.inputs[PAST + i]
        assert past is not None
        for value in (past, node.outputs[1 + i]):
            assert value.shape is not None
            *rest, size = value.shape
            assert isinstance(size, int)
            value.type = ir.TensorType(ir.DataType.INT8 if options.bits == 8 else ir.DataType.UINT8)
            value.shape = ir.Shape([*rest, size * options.bits // 8])
    node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", options.bits)
