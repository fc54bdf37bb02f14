"""Our own fusions: what ONNX Runtime and onnxscript leave of a Llama graph, as operators that ONNX Runtime has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from llama_bench.passes.info import PassInfo, Work
from llama_bench.sweep import Model
from llama_bench.sweep_part import Part

if TYPE_CHECKING:
    import onnx_ir as ir

HEAD_MULTIPLE = 16
"""ONNX Runtime's GroupQueryAttention turns heads of a multiple of this size."""


class All(Part):
    """Options of `all`."""

    attention: Literal["group_query", "multi_head", "traced"] = Field(
        "group_query",
        description="GroupQueryAttention (on CUDA in fp16 and bf16 only), MultiHeadAttention (on CUDA in fp32 too, "
        "without KV cache and grouped heads), or as it is.",
    )


def _attention_fits(options: Any, model: Model) -> str | None:
    if not model.cache:
        return "GroupQueryAttention needs a KV cache: give the model cache: true"
    if model.head_size % HEAD_MULTIPLE:
        return f"GroupQueryAttention turns heads of a multiple of {HEAD_MULTIPLE}, and these are {model.head_size}"
    return None


def _all_fits(options: All, model: Model) -> str | None:
    if options.attention == "multi_head" and model.cache:
        return "attention: multi_head is for models without a KV cache"
    if options.attention == "multi_head" and model.kv_heads != model.num_attention_heads:
        return "attention: multi_head is for models with as many KV heads as heads"
    return None


def _is_a_llamas(options: Any) -> str:
    return "it takes the place of a Llama's attention, or cuts what follows it; norm, skip_norm, qkv and swiglu do not"


_FUSED: dict[str, Any] = {"leaves": ("fused",), "not_after": ("half", "quantised")}
_PRODUCTS: dict[str, Any] = {**_FUSED, "not_after": ("quantised",)}  # weights alone, whatever their precision
_ATTENTION: dict[str, Any] = {**_FUSED, "leaves": ("fused", "attention")}

PASSES: dict[str, PassInfo] = {
    "all": PassInfo(
        "norm, skip_norm, swiglu, attention, qkv and last_token, in this order.",
        options=All,
        fits=_all_fits,
        llama=_is_a_llamas,
        **_ATTENTION,
    ),
    "norm": PassInfo("RMSNorm as one SimplifiedLayerNormalization.", **_FUSED),
    "skip_norm": PassInfo(
        "RMSNorm and the sum before it as one SkipSimplifiedLayerNormalization; the rest as norm.", **_FUSED
    ),
    "qkv": PassInfo("Query, key and value of a layer as one product, whose parts may have different widths.", **_FUSED),
    "gate_up": PassInfo("Gate and up of a layer as one product.", **_PRODUCTS),
    "turn": PassInfo(
        "The weights of products as [out, in], which are turned in the product (FusedMatMul).", **_PRODUCTS
    ),
    "swiglu": PassInfo("SiLU as one QuickGelu with alpha 1.", **_FUSED),
    "last_token": PassInfo(
        "The last token alone in all that follows the last attention, where only its logits come out.",
        llama=_is_a_llamas,
        **_FUSED,
    ),
    "attention": PassInfo(
        "Attention with its KV cache as one GroupQueryAttention; on CUDA in fp16 and bf16 only.",
        fits=_attention_fits,
        llama=_is_a_llamas,
        **_ATTENTION,
    ),
}
"""Our fusions; the first is the family's default."""

STEPS: dict[str, tuple[str, ...]] = {
    "skip_norm": ("norm", "skip_norm"),
    "last_token": ("norm", "skip_norm", "last_token"),
    # a packed product reads better once attention is one node, which takes it whole
    "all": ("norm", "skip_norm", "swiglu", "attention", "qkv", "last_token"),
}
"""Pass → the fusions that it is made of, where it is not itself the only one."""


def work(given: Work) -> None:
    """Do one piece of work of this family; a model in which nothing is found is given back as it is.

    Raises WorkError when weights are missing, or when only some layers have the attention that is to be fused.
    """
    from llama_bench.passes import files

    model = files.read(given.source)
    files.prepare(model)
    fusions = _fusions(given)
    if sum([fusions[name](model) for name in STEPS.get(given.name, (given.name,))]):
        files.write(model, given.destination)
    else:
        files.keep(given.source, given.destination)


def _fusions(given: Work) -> dict[str, Callable[[ir.Model], int]]:
    """Return name → function that changes a model in place and says how often it did."""
    from llama_bench.passes.fuse import last_token, norm, pack, swiglu, turn

    return {
        "norm": norm.fuse_norm,
        "skip_norm": norm.fuse_skip_norm,
        "qkv": pack.fuse_qkv,
        "gate_up": pack.fuse_gate_up,
        "turn": turn.turn_weights,
        "swiglu": swiglu.fuse_swiglu,
        "last_token": last_token.keep_last_token,
        "attention": lambda model: _fuse_attention(model, given),
    }


def _fuse_attention(model: ir.Model, given: Work) -> int:
    from llama_bench.passes.fuse import attention_cached, attention_static

    wanted = given.options.attention if isinstance(given.options, All) else "group_query"
    head_size = given.model.head_size
    if wanted == "multi_head":
        return attention_static.fuse_multi_head(model, head_size)
    if wanted == "traced" or head_size % HEAD_MULTIPLE:
        return 0
    if given.model.cache:
        return attention_cached.fuse_cached(model, head_size, given.model.max_position_embeddings)
    return attention_static.fuse_grouped(model, head_size)
