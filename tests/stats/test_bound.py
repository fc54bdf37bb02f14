from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest

from llama_bench.counts import flops, moved_bytes
from llama_bench.engines import onnxruntime as engine
from llama_bench.stats.bound import (
    Bound,
    Rates,
    best,
    bound,
    bound_s,
    fractions,
    least_s,
    limits,
    parts,
)
from llama_bench.stats.cells import cells
from llama_bench.stats.least import compute_dtype, read_cache
from llama_bench.stats.speedups import speedups
from llama_bench.sweep import Model, Session, Sweep, Target, Workload

CEILINGS = {("matmul", "fp32"): 1e12, ("matmul", "tf32"): 4e12, ("read", ""): 1e11, ("copy", ""): 8e10}


def settings(provider: str, **session: Any) -> dict[str, Any]:
    return engine.settings("onnxruntime", Session(**session), Target(tag="bench", provider=provider), 2)


def test_the_longer_of_operations_and_bytes_bounds() -> None:
    assert bound_s(5e11, 1e9, "fp32", CEILINGS, None) == pytest.approx(0.5)
    assert bound_s(5e11, 1e9, "fp32", CEILINGS, 0) == pytest.approx(0.5)
    assert bound_s(5e11, 9e10, "fp32", CEILINGS, 0) == pytest.approx(0.9)
    assert limits(5e11, 9e10, "fp32", CEILINGS, 0) == {"compute": pytest.approx(0.5), "memory": pytest.approx(0.9)}


def test_what_the_cache_keeps_between_runs_need_not_move_again() -> None:
    assert bound_s(1.0, 1e9, "fp32", CEILINGS, 2 * 10**9) == pytest.approx(1e-12)
    assert bound_s(1.0, 3e9, "fp32", CEILINGS, 2 * 10**9) == pytest.approx(1e9 / 1e11)


def test_without_a_known_cache_no_byte_must_move() -> None:
    assert bound_s(1.0, 1e12, "fp32", CEILINGS, None) == pytest.approx(1e-12)


@pytest.mark.parametrize("missing", [("matmul", "fp32"), ("read", "")])
def test_without_the_ceiling_there_is_no_bound(missing: tuple[str, str]) -> None:
    alone = {key: value for key, value in CEILINGS.items() if key != missing and key[0] != "copy"}
    assert bound_s(1e9, 1e9, "fp32", alone, 0) is None
    assert bound_s(1e9, 1e9, "bf16", CEILINGS, 0) is None


def test_a_faster_precision_has_its_own_ceiling_but_none_below_that_of_fp32() -> None:
    assert bound_s(4e12, 0, "tf32", CEILINGS, 0) == pytest.approx(1.0)
    assert bound_s(1e12, 0, "fp16", {**CEILINGS, ("matmul", "fp16"): 5e11}, 0) == pytest.approx(1.0)
    old = {key: value for key, value in CEILINGS.items() if key[1] != "tf32"}
    assert bound_s(1e12, 0, "tf32", old, 0) == pytest.approx(1.0)  # a GPU without TF32 units


