"""Attention with a KV cache to GroupQueryAttention, which turns, appends, masks and groups by itself."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from llama_bench.errors import WorkError
from llama_bench.passes.fuse.attention import HIDDEN, Traced, turns_by_position
from llama_bench.passes.fuse.values import CONTRIB, scalar, shape_of

PAST, PRESENT = "past.", "present."


def fuse_cached(model: ir.Model, head_size: int, positions: int) -> int:
    """Make the attention of every layer one GroupQueryAttention for up to `positions` tokens; say how many.

    The graph then takes `seqlens_k` (int32 [B], total − 1) and `total_sequence_length` (int32, one number, on the CPU)
    in the place of `position_ids`, and past and present [B, KV heads, M, D] may be one buffer of M positions. Raises
    WorkError when some layers have another attention, which would take M for the number of tokens in the cache.
    """
    tokens = next((value for value in model.graph.inputs if value.name == "input_ids"), None)
    if tokens is None or not shape_of(tokens):
        return 0
    seqlens_k = ir.val("seqlens_k", ir.DataType.INT32, [shape_of(tokens)[0]])
    total = ir.val("total_sequence_length", ir.DataType.INT32, [])
    fusion = _Cached(Traced(model, head_size, positions), seqlens_k, total)
    count = fusion.traced.replace(fusion.form, fusion.check, fusion.grouped)
    if count:
        if other := next((node for node in model.graph if node.op_type == "Softmax"), None):
            raise WorkError(f"fuse: node {other.name} (Softmax) is in no attention that GroupQueryAttention computes")
        _set_signature(model.graph, seqlens_k, total)
    return count


class _Cached:
    """The form of one layer's attention with a cache, and what takes its place."""

    def __init__(self, traced: Traced, seqlens_k: ir.Value, total: ir.Value) -> None:
        self.traced, self.seqlens_k, self.total = traced, seqlens_k, total

    def form(
        self, op: Any, q: Any, k: Any, v: Any, past_key: Any, past_value: Any, cos: Any, sin: Any, scale: Any,
        hidden: Any, position_ids: Any,
    ) -> Any:  # fmt: skip
        part = self.traced
        query = part.rotated(op, part.heads(op, q, "query_heads"), cos, sin)
        key = op.Concat(past_key, part.rotated(op, part.heads(op, k, "key_heads"), cos, sin), axis=2)
        value = op.Concat(past_value, part.heads(op, v, "value_heads"), axis=2)
        # unfolded, the axes come one after the other
        rows = pattern.OrValue([op.Unsqueeze(position_ids, [1, 3]), op.Unsqueeze(op.Unsqueeze(position_ids, [1]), [3])])
        mask = op.Where(op.LessOrEqual(op.Range(0, pattern.ANY_VALUE, 1), rows), 0.0, hidden)
        return part.attended(op, query, key, value, scale, mask), key, value

    def check(
        self, context: Any, past_key: ir.Value, past_value: ir.Value, query_heads: ir.Value, cos: ir.Value,
        sin: ir.Value, scale: ir.Value, hidden: ir.Value, position_ids: ir.Value, **_: Any,
    ) -> bool:  # fmt: skip
        size, least = (self.traced.head_size,), scalar(hidden)
        return (
            all(value.is_graph_input() and shape_of(value)[3:] == size for value in (past_key, past_value))
            and shape_of(query_heads)[3:] == size
            and least is not None
            and least <= HIDDEN
            and scalar(scale) is not None
            and position_ids.is_graph_input()
            and turns_by_position(cos, sin)
        )

    def grouped(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, past_key: ir.Value, past_value: ir.Value, cos: ir.Value,
        sin: ir.Value, scale: ir.Value, query_heads: ir.Value, **_: Any,
    ) -> Any:  # fmt: skip
        tables = self.traced.table(cos, "cos"), self.traced.table(sin, "sin")
        return op.GroupQueryAttention(
            q, k, v, past_key, past_value, self.seqlens_k, self.total, *tables,
            num_heads=shape_of(query_heads)[2], kv_num_heads=shape_of(past_key)[1], do_rotary=1,
            **self.traced.scale(scale), _domain=CONTRIB, _outputs=3,
        )  # fmt: skip


def _set_signature(graph: ir.Graph, seqlens_k: ir.Value, total: ir.Value) -> None:
    """Put the new inputs before the caches, whose third dimension is now what is allocated, not what is filled."""
    at = next(i for i, value in enumerate(graph.inputs) if str(value.name).startswith(PAST))
    graph.inputs.insert(at, total)
    graph.inputs.insert(at, seqlens_k)
    for value in (*graph.inputs, *graph.outputs):
        name = str(value.name)
        if name.startswith((PAST, PRESENT)) and value.shape is not None:
            batch, heads, _, size = value.shape
            value.shape = ir.Shape([batch, heads, "past" if name.startswith(PAST) else "present", size])
