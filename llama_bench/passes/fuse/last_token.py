"""Of what the last layer computes for every token, only what the last token's logits are made from."""

from __future__ import annotations

import onnx_ir as ir

from llama_bench.passes.fuse.values import CONTRIB, constant, constant_shape, shape_of

ELEMENTWISE = {("", "Add"), ("", "Mul"), ("", "Sigmoid"), (CONTRIB, "QuickGelu")}
NORMS = {("", "SimplifiedLayerNormalization"), (CONTRIB, "SkipSimplifiedLayerNormalization")}


def keep_last_token(model: ir.Model) -> int:
    """Take the last token before the last layer's linear layers and not behind them; say how often.

    A layer's output projection, feed-forward network and norms work on each token by itself, so what is cut off behind
    them need not go in. Keys and values of all tokens stay.
    """
    return sum(_pull_up(model.graph, node) for node in list(model.graph) if _takes_last(node))


def _takes_last(node: ir.Node) -> bool:
    """Whether `node` is [:, -1:] of a value [B, S, …]."""
    if node.op_type != "Slice" or node.domain or len(node.inputs) < 4:
        return False
    starts, ends, axes, *steps = (constant(value) for value in node.inputs[1:])
    one = all(step is not None and step.tolist() == [1] for step in steps)
    last = starts is not None and starts.tolist() == [-1] and ends is not None and ends[0] >= 2**31 - 1
    return one and last and axes is not None and axes.tolist() == [1]


def _pull_up(graph: ir.Graph, cut: ir.Node) -> bool:
    """Move `cut` in front of all nodes that work on each token by itself and only for it; False where there is none."""
    below: set[ir.Node] = {cut}
    for node in reversed(list(graph)):
        uses = [use.node for output in node.outputs for use in output.uses()]
        kept = any(output.is_graph_output() for output in node.outputs)
        if uses and not kept and all(use in below for use in uses) and _by_token(node):
            below.add(node)
    below.remove(cut)
    entries = {
        value: None
        for node in graph
        if node in below
        for value in node.inputs
        if value is not None and value.producer() not in below and _is_of_tokens(value)
    }
    if not below:
        return False
    for value in entries:
        taken = ir.node("Slice", [value, *cut.inputs[1:]], name=f"{value.name}.last")
        taken.outputs[0].name, taken.outputs[0].type = f"{value.name}.last", value.type
        taken.outputs[0].shape = _one_token(value)
        inside = [use for use in value.uses() if use.node in below]
        readers = {use.node for use in inside}
        graph.insert_before(next(node for node in graph if node in readers), [taken])
        for use in inside:
            use.node.replace_input_with(use.idx, taken.outputs[0])
    for node in below:
        for output in node.outputs:
            output.shape = _one_token(output)
    source = cut.inputs[0]
    assert source is not None
    ir.convenience.replace_all_uses_with(cut.outputs[0], source, replace_graph_outputs=True)
    graph.remove([cut], safe=True)
    return True


def _by_token(node: ir.Node) -> bool:
    """Whether `node` makes of each token [B, S, …] what it makes of it alone."""
    kind, read = (node.domain, node.op_type), [value for value in node.inputs if value is not None]
    if kind == ("", "MatMul"):
        return _is_of_tokens(read[0]) and len(constant_shape(read[1]) or ()) == 2
    if kind == ("", "Split"):
        return _is_of_tokens(read[0]) and node.attributes.get_int("axis", 0) == -1
    if kind in NORMS or kind in ELEMENTWISE:
        tokens = {shape_of(value)[:2] for value in read if _is_of_tokens(value)}
        return len(tokens) == 1 and all(_is_of_tokens(value) or _is_vector(value) for value in read)
    return False


def _is_of_tokens(value: ir.Value) -> bool:
    return constant_shape(value) is None and len(shape_of(value)) == 3


def _is_vector(value: ir.Value) -> bool:
    return len(constant_shape(value) or (0, 0)) <= 1


def _one_token(value: ir.Value) -> ir.Shape | None:
    return None if value.shape is None else ir.Shape([value.shape[0], 1, *list(value.shape)[2:]])
