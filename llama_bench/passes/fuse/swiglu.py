"""SiLU, the gate of a SwiGLU, as one node."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import RewriteRule, RewriteRuleSet

from llama_bench.passes.fuse.values import CONTRIB


def fuse_swiglu(model: ir.Model) -> int:
    """Make every x · sigmoid(x) a QuickGelu with alpha 1, which is the same function; say how many."""
    rules = RewriteRuleSet([RewriteRule(_silu, _quick_gelu, name="swiglu")], commute=True)
    return int(rules.apply_to_model(model))


def _silu(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x))


def _quick_gelu(op: Any, x: ir.Value, **_: Any) -> Any:
    return op.QuickGelu(x, alpha=1.0, _domain=CONTRIB)
