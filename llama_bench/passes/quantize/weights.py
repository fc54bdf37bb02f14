"""Weights in a few bits: linear layers as MatMulNBits, the embedding table as GatherBlockQuantized.

Zero points are whole numbers: ONNX Runtime multiplies by fractional ones 170 times slower. What they cannot say,
offsets can, by a small product beside the large one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from llama_bench.errors import LlamaBenchError, WorkError
from llama_bench.passes import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import blocks, calibration, linear
from llama_bench.passes.quantize.blocks import Floats, Form, Packed
from llama_bench.passes.quantize.gptq import gptq, hessian
from llama_bench.passes.quantize.linear import Linear
from llama_bench.passes.quantize.options import Weights

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

WHAT = "quantize weights"
CONTRIB = "com.microsoft"

METHODS: dict[str, Callable[[Floats, Form], Packed]] = {
    "rtn": blocks.rtn,
    "hqq": blocks.hqq,
    "k_quant": blocks.k_quant,
    "offsets": blocks.offset,
}
"""Method → function of one weight [K, N]; `gptq` also wants what the layer sees."""


def work(given: Work) -> None:
    """Quantise the linear layers of the source's graph one at a time; holds one of them and what is quantised."""
    options: Weights = given.options
    model = files.read(given.source)
    if options.method == "offsets":
        files.infer_shapes(model)
    layers = linear.find(model.graph, options.exclude, WHAT)
    form = Form(options.bits, options.block_size, options.symmetric)
    forms = dict.fromkeys((layer.node for layer in layers), form)
    if options.head_bits is not None and (head := linear.find(model.graph, (), WHAT)[-1].node) in forms:
        forms[head] = replace(form, bits=options.head_bits)
    for layer in layers:
        _check(layer, form)
    installed: dict[ir.Value, dict[str, ir.Value]] = {}  # a weight that two layers share is quantised once
    sums: dict[ir.Value, ir.Value] = {}
    for layer, packed in _quantised(given, model, layers, forms):
        if layer.weight not in installed:
            installed[layer.weight] = _constants(layer, packed())
        _install(layer, installed[layer.weight], forms[layer.node], options.accuracy_level, sums)
    if options.embeddings:
        _embeddings(model.graph, form)
    model.graph.opset_imports[CONTRIB] = 1
    files.write(model, given.destination)


def _check(layer: Linear, form: Form) -> None:
    inputs = layer.shape[0]
    if inputs % form.block_size:
        raise WorkError(
            f"{WHAT}: node {layer.node.name}: block_size {form.block_size} does not divide its {inputs} inputs"
        )


def _quantised(
    given: Work, model: ir.Model, layers: list[Linear], forms: Mapping[ir.Node, Form]
) -> Iterator[tuple[Linear, Callable[[], Packed]]]:
    """Yield each layer and the function that quantises its weight; every layer must be installed before the next."""
    options: Weights = given.options
    if options.method != "gptq":
        method = METHODS[options.method]
        yield from ((layer, partial(_rounded, method, layer, forms[layer.node])) for layer in layers)
        return
    alike: dict[ir.Value, list[Linear]] = {}
    for layer in layers:
        alike.setdefault(layer.x, []).append(layer)
    try:
        forward = calibration.Forward(model, calibration.feeds(given, options, model.graph), given.state)
        for group in alike.values():
            second = hessian(*forward.at(group[0].x))
            yield from ((layer, partial(_learned, layer, second, forms[layer.node])) for layer in group)
    except LlamaBenchError as error:
        raise WorkError(f"{WHAT} gptq: {error}") from error


def _rounded(method: Callable[[Floats, Form], Packed], layer: Linear, form: Form) -> Packed:
    return method(layer.matrix(), form)


def _learned(layer: Linear, second: Tensor, form: Form) -> Packed:
    try:
        return gptq(layer.matrix(), second, form)
    except WorkError as error:
        raise WorkError(f"{WHAT} gptq: node {layer.node.name}: {error}") from error


