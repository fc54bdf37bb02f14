"""Weights in a few bits: linear layers as MatMulNBits, the embedding table as GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

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
}
"""Method → function of one weight [K, N]; `gptq` also wants what the layer sees."""


def work(given: Work) -> None:
    """Quantise the linear layers of the source's graph one at a time; holds one of them and what is quantised."""
    options: Weights = given.options
    model = files.read(given.source)
    layers = linear.find(model.graph, options.exclude, WHAT)
    form = Form(options.bits, options.block_size, options.symmetric)
    for layer in layers:
        _check(layer, form)
    installed: dict[ir.Value, tuple[ir.Value, ...]] = {}  # a weight that two layers share is quantised once
    for layer, packed in _quantised(given, model, layers, form):
        if layer.weight not in installed:
            installed[layer.weight] = _constants(layer, packed())
        _install(layer, installed[layer.weight], options)
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
    given: Work, model: ir.Model, layers: list[Linear], form: Form
) -> Iterator[tuple[Linear, Callable[[], Packed]]]:
    """Yield each layer and the function that quantises its weight; every layer must be installed before the next."""
    options: Weights = given.options
    if options.method != "gptq":
        method = METHODS[options.method]
        yield from ((layer, partial(_rounded, method, layer, form)) for layer in layers)
        return
    alike: dict[ir.Value, list[Linear]] = {}
    for layer in layers:
        alike.setdefault(layer.x, []).append(layer)
    try:
        forward = calibration.Forward(model, calibration.feeds(given, options, model.graph), given.state)
        for group in alike.values():
            second = hessian(*forward.at(group[0].x))
            yield from ((layer, partial(_learned, layer, second, form)) for layer in group)
    except LlamaBenchError as error:
        raise WorkError(f"{WHAT} gptq: {error}") from error


def _rounded(method: Callable[[Floats, Form], Packed], layer: Linear, form: Form) -> Packed:
    return method(layer.matrix(), form)


def _learned(layer: Linear, second: Tensor, form: Form) -> Packed:
    try:
        return gptq(layer.matrix(), second, form)
    except WorkError as error:
        raise WorkError(f"{WHAT} gptq: node {layer.node.name}: {error}") from error


def _constants(layer: Linear, packed: Packed) -> tuple[ir.Value, ...]:
    """Put the quantised weight into the layer's graph: weight, scales and zero points, if there are any."""
    graph, name, dtype = layer.node.graph, layer.weight.name or layer.node.name, layer.weight.dtype
    assert graph is not None and dtype is not None
    parts = {"quantised": packed.weight, "scales": packed.scales.astype(dtype.numpy()), "zero": packed.zero_points}
    return tuple(
        linear.add_constant(graph, f"{name}.{part}", array) for part, array in parts.items() if array is not None
    )


def _install(layer: Linear, constants: tuple[ir.Value, ...], options: Weights) -> None:
    import onnx_ir as ir

    inputs, outputs = layer.shape
    attributes = {"K": inputs, "N": outputs, "bits": options.bits, "block_size": options.block_size}
    if options.accuracy_level:
        attributes["accuracy_level"] = options.accuracy_level
    product = ir.node(
        "MatMulNBits", [layer.x, *constants], attributes, domain=CONTRIB, name=f"{layer.node.name}_q{options.bits}"
    )
    linear.replace(layer, [product])


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
    data, scales, *zero_points = _constants(rows, flat)
    attributes = {"bits": form.bits, "block_size": form.block_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [data, gather.inputs[1], scales, *zero_points]
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
