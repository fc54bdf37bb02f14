"""Where the time goes on the GPU, by classes of kernels, each beside its own floor."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.counts import flops
from llama_bench.stats import views
from llama_bench.stats.bound import Rates, least_s
from llama_bench.stats.kernels import classes, floor_s, fused
from llama_bench.sweep import Model, Workload

LLAMA = Model(
    hidden_size=1024, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=4, intermediate_size=2816,
    vocab_size=32000, cache=True,
)  # fmt: skip
PREFILL = Workload(kind="prefill", batch=2, sequence=512, outputs="last_logits")
DECODE = Workload(kind="decode", batch=2, context=1023)
RATES = Rates({("matmul", "fp32"): 1e13, ("read", ""): 1e12}, 0)
FLASH, SOFTMAX, PRODUCT = ("flash_fwd_kernel", "attention"), ("softmax_warp_forward", "attention"), ("gemm", "matmul")


def variant(**columns: Any) -> dict[str, Any]:
    settings = {"provider": "CUDAExecutionProvider", "precision": "fp32"}
    known = {"settings": json.dumps(settings), "passes": "[]", "class": "exact", "engine": "onnxruntime"}
    return {**known, "weight_bytes": 400_000_000, "executed_histogram": None, **columns}


def rows(*seen: tuple[tuple[str, str], float, float]) -> list[dict[str, Any]]:
    return [{"kernel": name, "class": word, "count": n, "seconds": s} for (name, word), n, s in seen]


def test_a_class_has_all_its_kernels_and_what_is_left_of_the_run_is_idle() -> None:
    seen = rows(
        (PRODUCT, 4, 3e-3), (("nvjet", "matmul"), 2, 1e-3), (FLASH, 1, 5e-4), (("cast", "elementwise"), 3, 1e-4)
    )
    found = classes(seen, 4.5e-3, 6e-3, {"matmul": 2e-3, "attention": 1e-4})
    assert [(one["class"], one["launches"], one["floor_s"]) for one in found] == [
        ("matmul", 6, 2e-3),
        ("attention", 1, 1e-4),
        ("elementwise", 3, 0.0),
        ("idle", None, 0.0),
    ]
    assert [one["seconds"] for one in found] == pytest.approx([4e-3, 5e-4, 1e-4, 1.5e-3])
    assert [one["share"] for one in found] == pytest.approx([4 / 6, 0.5 / 6, 0.1 / 6, 1.5 / 6])


def test_kernels_that_ran_longer_than_the_timed_run_leave_no_idle_time() -> None:
    assert classes(rows((PRODUCT, 1, 2e-3)), 2e-3, 1.9e-3, None)[-1]["seconds"] == 0.0
    assert classes(rows((PRODUCT, 1, 2e-3)), 2e-3, 1.9e-3, None)[0]["floor_s"] is None


def test_a_softmax_between_products_is_no_attention_of_its_own() -> None:
    assert fused(rows((FLASH, 1, 1.0), (SOFTMAX, 1, 1.0)))
    assert not fused(rows((SOFTMAX, 1, 1.0), (PRODUCT, 1, 1.0)))


def test_the_floors_of_a_prefill_are_its_operations_and_add_up_to_its_bound() -> None:
    split = floor_s(LLAMA, PREFILL, variant(), RATES, last_token=False, own_attention=True)
    whole = floor_s(LLAMA, PREFILL, variant(), RATES, last_token=False, own_attention=False)
    assert split is not None
    attended = 4 * 2 * 512 * 512 * 1024 * 4
    assert split["attention"] == pytest.approx(attended / 1e13)
    assert split["matmul"] == pytest.approx((flops(LLAMA, PREFILL) - attended) / 1e13)
    assert whole == {"matmul": pytest.approx(sum(split.values()))}
    bound = least_s(LLAMA, PREFILL, variant(), RATES)
    assert bound is not None
    assert whole["matmul"] == pytest.approx(max(bound.values()))


def test_fused_attention_need_not_compute_what_a_causal_mask_hides() -> None:
    executed = variant(executed_histogram='{"GroupQueryAttention": 4}')
    found = floor_s(LLAMA, PREFILL, executed, RATES, last_token=False, own_attention=True)
    assert found is not None
    assert found["attention"] == pytest.approx(2 * 2 * 512 * 513 * 1024 * 4 / 1e13)


@pytest.mark.parametrize(
    ("passes", "precision", "number"),
    [
        ("[]", "fp32", 4.0),
        ('["precision: fp16"]', "fp32", 2.0),
        ("[]", "bf16", 2.0),
        ('["precision: fp16", "quantize: {name: kv_cache, bits: 4}"]', "fp32", 0.5),
    ],
)
def test_a_decode_step_reads_weights_for_its_products_and_its_cache_for_attention(
    passes: str, precision: str, number: float
) -> None:
    settings = json.dumps({"provider": "CUDAExecutionProvider", "precision": precision})
    rates = Rates({("matmul", "fp32"): 1e14, ("matmul", "bf16"): 1e15, ("read", ""): 1e12}, 0)
    arm = variant(passes=passes, settings=settings)
    found = floor_s(LLAMA, DECODE, arm, rates, last_token=False, own_attention=True)
    assert found is not None
    cached = 2 * 4 * 2 * 1024 * 2 * 128  # keys and values × layers × batch × positions × KV heads × head size
    assert found["attention"] == pytest.approx(cached * number / 1e12)
    assert found["matmul"] > 1e8 / 1e12


def test_a_generation_is_its_prompt_and_its_steps() -> None:
    generate = Workload(kind="generate", batch=2, prompt=512, new_tokens=9)
    middle = Workload(kind="decode", batch=2, context=515)
    found, prompt, step = (
        floor_s(LLAMA, one, variant(), RATES, last_token=False, own_attention=True)
        for one in (generate, PREFILL, middle)
    )
    assert found is not None
    assert prompt is not None
    assert step is not None
    assert found == {word: pytest.approx(prompt[word] + 8 * step[word]) for word in ("matmul", "attention")}


def test_without_a_ceiling_there_is_no_floor() -> None:
    assert floor_s(LLAMA, DECODE, variant(), Rates(), last_token=False, own_attention=True) is None


SEEN = {
    "original": [("gemm", "matmul", 14, 1e-3), ("softmax", "attention", 2, 1e-4), ("Memcpy HtoD", "copy", 1, 5e-5)],
    "fused": [("gemm", "matmul", 10, 9e-4), ("flash_fwd", "attention", 2, 2e-5)],
    "control": [("gemm", "matmul", 14, 1.1e-3)],
}


def test_the_view_has_every_arm_with_a_profile_in_the_tables_order(synthetic: ModuleType) -> None:
    recipes = {name: synthetic.Truth(0.5, executed=name) for name in ("fused", "unseen")}
    world = synthetic.world(recipes, targets={"A": "CUDAExecutionProvider"})
    world.profile(SEEN)
    frames = views.make(world.run, world.datasets())
    found = frames.gpu_time.collect()
    assert list(found["recipe"].unique(maintain_order=True)) == ["original", "fused", "control"]
    fused = found.filter(recipe="fused")
    assert fused["class"].to_list() == ["matmul", "attention", "idle"]
    time_s = frames.speedups.collect().filter(recipe="fused")["time_s"].item()
    assert fused["time_s"].to_list() == [pytest.approx(time_s)] * 3
    assert fused.filter(pl.col("class") == "idle")["seconds"].item() == pytest.approx(time_s - 9.2e-4)
    assert fused["floor_s"].to_list()[0] > 0
    # its softmax stands between products that are among all others
    assert found.filter(pl.col("class") == "attention", recipe="original")["floor_s"].item() == 0.0


def test_speedups_count_launches_and_what_a_gpu_leaves_to_the_cpu(synthetic: ModuleType) -> None:
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    world = synthetic.world({"fused": synthetic.Truth(0.5, executed="aa")}, targets=targets)
    world.profile(SEEN)
    found = views.make(world.run, world.datasets()).speedups.collect()
    columns = ("cpu_nodes", "memcpy_nodes", "kernel_launches")
    assert found.filter(recipe="original", target="A").select(columns).row(0) == (2, 1, 16.0)
    assert found.filter(recipe="original", target="B").select(columns).row(0)[:2] == (None, None)


def test_a_run_without_profiles_has_an_empty_view(synthetic: ModuleType) -> None:
    world = synthetic.world({})
    frames = views.make(world.run, world.datasets())
    assert frames.gpu_time.collect().is_empty()
    assert frames.kernels.collect().is_empty()