def _constants(layer: Linear, packed: Packed) -> dict[str, ir.Value]:
    """Put the parts of a quantised weight that there are into the layer's graph: weight, scales, zero points, offsets.

    The offsets are turned, [K / block, N], for a product with the sums of blocks.
    """
    graph, name, dtype = layer.node.graph, layer.weight.name or layer.node.name, layer.weight.dtype
    assert graph is not None and dtype is not None
    offsets = None if packed.offsets is None else np.ascontiguousarray(packed.offsets.T.astype(dtype.numpy()))
    scales = packed.scales.astype(dtype.numpy())
    parts = {"quantised": packed.weight, "scales": scales, "zero": packed.zero_points, "offsets": offsets}
    return {
        part: linear.add_constant(graph, f"{name}.{part}", array) for part, array in parts.items() if array is not None
    }


def _install(
    layer: Linear, parts: Mapping[str, ir.Value], form: Form, level: int, sums: dict[ir.Value, ir.Value]
) -> None:
    """Let MatMulNBits compute the layer's product, and what the offsets of its blocks add.

    x · (W + offsets) = x · W + (sums of x over the blocks) · offsets; `sums` holds those that are in the graph already.
    """
    import onnx_ir as ir

    (inputs, outputs), name = layer.shape, layer.node.name
    attributes = {"K": inputs, "N": outputs, "bits": form.bits, "block_size": form.block_size}
    if level:
        attributes["accuracy_level"] = level
    read = [layer.x, *(parts[part] for part in ("quantised", "scales", "zero") if part in parts)]
    nodes = [ir.node("MatMulNBits", read, attributes, domain=CONTRIB, name=f"{name}_q{form.bits}")]
    if "offsets" in parts:
        if layer.x not in sums:
            sums[layer.x] = _block_sums(layer, form)
        added = ir.node("MatMul", [sums[layer.x], parts["offsets"]], name=f"{name}_offsets")
        both = ir.node("Add", [nodes[0].outputs[0], added.outputs[0]], name=f"{name}_with_offsets")
        nodes += [added, both]
    linear.replace(layer, nodes)


def _block_sums(layer: Linear, form: Form) -> ir.Value:
    """Sum what the layer reads [..., K] over its blocks, [..., K / block], just before it."""
    import onnx_ir as ir

    graph, known = layer.node.graph, layer.x.shape or layer.node.outputs[0].shape
    assert graph is not None
    if known is None:
        raise WorkError(f"{WHAT} offsets: node {layer.node.name}: how many axes its input has is not known")
    leading = [0] * (len(known) - 1)  # as they are
    shape = np.array([*leading, -1, form.block_size])
    cut = [layer.x, linear.constant(graph, f"blocks_of_{form.block_size}_{len(known)}", shape)]
    blocked = ir.node("Reshape", cut, name=f"{layer.x.name}_blocks")
    axis = linear.constant(graph, "last_axis_of_blocks", np.array([-1]))
    summed = ir.node("ReduceSum", [blocked.outputs[0], axis], {"keepdims": 0}, name=f"{layer.x.name}_sums")
    linear.insert_before(layer, [blocked, summed])
    return summed.outputs[0]


def _embeddings(graph: ir.Graph, form: Form) -> None:
    """Make the look-up of token embeddings one of quantised rows. Raises WorkError when there is none."""
    import onnx_ir as ir

    gather = next((node for node in graph if _is_embedding(node)), None)
    if gather is None:
        raise WorkError(f"{WHAT}: embeddings: the graph has no Gather of the rows of a constant matrix by input_ids")
    table = gather.inputs[0]
    assert table is not None and table.const_value is not None and table.dtype is not None
    rows = Linear(gather, table, transposed=True)  # a row is what an output of a linear layer is
    _check(rows, form)
    packed = blocks.rtn(rows.matrix(), form)
    flat = replace(packed, weight=packed.weight.reshape(len(packed.weight), -1))
    parts = _constants(rows, flat)
    attributes = {"bits": form.bits, "block_size": form.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [parts["quantised"], gather.inputs[1], parts["scales"], *(parts[part] for part in parts if part == "zero")]
    name = f"{gather.name}_q{form.bits}"
    linear.replace(rows, [ir.node("GatherBlockQuantized", inputs, attributes, domain=CONTRIB, name=name)])


def _is_embedding(node: ir.Node) -> bool:
    """Whether `node` looks up rows of a constant matrix, of floating point, by the graph's tokens."""
    if node.op_type != "Gather" or node.domain != "" or node.attributes.get_int("axis", 0) != 0:
        return False
    table, tokens = node.inputs
    held = None if table is None else table.const_value
    rows = held is not None and len(held.shape) == 2 and held.dtype.is_floating_point()
    return rows and tokens is not None and tokens.name == "input_ids"
