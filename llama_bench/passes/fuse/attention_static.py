"""Attention of a static graph, where every prompt begins at position 0 and has the same length, to one operator."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from llama_bench.passes.fuse.attention import HIDDEN, Traced, leaves, turns_by_position
from llama_bench.passes.fuse.values import CONTRIB, add_constant, constant, scalar, shape_of


def fuse_grouped(model: ir.Model, head_size: int) -> int:
    """Make the attention of every layer one GroupQueryAttention without a cache; say how many."""
    fusion = _Static.of(model, head_size)
    return fusion.traced.replace(fusion.form, fusion.check, fusion.grouped) if fusion else 0


def fuse_multi_head(model: ir.Model, head_size: int) -> int:
    """Make the attention of every layer two RotaryEmbedding and a MultiHeadAttention; say how many.

    Grouped KV heads stay as they are: MultiHeadAttention has as many of them as query heads.
    """
    fusion = _Static.of(model, head_size)
    return fusion.traced.replace(fusion.form, fusion.check_alike, fusion.multi_head) if fusion else 0


class _Static:
    """The form of one layer's attention without a cache, and what may take its place."""

    def __init__(self, traced: Traced, batch: int, length: int) -> None:
        self.traced, self.batch, self.length = traced, batch, length
        self._lengths: tuple[ir.Value, ir.Value] | None = None

    @classmethod
    def of(cls, model: ir.Model, head_size: int) -> _Static | None:
        """Return the fusion for a graph of one batch and length, None for another graph."""
        shape = next((shape_of(value) for value in model.graph.inputs if value.name == "input_ids"), ())
        if len(shape) != 2 or not all(isinstance(dim, int) for dim in shape):
            return None
        return cls(Traced(model, head_size, positions=shape[1]), *shape)

    def form(self, op: Any, q: Any, k: Any, v: Any, cos: Any, sin: Any, scale: Any, mask: Any) -> Any:
        part = self.traced
        query = part.rotated(op, part.heads(op, q, "query_heads"), cos, sin)
        key = part.rotated(op, part.heads(op, k, "key_heads"), cos, sin)
        value = part.heads(op, v, "value_heads")
        return part.attended(op, query, key, value, scale, mask), key, value

    def check(
        self, context: Any, q: ir.Value, query_heads: ir.Value, key_heads: ir.Value, cos: ir.Value, sin: ir.Value,
        scale: ir.Value, mask: ir.Value, **_: Any,
    ) -> bool:  # fmt: skip
        tokens, size = (self.batch, self.length), self.traced.head_size
        return (
            shape_of(q)[:-1] == tokens  # flattened tokens are [B · S, heads · D]
            and all((*shape_of(x)[:2], *shape_of(x)[3:]) == (*tokens, size) for x in (query_heads, key_heads))
            and scalar(scale) is not None
            and _kind(mask) is not None
            and turns_by_position(cos, sin)
        )

    def check_alike(self, context: Any, query_heads: ir.Value, key_heads: ir.Value, **found: Any) -> bool:
        alike = shape_of(query_heads) == shape_of(key_heads)
        return alike and self.check(context, query_heads=query_heads, key_heads=key_heads, **found)

    def grouped(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, query_heads: ir.Value, key_heads: ir.Value, cos: ir.Value,
        sin: ir.Value, scale: ir.Value, mask: ir.Value, **_: Any,
    ) -> Any:  # fmt: skip
        tables = self.traced.table(cos, "cos"), self.traced.table(sin, "sin")
        # its own mask is the order of tokens, and what a mask has beyond that comes on top
        bias = [None, mask] if _kind(mask) == "padded" else []
        return op.GroupQueryAttention(
            q, k, v, None, None, *self.lengths(), *tables, *bias,
            num_heads=shape_of(query_heads)[2], kv_num_heads=shape_of(key_heads)[2], do_rotary=1,
            **self.traced.scale(scale), _domain=CONTRIB, _outputs=3,
        )  # fmt: skip

    def multi_head(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, query_heads: ir.Value, cos: ir.Value, sin: ir.Value,
        scale: ir.Value, mask: ir.Value, **_: Any,
    ) -> Any:  # fmt: skip
        heads, [positions] = shape_of(query_heads)[2], leaves(cos)
        tables = self.traced.table(cos, "cos"), self.traced.table(sin, "sin")
        query, key = (op.RotaryEmbedding(x, positions, *tables, num_heads=heads, _domain=CONTRIB) for x in (q, k))
        padded = _kind(mask) == "padded"
        inputs = [query, key, v, None, None, mask] if padded else [query, key, v]
        order: dict[str, Any] = {} if padded else {"unidirectional": 1}
        scaled = self.traced.scale(scale)
        return op.MultiHeadAttention(*inputs, num_heads=heads, **order, **scaled, _domain=CONTRIB, _outputs=3)

    def lengths(self) -> tuple[ir.Value, ir.Value]:
        """Return the constants `seqlens_k` (int32 [B], S − 1) and `total_sequence_length` (int32, S)."""
        if self._lengths is None:
            add, graph = add_constant, self.traced.model.graph
            seqlens_k = add(graph, "seqlens_k", np.full(self.batch, self.length - 1, dtype=np.int32))
            self._lengths = seqlens_k, add(graph, "total_sequence_length", np.array(self.length, dtype=np.int32))
        return self._lengths


def _kind(mask: ir.Value) -> Literal["causal", "padded"] | None:
    """Say whether `mask` is the order of tokens alone or joined to one of padding; None for any other mask."""
    added = constant(mask)
    if added is not None:
        return "causal" if _is_order(added == 0) and _is_order(added > HIDDEN) else None
    where = mask.producer()
    if where is None or where.op_type != "Where":
        return None
    shown, zero, hidden = where.inputs
    least, join = scalar(hidden), shown.producer() if shown is not None else None
    if scalar(zero) != 0 or least is None or least > HIDDEN or join is None or join.op_type != "And":
        return None
    return "padded" if any(_is_order(constant(part)) for part in join.inputs) else None


def _is_order(allowed: np.ndarray[Any, Any] | None) -> bool:
    """Whether `allowed` [1, 1, S, S] lets every token see itself and those before it, and no others."""
    if allowed is None or allowed.dtype != np.bool_ or allowed.ndim != 4 or allowed.shape[:2] != (1, 1):
        return False
    return np.array_equal(allowed[0, 0], np.tri(*allowed.shape[2:], dtype=np.bool_))
