"""What an arm must compute and move at least, and in which precision its products are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llama_bench.stats.least import computed_in, halved, keeps_last_token, number_bytes, read_cache, resized
from llama_bench.sweep import Model, Recipe, Workload

KNOWN = {"fp32": 5e13, "fp16": 8e14, "bf16": 8.1e14, "int8": 9e14, "fp8": 1.5e15}
RATES = {("matmul", dtype): rate for dtype, rate in KNOWN.items()}
FP16, BITS = "precision: fp16", "quantize: {bits: 4, block_size: 128, symmetric: true}"


def variant(*passes: str, gpu: bool = True, **settings: Any) -> dict[str, Any]:
    provider = "CUDAExecutionProvider" if gpu else "CPUExecutionProvider"
    said = {"provider": provider, "provider_options": {"use_tf32": "1"} if gpu else {}, "precision": "fp32", **settings}
    kind = "approximate" if passes else "exact"
    return {"settings": json.dumps(said), "passes": json.dumps(list(passes)), "class": kind}


@pytest.mark.parametrize(
    ("arm", "precision"),
    [
        (variant(), "tf32"),
        (variant(gpu=False), "fp32"),
        (variant("fuse: all", FP16), "fp16"),
        (variant("fuse: all", "precision: {name: bf16, keep: [head]}"), "bf16"),
        (variant(FP16, BITS), "fp16"),  # CUDA multiplies such weights in what they meet
        (variant(FP16, "quantize: {name: weights, bits: 8}"), "fp16"),
        (variant(FP16, BITS, gpu=False), "fp8"),  # a CPU in int8, or whatever is its fastest
        (variant(FP16, "quantize: {name: kv_cache, bits: 8}"), "fp16"),
        (variant("quantize: dynamic"), "fp8"),
        (variant(FP16, "quantize: {name: static, smooth: 0.5}"), "fp8"),
        (variant(BITS), "fp8"),
        (variant("prune: {name: layers, keep: 0.5}"), "fp8"),
        (variant(precision="bf16"), "bf16"),
    ],
)
def test_an_arm_is_bounded_by_the_precision_that_its_passes_left(arm: dict[str, Any], precision: str) -> None:
    assert computed_in(arm, RATES) == precision


def test_where_nothing_multiplies_in_half_precision_the_fastest_precision_bounds() -> None:
    assert computed_in(variant(FP16, gpu=False), {("matmul", "fp32"): 1e12, ("matmul", "int8"): 4e12}) == "int8"


def test_an_older_runs_variant_without_passes_is_not_taken_for_half() -> None:
    assert halved({"settings": "{}", "passes": None}) is None


def test_a_step_reads_its_cache_as_the_arm_keeps_it_and_a_prompt_makes_it() -> None:
    model = Model(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, cache=True)
    step, prompt = Workload(kind="decode", batch=3, context=32), Workload(kind="prefill", batch=3, sequence=32)
    numbers = 2 * 2 * 3 * 33 * 64
    assert read_cache(model, step, variant()) == 4 * numbers
    assert read_cache(model, step, variant(FP16)) == 2 * numbers
    assert read_cache(model, step, variant(precision="bf16")) == 2 * numbers
    assert read_cache(model, step, variant(FP16, "quantize: {name: kv_cache, bits: 4}")) == numbers / 2
    assert read_cache(model, prompt, variant()) == 0
    assert number_bytes(variant("quantize: dynamic")) == 4


def test_which_recipes_leave_out_what_nobody_reads() -> None:
    assert keeps_last_token(Recipe(passes=({"fuse": "all"}, {"quantize": "dynamic"})))
    assert keeps_last_token(Recipe(passes=({"fuse": {"name": "last_token"}},)))
    assert not keeps_last_token(Recipe(passes=({"fuse": "norm"},)))
    assert not keeps_last_token(None)


def test_a_pass_that_is_not_known_any_more_may_have_changed_the_sizes() -> None:
    kept = Recipe(passes=({"onnxoptimizer": "eliminate_identity"},))
    assert not resized(kept)
    assert not resized(None)
    assert resized(Recipe(passes=({"forgotten": "shrink"},)))
