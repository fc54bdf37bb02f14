"""What the fusions of attention share: the traced form, piece by piece, and the tables of cos and sin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.rewriter import RewriteRule, RewriteRuleSet, pattern

from llama_bench.passes.fuse.pack import feed_packed
from llama_bench.passes.fuse.values import add_constant, constant_shape, scalar

HIDDEN = -9999.0
"""What is added to a forbidden score must be at most this to be as good as minus infinity."""


class Traced:
    """The attention of one model's layers as the exporters trace it, all with heads of `head_size`.

    B: batch, S: sequence, D: head size. The methods with `op` are the pieces that a pattern is put together from.
    `table` holds `positions` rows.
    """

    def __init__(self, model: ir.Model, head_size: int, positions: int) -> None:
        common.CommonSubexpressionEliminationPass()(model)  # opset 23 computes cos and sin again for every layer
        self.model, self.head_size, self.positions = model, head_size, positions
        self.native = any(node.op_type == "RotaryEmbedding" for node in model.graph)
        self.grouped = False
        self.tables: dict[ir.Value, ir.Value] = {}

    def replace(self, form: Callable[..., Any], check: Callable[..., bool], by: Callable[..., Any]) -> int:
        """Replace what has the `form` and passes the `check`, in every layer, `by` other nodes; say how often."""
        # what layers share (mask, cos, sin) is no layer's to remove, so nothing is: what nobody reads goes at the end
        rules = []
        for self.grouped in (False, True):  # two rules: with alternatives inside, one would be tried in every order
            rules.append(RewriteRule(form, by, check, name="attention", remove_nodes=False))
        count = int(RewriteRuleSet(rules).apply_to_model(self.model))
        common.RemoveUnusedNodesPass()(self.model)
        inputs = self.model.graph.inputs
        for value in [value for value in inputs if value.name == "position_ids" and count and not value.uses()]:
            inputs.remove(value)
        feed_packed(self.model.graph)
        return count

    def heads(self, op: Any, x: Any, name: str) -> Any:
        """Return `x` [B, S, heads · D] as [B, heads, S, D]; the value [B, S, heads, D] between is called `name`."""
        return op.Transpose(op.Reshape(x, pattern.ANY_VALUE, _outputs=[name]), perm=[0, 2, 1, 3])

    def rotated(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        """Return `x` [B, heads, S, D] turned by its positions: traced, or as opset 23 has it."""
        if self.native:
            return op.RotaryEmbedding(x, cos, sin, interleaved=0)
        half, end = [self.head_size // 2], pattern.ANY_VALUE
        turned = op.Concat(op.Neg(op.Slice(x, half, end, [3], [1])), op.Slice(x, [0], half, [3], [1]), axis=-1)
        return op.Add(op.Mul(x, cos), op.Mul(turned, sin))

    def attended(self, op: Any, query: Any, key: Any, value: Any, scale: Any, mask: Any) -> Any:
        """Return softmax(query · keyᵀ · scale + mask) · value, as [B, S, heads · D]."""
        keys = op.Transpose(self.repeated(op, key), perm=[0, 1, 3, 2])
        weights = op.Softmax(op.Add(op.Mul(op.MatMul(query, keys), scale), mask), axis=-1)
        mixed = op.Transpose(op.MatMul(weights, self.repeated(op, value)), perm=[0, 2, 1, 3])
        return op.Reshape(mixed, pattern.ANY_VALUE)

    def repeated(self, op: Any, x: Any) -> Any:
        """Return KV heads as they are, or each given to its group of query heads."""
        if not self.grouped:
            return x
        return op.Reshape(op.Expand(op.Unsqueeze(x, [2]), pattern.ANY_VALUE), pattern.ANY_VALUE)

    def scale(self, value: ir.Value) -> dict[str, float]:
        """Return the attribute for scores times `value`; none where it is the operators' own 1 / √D."""
        factor = scalar(value)
        assert factor is not None
        return {} if np.isclose(factor, self.head_size**-0.5, rtol=1e-6) else {"scale": factor}

    def table(self, value: ir.Value, name: str) -> ir.Value:
        """Return the constant [positions, D / 2] of what the graph computes as `value`, cos or sin.

        The graph itself computes it, position for position, so a scaling of RoPE comes along whatever it is.
        """
        if value not in self.tables:
            [position_ids] = leaves(value)
            rows = _evaluate(self.model, position_ids, value, np.arange(self.positions, dtype=np.int64)[None])
            rows = rows.reshape(self.positions, -1)[:, : self.head_size // 2]  # traced, every column is there twice
            self.tables[value] = add_constant(self.model.graph, f"{name}_cache", np.ascontiguousarray(rows))
        return self.tables[value]


def leaves(value: ir.Value) -> set[ir.Value]:
    """Return what `value` is computed from, but for constants."""
    found: set[ir.Value] = set()
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        value = stack.pop()
        if value in seen or constant_shape(value) is not None:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            found.add(value)
        else:
            stack.extend(read for read in node.inputs if read is not None)
    return found


def turns_by_position(cos: ir.Value, sin: ir.Value) -> bool:
    """Whether `cos` and `sin` are computed from the positions alone."""
    return all([value.name for value in leaves(given)] == ["position_ids"] for given in (cos, sin))


def _evaluate(model: ir.Model, given: ir.Value, wanted: ir.Value, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return what ONNX Runtime computes as `wanted` when `given` is `array`, from the part of the graph between."""
    import onnxruntime

    part = ir.convenience.extract(model.graph, [given], [wanted])
    for value in (*part.inputs, *(result for node in part for result in node.outputs)):
        value.shape = None  # those of a static graph hold for its own batch and length
    proto = ir.to_proto(ir.Model(part, ir_version=model.ir_version))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    [result] = session.run(None, {given.name: array})
    return np.asarray(result)
