"""Quantisation: weights in 2 to 8 bits, int8 on both sides of a product, a KV cache in few bits.

Weights are read, quantised and kept one at a time, so memory holds the result and one layer.
"""

from __future__ import annotations

from llama_bench.passes.info import PassInfo, Work
from llama_bench.passes.quantize.options import (
    Cache,
    Dynamic,
    Static,
    Weights,
    fits_cache,
    fits_dynamic,
    fits_static,
    fits_weights,
    llama_for_dynamic,
    llama_for_text,
    llama_for_weights,
)

PASSES: dict[str, PassInfo] = {
    "weights": PassInfo(
        "Linear layers' weights in 2, 4 or 8 bits, a scale for each block of inputs (MatMulNBits).",
        kind="approximate",
        options=Weights,
        leaves=("quantised",),
        not_after=("quantised",),
        fits=fits_weights,
        llama=llama_for_weights,
    ),
    "dynamic": PassInfo(
        "Linear layers in int8: weights once, what they multiply anew in every run.",
        kind="approximate",
        options=Dynamic,
        leaves=("quantised",),
        not_after=("half", "quantised"),
        fits=fits_dynamic,
        llama=llama_for_dynamic,
    ),
    "static": PassInfo(
        "Linear layers in int8, by scales that text fixes (QuantizeLinear and DequantizeLinear).",
        kind="approximate",
        options=Static,
        leaves=("quantised",),
        not_after=("half", "quantised"),
        fits=fits_static,
        llama=llama_for_text,
    ),
    "kv_cache": PassInfo(
        "Keys and values of GroupQueryAttention kept in 8 or 4 bits, by scales from text.",
        kind="approximate",
        options=Cache,
        leaves=("quantised",),
        needs=("attention",),
        fits=fits_cache,
        llama=llama_for_text,
    ),
}
"""What is quantised. `kv_cache` may follow quantised weights, and comes last."""


def work(given: Work) -> None:
    """Do one piece of work of this family.

    Raises WorkError when the graph has nothing to quantise, a block size divides no inputs of a layer, an excluded
    name is nobody's, or calibration cannot run.
    """
    # each needs onnx, which nobody who only reads the table shall wait for
    if given.name == "weights":
        from llama_bench.passes.quantize import weights

        weights.work(given)
    elif given.name == "dynamic":
        from llama_bench.passes.quantize import dynamic

        dynamic.work(given)
    elif given.name == "static":
        from llama_bench.passes.quantize import static

        static.work(given)
    else:
        from llama_bench.passes.quantize import cache

        cache.work(given)