def test_the_precision_is_what_the_settings_allow() -> None:
    assert compute_dtype(settings("CPUExecutionProvider")) == "fp32"
    assert compute_dtype(settings("CUDAExecutionProvider")) == "tf32"
    assert compute_dtype(settings("CUDAExecutionProvider", tf32=False)) == "fp32"
    fast = {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"}
    assert compute_dtype(settings("CPUExecutionProvider", config=fast)) == "bf16"
    options = {"trt_fp16_enable": True}
    assert compute_dtype(settings("TensorrtExecutionProvider", provider_options=options)) == "fp16"


def test_little_above_the_ceiling_is_its_noise_and_more_is_a_fault() -> None:
    assert bound(2.0, {"compute": 1.0, "memory": 0.5}) == Bound(1.0, "compute", 0.5)
    assert bound(1.0, {"compute": 1.015, "memory": 0.5}) == Bound(1.015, "compute", 1.0)
    fault = bound(1.0, {"compute": 0.5, "memory": 1.4})
    assert (fault.by, fault.share) == ("memory", pytest.approx(1.4))
    assert fault.fault == "140% of the machine's own ceiling: the measurement or the ceiling is at fault"
    assert bound(1.0, {"compute": 1.0201, "memory": 0.5}).fault is not None


def test_of_several_measurements_of_a_ceiling_the_best_counts_by_machine_and_target() -> None:
    row = {"hardware": "m", "target": "B", "what": "read", "dtype": None, "per_second": 1e10, "cache_bytes": 100}
    other = {**row, "per_second": 2e10, "dtype": ""}
    elsewhere = {**row, "hardware": "n", "per_second": 9e10, "cache_bytes": None}
    found = best([other, row, elsewhere])
    assert found["m", "B"].per_second == {("read", ""): 2e10}
    assert (found["m", "B"].cache_bytes, found["n", "B"].cache_bytes) == (100, None)


SWEEP = Sweep.model_validate(
    {
        "name": "bounds",
        "models": [{"hidden_size": 512, "num_attention_heads": 4}],
        "recipes": {"original": {}, "half": {}},
        "workloads": {"prefill": {"sequence": 16, "batch": 2}},
        "targets": {"B": {"tag": "bench_cpu"}},
    }
)
OPERATIONS = flops(SWEEP.models[0], SWEEP.workloads["prefill"])
CELL = {"id": "c", "model": "h512-a4-l2", "workload": "prefill", "target": "B"}


def _fractions(kind: str, seconds: float, rates: dict[tuple[str, str], float], weights: int = 0) -> dict[Any, Bound]:
    variant = {"settings": json.dumps(settings("CPUExecutionProvider")), "weight_bytes": weights, "class": kind}
    ceilings = [
        {"hardware": "m", "target": "B", "what": what, "dtype": dtype, "per_second": rate, "cache_bytes": 0}
        for (what, dtype), rate in rates.items()
    ]
    times = {("c", "original"): {"time_s": seconds}}
    return fractions(SWEEP, [CELL], times, {("c", "original"): variant}, [{"cell": "c", "hardware": "m"}], ceilings)


def test_an_arms_fraction_is_its_bound_over_its_time() -> None:
    found = _fractions("exact", 0.1, {("matmul", "fp32"): OPERATIONS / 0.05, ("read", ""): 1e15})
    assert found["c", "original"].share == pytest.approx(0.5)
    assert found["c", "original"].by == "compute"


def test_the_weights_that_a_variant_stores_are_the_bytes_it_moves() -> None:
    model, workload = SWEEP.models[0], SWEEP.workloads["prefill"]
    rates = {("matmul", "fp32"): 1e30, ("read", ""): 1e9}
    found = _fractions("exact", 10.0, rates, weights=200_000_000)["c", "original"]
    assert found.by == "memory"
    assert found.seconds == pytest.approx(moved_bytes(model, workload, 200_000_000) / 1e9)


def test_an_approximation_is_bounded_by_the_fastest_precision() -> None:
    rates = {("matmul", "fp32"): OPERATIONS, ("matmul", "int8"): 4 * OPERATIONS, ("read", ""): 1e15}
    assert _fractions("approximate", 0.5, rates)["c", "original"].share == pytest.approx(0.5)
    assert _fractions("exact", 0.5, rates)["c", "original"].fault is not None


def test_without_ceilings_of_this_machine_and_target_there_is_no_fraction() -> None:
    assert _fractions("exact", 1.0, {}) == {}


CACHED = Model(
    hidden_size=64, num_attention_heads=4, num_hidden_layers=2, intermediate_size=96, vocab_size=128, cache=True
)
GENERATE = Workload(kind="generate", batch=2, prompt=16, new_tokens=9)
BY_OPERATIONS = Rates({("matmul", "fp32"): 1e3, ("matmul", "bf16"): 1e6, ("read", ""): 1e30}, 0)
BY_BYTES = Rates({("matmul", "fp32"): 1e30, ("matmul", "bf16"): 1e30, ("read", ""): 1e3}, 0)


def _variant(**changed: Any) -> dict[str, Any]:
    said = {"settings": json.dumps(settings("CPUExecutionProvider")), "weight_bytes": 10**6, "class": "exact"}
    return said | {"engine": "onnxruntime", "executed_histogram": '{"MatMul": 15}'} | changed


def _half(**changed: Any) -> dict[str, Any]:
    return (
        _variant(settings=json.dumps({"engine": "torch-compile", "precision": "bf16"}), engine="torch-compile")
        | changed
    )


def test_a_generate_is_bounded_by_its_prompt_and_all_of_its_steps() -> None:
    steps = [Workload(kind="decode", batch=2, context=context) for context in range(16, 24)]
    prompt = Workload(kind="prefill", batch=2, sequence=16, outputs="last_logits")
    found = least_s(CACHED, GENERATE, _variant(), BY_OPERATIONS)
    every = sum(flops(CACHED, part) for part in (prompt, *steps)) / 1e3
    assert found == {"compute": pytest.approx(every, rel=1e-2)}
    assert found["compute"] <= every
    moved = least_s(CACHED, GENERATE, _variant(), BY_BYTES)
    size = sum(moved_bytes(CACHED, one, 10**6) + read_cache(CACHED, one, _variant()) for one in (prompt, *steps))
    assert moved == {"memory": pytest.approx(size / 1e3, rel=1e-2)}


def test_a_prompt_may_be_bounded_by_operations_and_its_steps_by_bytes() -> None:
    prompt, step = (parts(GENERATE)[i][0] for i in (0, 1))
    operations, size = flops(CACHED, prompt), moved_bytes(CACHED, step, 10**6) + read_cache(CACHED, step, _variant())
    rates = Rates({("matmul", "fp32"): operations / 5, ("read", ""): size / 2}, 0)  # 5 s, and 2 s for each of 8 steps
    [(by, least)] = least_s(CACHED, GENERATE, _variant(), rates).items()
    assert by == "memory"
    assert least == pytest.approx(5 + 8 * 2)
    # were it one run, the larger of the two sums would be all
    assert least > 8 * 2


def test_one_new_token_is_the_prompt_alone() -> None:
    one = Workload(kind="generate", prompt=16, new_tokens=1)
    prompt = Workload(kind="prefill", sequence=16, outputs="last_logits")
    assert least_s(CACHED, one, _variant(), BY_OPERATIONS) == {"compute": pytest.approx(flops(CACHED, prompt) / 1e3)}


def test_a_decode_step_has_the_operations_and_the_bytes_of_its_own() -> None:
    step = Workload(kind="decode", context=32)
    assert parts(step) == [(step, 1)]
    found = least_s(CACHED, step, _variant(), BY_BYTES)
    assert found is not None
    cache = 2 * 2 * 33 * 64 * 4  # keys and values × layers × tokens × width × bytes: a step reads all of it
    assert found["memory"] == pytest.approx((moved_bytes(CACHED, step, 10**6) + cache) / 1e3)


def test_an_engine_that_keeps_the_weights_in_bf16_moves_half_and_computes_in_bf16() -> None:
    step = Workload(kind="decode", context=32)
    full, half = (least_s(CACHED, step, one, BY_BYTES)["memory"] for one in (_variant(), _half()))
    assert half == pytest.approx(full / 2)
    assert compute_dtype({"engine": "torch-sdpa", "precision": "bf16"}) == "bf16"
    assert compute_dtype({"engine": "torch-sdpa", "precision": "fp32"}) == "fp32"
    fast = least_s(CACHED, step, _half(**{"class": "approximate"}), BY_OPERATIONS)["compute"]
    assert fast == pytest.approx(flops(CACHED, step) / 1e6)


def test_what_passes_made_small_may_have_a_small_cache_too_and_its_weights_are_those_that_are_stored() -> None:
    long = Workload(kind="prefill", batch=2, sequence=64, outputs="last_logits")
    small = _variant(**{"class": "approximate", "weight_bytes": 10**5})
    least = least_s(CACHED, long, small, BY_BYTES)["memory"] * 1e3
    stored = moved_bytes(CACHED, long, 10**5) - moved_bytes(CACHED, long, 0)
    assert stored <= least <= stored + moved_bytes(CACHED, long, 0) / 4


@pytest.mark.parametrize("fused", [{"engine": "torch-sdpa"}, {"executed_histogram": '{"GroupQueryAttention": 2}'}])
def test_fused_attention_need_not_compute_what_the_mask_hides(fused: dict[str, Any]) -> None:
    long = Workload(kind="prefill", batch=2, sequence=64, outputs="logits")
    both, one = (least_s(CACHED, long, _variant(**more), BY_OPERATIONS)["compute"] for more in ({}, fused))
    hidden = 4 * 2 * (64 * 63 // 2) * 64 * 2 / 1e3  # 4·B·pairs·width·layers
    assert both - one == pytest.approx(hidden)
    step = Workload(kind="decode", context=63)
    assert least_s(CACHED, step, _variant(**fused), BY_OPERATIONS) == least_s(CACHED, step, _variant(), BY_OPERATIONS)


def test_what_only_other_tokens_than_the_last_need_may_be_left_out_by_who_does_so() -> None:
    long = Workload(kind="prefill", batch=2, sequence=64, outputs="last_logits")
    whole = least_s(CACHED, long, _variant(), BY_OPERATIONS)["compute"]
    least = least_s(CACHED, long, _variant(), BY_OPERATIONS, last_token=True)["compute"]
    unread = 2 * (2 * 64 - 2) * 64 * (64 + 3 * 96) / 1e3  # o_proj and the feed-forward of one layer
    assert whole - least == pytest.approx(unread)
    sdpa, logits = _variant(engine="torch-sdpa"), long.model_copy(update={"outputs": "logits"})
    assert least_s(CACHED, long, sdpa, BY_OPERATIONS) == least_s(CACHED, long, sdpa, BY_OPERATIONS, last_token=True)
    for other in (logits, Workload(kind="decode", context=63)):
        assert least_s(CACHED, other, _variant(), BY_OPERATIONS, last_token=True) == least_s(
            CACHED, other, _variant(), BY_OPERATIONS
        )


def test_a_model_whose_sizes_a_pass_changed_is_bounded_by_its_stored_weights_or_not_at_all() -> None:
    step = Workload(kind="decode", context=32)
    pruned = _variant(**{"class": "approximate", "weight_bytes": 10**5})
    assert least_s(CACHED, step, pruned, BY_OPERATIONS, resized=True)["compute"] == 0.0
    assert least_s(CACHED, step, pruned, BY_BYTES, resized=True)["memory"] > 0
    prefill = Workload(kind="prefill", sequence=32, outputs="logits")
    assert least_s(CACHED, prefill, pruned, BY_BYTES, resized=True) is None


def _lit(synthetic: ModuleType, of_baseline: float, recipes: dict[str, float]) -> Any:
    """A run on a machine whose ceiling lets its baseline (2 ms) reach `of_baseline`."""
    world = synthetic.world({name: synthetic.Truth(ratio, executed=name) for name, ratio in recipes.items()})
    for row in world.rows["machines"]:
        row["hardware"] = "m"
    for row in world.rows["variants"]:
        row |= {"settings": json.dumps(settings("CPUExecutionProvider")), "weight_bytes": 0, "class": "exact"}
    world.rows["ceilings"] = [
        {"hardware": "m", "target": "B", "what": what, "dtype": dtype, "per_second": rate, "cache_bytes": 10**9}
        for what, dtype, rate in (("matmul", "fp32", LIT / (of_baseline * 2e-3)), ("read", "", 1e10))
    ]
    return world


LIT = flops(SWEEP.models[0].model_copy(update={"head": "lm"}), SWEEP.workloads["prefill"])


def _rows(world: Any) -> dict[str, dict[str, Any]]:
    return {row["recipe"]: row for row in speedups(world.run, world.datasets()).to_dicts()}


def test_the_view_has_each_arms_bound_and_its_share(synthetic: ModuleType) -> None:
    rows = _rows(_lit(synthetic, 0.5, {"fast": 0.8}))
    assert rows["original"]["of_bound"] == pytest.approx(0.5, rel=0.05)
    assert rows["fast"]["of_bound"] == pytest.approx(0.5 / 0.8, rel=0.05)
    assert {row["bound_by"] for row in rows.values()} == {"compute"}
    assert rows["fast"]["bound_s"] == rows["control"]["bound_s"] == pytest.approx(1e-3)
    assert rows["fast"]["verdict"] == "faster"


def test_an_arm_faster_than_its_machine_is_void_and_no_other(synthetic: ModuleType) -> None:
    rows = _rows(_lit(synthetic, 0.7, {"fast": 0.8, "false": 0.5}))
    assert rows["false"]["of_bound"] == pytest.approx(1.4, rel=0.05)
    assert (rows["false"]["verdict"], rows["false"]["speedup"], rows["false"]["low"]) == ("void", None, None)
    assert "% of the machine's own ceiling: the measurement or the ceiling is at fault" in rows["false"]["evidence"]
    assert (rows["fast"]["verdict"], rows["original"]["verdict"]) == ("faster", "baseline")


def test_a_baseline_faster_than_its_machine_makes_its_cell_void(synthetic: ModuleType) -> None:
    world = _lit(synthetic, 1.4, {"slow": 2.0})
    rows = _rows(world)
    assert {row["verdict"] for row in rows.values()} == {"void"}
    assert {row["speedup"] for row in rows.values()} == {None}
    assert rows["slow"]["of_bound"] == pytest.approx(0.7, rel=0.05)
    assert rows["slow"]["evidence"].startswith("nothing to compare with: original is at 1")
    [cell] = cells(world.run, world.datasets()).to_dicts()
    assert (cell["void"], cell["ended_by"], cell["best"]) == (True, None, None)


def test_a_run_without_ceilings_has_no_bounds_and_its_verdicts_all_the_same(synthetic: ModuleType) -> None:
    world = _lit(synthetic, 1.4, {"fast": 0.8})
    world.rows["ceilings"] = []
    rows = _rows(world)
    assert {(row["bound_s"], row["bound_by"], row["of_bound"]) for row in rows.values()} == {(None, None, None)}
    assert rows["fast"]["verdict"] == "faster"
