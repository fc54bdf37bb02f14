"""RMSNorm in its traced forms to one node, and with the sum before it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, pattern

from llama_bench.passes.fuse.values import CONTRIB, constant_shape, scalar


def fuse_norm(model: ir.Model) -> int:
    """Make every RMSNorm a SimplifiedLayerNormalization, which has ONNX's own domain in ONNX Runtime; say how many."""
    traced = RewriteRuleSet([RewriteRule(_traced, _norm_of_traced, _is_norm, name="norm")], commute=True)
    native = RewriteRuleSet([RewriteRule(_native, _norm_of_native, _is_native_norm, name="norm")])
    return int(traced.apply_to_model(model)) + int(native.apply_to_model(model))


def fuse_skip_norm(model: ir.Model) -> int:
    """Make every sum of two equal shapes that a norm follows one node with it; say how many.

    The sum, which the residual stream goes on with, is the node's fourth output.
    """
    count = int(RewriteRuleSet([RewriteRule(_skip, _skip_norm, _is_skip, name="skip_norm")]).apply_to_model(model))
    for node in model.graph:
        if node.op_type == "SkipSimplifiedLayerNormalization":
            total = node.outputs[-1]
            if len(node.outputs) == 4 and not total.uses() and not total.is_graph_output():
                node.resize_outputs(1)
    return count


def _traced(op: Any, x: Any, scale: Any, epsilon: Any) -> Any:
    """dynamo writes 1 / √ as Reciprocal, the TorchScript exporter as Div; ReduceMean got its axes as input in 18."""
    square = op.Pow(x, 2.0)
    mean = pattern.OrValue(
        [op.ReduceMean(square, [-1], keepdims=1), op.ReduceMean(square, axes=[-1], keepdims=1)], tag_var="axes"
    )
    root = op.Sqrt(op.Add(mean, epsilon))
    inverse = pattern.OrValue([op.Reciprocal(root), op.Div(1.0, root)])
    return op.Mul(scale, op.Mul(x, inverse))


def _is_norm(context: Any, scale: ir.Value, epsilon: ir.Value, **_: Any) -> bool:
    return _is_scale(scale) and scalar(epsilon) is not None


def _is_scale(value: ir.Value) -> bool:
    """Whether `value` is a constant vector; in fp32, in which these norms are computed."""
    shape = constant_shape(value)
    return shape is not None and len(shape) == 1 and value.dtype == ir.DataType.FLOAT


def _norm_of_traced(op: Any, x: ir.Value, scale: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
    return _norm(op, x, scale, scalar(epsilon))


def _native(op: Any, x: Any, scale: Any) -> Any:
    return op.RMSNormalization(x, scale, _outputs=["normed"])


def _is_native_norm(context: Any, scale: ir.Value, normed: ir.Value, **_: Any) -> bool:
    node = normed.producer()
    assert node is not None
    last_axis, fp32 = node.attributes.get_int("axis", -1) == -1, node.attributes.get_int("stash_type", 1) == 1
    return _is_scale(scale) and last_axis and fp32


def _norm_of_native(op: Any, x: ir.Value, scale: ir.Value, normed: ir.Value, **_: Any) -> Any:
    node = normed.producer()
    assert node is not None
    return _norm(op, x, scale, node.attributes.get_float("epsilon", 1e-5))


def _norm(op: Any, x: ir.Value, scale: ir.Value, epsilon: float | None) -> Any:
    return op.SimplifiedLayerNormalization(x, scale, axis=-1, epsilon=epsilon, stash_type=1)


def _skip(op: Any, residual: Any, branch: Any, scale: Any) -> Any:
    total = op.Add(residual, branch)
    return op.SimplifiedLayerNormalization(total, scale, _outputs=["normed"]), total


def _is_skip(context: Any, residual: ir.Value, branch: ir.Value, normed: ir.Value, **_: Any) -> bool:
    node = normed.producer()
    assert node is not None
    same = residual.shape is not None and residual.shape == branch.shape and len(residual.shape) in (2, 3)
    return same and node.attributes.get_int("axis", -1) == -1


def _skip_norm(op: Any, residual: ir.Value, branch: ir.Value, scale: ir.Value, normed: ir.Value, **_: Any) -> Any:
    node = normed.producer()
    assert node is not None
    normalised, _mean, _deviation, total = op.SkipSimplifiedLayerNormalization(
        branch, residual, scale, epsilon=node.attributes.get_float("epsilon", 1e-5), _domain=CONTRIB, _outputs=4
    )
    return normalised, total
