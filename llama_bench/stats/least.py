"""What a run of an arm must compute and move at least, and in which precision: by settings, passes and graph. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from llama_bench.counts import cache_bytes, moved_bytes
from llama_bench.errors import InputError
from llama_bench.passes import find
from llama_bench.sweep import Model, Recipe, Workload

Row: TypeAlias = Mapping[str, Any]

PRECISIONS = (
    ("provider_options", "trt_int8_enable", "int8"),
    ("provider_options", "trt_fp16_enable", "fp16"),
    ("provider_options", "trt_bf16_enable", "bf16"),
    ("provider_options", "use_tf32", "tf32"),
    ("config", "mlas.enable_gemm_fastmath_arm64_bfloat16", "bf16"),
)
"""Where in the settings it is said that products are computed in less than fp32; the first that is on counts."""

NUMBER_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2, "int8": 1}
"""Precision → bytes of a number that is kept in it."""

LEAST_BYTES = 0.5
"""Bytes of a number in the caches and outputs of an approximation, which may be as small as 4 bits."""

FUSED_ATTENTION = ("Attention", "GroupQueryAttention", "MultiHeadAttention")
"""Executed operators that may leave out what a causal mask hides; an export as it is computes both halves."""


def compute_dtype(settings: Mapping[str, Any]) -> str:
    """Return the fastest precision that an arm's `settings` allow its fp32 matrix products: "fp32", "tf32", …

    An engine that converts models itself says in which precision it computes.
    """
    if (precision := str(settings.get("precision") or "fp32")) != "fp32":
        return precision
    for part, key, dtype in PRECISIONS:
        if str((settings.get(part) or {}).get(key, "0")).lower() in ("1", "true"):
            return dtype
    return "fp32"


def computed_in(variant: Row, rates: Mapping[tuple[str, str], float]) -> str:
    """Return the precision whose products bound an arm; `rates` are the machine's ceilings by (what, dtype).

    An exact arm computes in what its settings say, one whose passes made its graph fp16 or bf16 in that. Another
    approximation chose its precision in its passes, so the fastest of the machine bounds it.
    """
    said = compute_dtype(json.loads(variant["settings"]))
    if variant["class"] != "approximate" or said in NUMBER_BYTES.keys() - {"fp32", "tf32"}:
        return said
    half = halved(variant)
    if half is not None and ("matmul", half) in rates:
        return half
    products = [(rate, dtype) for (what, dtype), rate in rates.items() if what == "matmul"]
    return max(products)[1] if products else "fp32"


def halved(variant: Row) -> str | None:
    """Return "fp16" or "bf16" where passes made the graph so and nothing in it computes in less; None otherwise.

    On a GPU weights in few bits are multiplied in the precision of what they meet, on a CPU in int8.
    """
    half, settings = None, json.loads(variant["settings"])
    for label in json.loads(variant.get("passes") or "[]"):
        family, _, said = label.partition(": ")
        name = re.match(r"\{?(?:name: )?(\w*)", said)
        word = name.group(1) if name else ""
        if family == "precision" and word in NUMBER_BYTES:
            half = word
        if family == "quantize" and (word in INTEGERS or settings.get("provider") == "CPUExecutionProvider"):
            return None
    return half


INTEGERS = ("dynamic", "static")
"""Quantisations of what a layer reads too, whose products are int8 everywhere."""


def number_bytes(variant: Row) -> float:
    """Return the bytes of a number in the KV cache, as far as settings and passes tell."""
    passes = variant.get("passes") or ""
    if "kv_cache" in passes:
        return LEAST_BYTES
    if "precision: " in passes:  # fp16 or bf16, the only two
        return NUMBER_BYTES["fp16"]
    precision = str(json.loads(variant["settings"]).get("precision") or "fp32")
    return NUMBER_BYTES.get(precision, LEAST_BYTES)


def read_cache(model: Model, workload: Workload, variant: Row) -> float:
    """Return the bytes of keys and values that a decode step must read, as the arm keeps them."""
    if not model.cache or workload.kind != "decode":
        return 0.0
    return cache_bytes(model, workload) * number_bytes(variant) / NUMBER_BYTES["fp32"]


def resized(recipe: Recipe | None) -> bool:
    """Whether a pass of the recipe changed the model's sizes (or may have: a pass that is not known any more)."""
    try:
        return recipe is not None and any(find(step).level == "checkpoint" for step in recipe.passes)
    except InputError:
        return True


def keeps_last_token(recipe: Recipe | None) -> bool:
    """Whether a pass of the recipe leaves out what nobody reads where only the last token's logits come out."""
    steps = () if recipe is None else recipe.passes
    return any(step.family == "fuse" and step.name in ("all", "last_token") for step in steps)


def moved(model: Model, workload: Workload, variant: Row) -> float:
    """Return the bytes that a run moves at least, in the precision in which the arm keeps them.

    An engine that converts a model keeps all of it in its precision. What passes made of the weights is stored; what
    they made of caches and outputs may be as small as `LEAST_BYTES` a number.
    """
    weights = variant["weight_bytes"] or 0
    whole = moved_bytes(model, workload, weights)
    precision = str(json.loads(variant["settings"]).get("precision") or "fp32")
    if precision != "fp32":
        return whole * NUMBER_BYTES.get(precision, LEAST_BYTES) / NUMBER_BYTES["fp32"]
    if variant["class"] != "approximate":
        return whole
    rest = moved_bytes(model, workload, 0)
    return whole - rest + rest * LEAST_BYTES / NUMBER_BYTES["fp32"]


def hidden(model: Model, workload: Workload, variant: Row) -> float:
    """Return the operations that a causal mask hides and fused attention leaves out: 2·B·S·(S − 1)·heads·D a layer."""
    fused = (variant.get("engine") or "onnxruntime") != "onnxruntime"
    executed = json.loads(variant.get("executed_histogram") or "{}")
    if workload.kind != "prefill" or not (fused or any(op in FUSED_ATTENTION for op in executed)):
        return 0.0
    width = model.num_attention_heads * model.head_size * model.num_hidden_layers
    return 2.0 * workload.batch * workload.given * (workload.given - 1) * width


def unread(model: Model, workload: Workload, variant: Row, last_token: bool) -> float:
    """Return the operations behind the last layer's attention of tokens whose logits are not asked for.

    An export as it is computes them; a pass takes them out, and an engine of its own may.
    """
    may = last_token or (variant.get("engine") or "onnxruntime") != "onnxruntime"
    if workload.kind != "prefill" or workload.outputs != "last_logits" or not may:
        return 0.0
    width = model.num_attention_heads * model.head_size
    a_token = model.hidden_size * (width + 3 * model.intermediate_size)
    return 2.0 * (workload.tokens - workload.batch) * a_token
