"""What a plan needs, from counted operations and bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llama_bench.counts import flops, moved_bytes, output_bytes
from llama_bench.estimate import BYTES_PER_S, ON_CPU, arm_bytes, build_kind, build_memory, cell_seconds, estimates
from llama_bench.model.weights import weight_bytes
from llama_bench.plan import make
from llama_bench.sweep import Measure, Model, Pass, Recipe, Sweep, Target, Workload

from .effort import calls

STUDY = Model(hidden_size=2048, num_attention_heads=16, head="none", exporter="torchscript", opset=17)
PREFILL = Workload(batch=2, sequence=1024, outputs="hidden")


def _sweep(models: tuple[Model, ...], recipes: dict[str, Recipe], **measure: float | None) -> Sweep:
    return Sweep(
        name="sweep",
        models=models,
        recipes=recipes,
        workloads={"prefill": PREFILL},
        targets={"B": Target(tag="bench_cpu")},
        measure=Measure.model_validate(measure),
    )


def _recipe(*names: str) -> Recipe:
    return Recipe(passes=tuple(Pass(family="onnxoptimizer", name=name) for name in names))


def test_operations_of_the_studys_largest_model_are_counted_by_hand() -> None:
    layer = 4 * 2048**2 + 3 * 2048 * 11008
    assert flops(STUDY, PREFILL) == 2 * (2 * layer) * 2048 + 2 * 4 * 2 * 1024**2 * 2048


def test_the_head_costs_operations_only_where_logits_come_out() -> None:
    headed = STUDY.model_copy(update={"head": "lm"})
    hidden, last, every = (
        flops(headed, PREFILL.model_copy(update={"outputs": outputs}))
        for outputs in ("hidden", "last_logits", "logits")
    )
    assert hidden == flops(STUDY, PREFILL)
    assert last - hidden == 2 * 2048 * 32000 * 2
    assert every - hidden == 2 * 2048 * 32000 * 2048


def test_outputs_are_hidden_states_and_the_cache_of_every_layer() -> None:
    assert output_bytes(STUDY, PREFILL) == 4 * (2048 * 2048 + 2 * 2 * 2048 * 2048)
    grouped = STUDY.model_copy(update={"num_key_value_heads": 4})
    assert output_bytes(grouped, PREFILL) == 4 * (2048 * 2048 + 2 * 2 * 2048 * 512)


def test_llama_2_7b_in_four_bits_is_built_within_24_gb_and_learned_or_copied_forms_are_not() -> None:
    large = Model(hidden_size=4096, num_attention_heads=32, num_hidden_layers=32, exporter="dynamo", cache=True)
    bits = {"quantize": {"bits": 4}}
    recipes = {
        name: Recipe(passes=(Pass.model_validate(said),))
        for name, said in {
            "int4": bits,
            "gptq": {"quantize": {"bits": 4, "method": "gptq"}},
            "copied": {"onnxoptimizer": "default"},
        }.items()
    }
    sweep = Sweep(
        name="sweep",
        models=(large,),
        recipes={"original": Recipe(), **recipes},
        workloads={"decode": Workload(kind="decode", context=128)},
        targets={"B": Target(tag="bench_cpu")},
    )
    found = {build_kind(artifact): artifact for artifact in make(sweep, {}).artifacts.values()}
    memory = {kind: build_memory(large, kind) for kind in found}
    assert weight_bytes(large) > 26e9
    assert max(memory[kind] for kind in ("dynamo", "reference", "quantize")) < 24e9
    assert min(memory[kind] for kind in ("quantize on text", "onnxoptimizer")) > 24e9


TINY = Model(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=16, vocab_size=100)
SHORT = Workload(batch=2, sequence=3, outputs="logits", kv_out=False)
LAYER, EMBEDDING = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8 + 8, 100 * 8  # parameters: products, two norms and the last one
IDS, LOGITS, ROWS = 2 * 6 * 8, 6 * 100 * 4, 6 * 8 * 4  # bytes: two int64 inputs, fp32 logits, looked-up rows


def test_bytes_to_move_are_weights_once_looked_up_rows_inputs_and_outputs() -> None:
    assert weight_bytes(TINY) == 4 * (LAYER + 2 * EMBEDDING)
    assert moved_bytes(TINY, SHORT, weight_bytes(TINY)) == 4 * (LAYER + EMBEDDING) + ROWS + IDS + LOGITS
    masked = TINY.model_copy(update={"attention_mask": True})
    assert moved_bytes(masked, SHORT, weight_bytes(TINY)) == 4 * (LAYER + EMBEDDING) + ROWS + 3 * 6 * 8 + LOGITS


def test_an_lm_head_moves_only_where_logits_come_out_and_a_tied_one_is_the_whole_embedding() -> None:
    hidden = SHORT.model_copy(update={"outputs": "hidden"})
    states = 6 * 8 * 4
    assert moved_bytes(TINY, hidden, weight_bytes(TINY)) == 4 * LAYER + ROWS + IDS + states
    graph = 4 * (LAYER + EMBEDDING)  # an export for hidden states has no head in it
    assert moved_bytes(TINY, hidden, graph) == 4 * LAYER + ROWS + IDS + states
    tied = TINY.model_copy(update={"tie_word_embeddings": True})
    assert moved_bytes(tied, SHORT, graph) == 4 * (LAYER + EMBEDDING) + IDS + LOGITS
    twice = graph + 4 * EMBEDDING  # an exporter keeps a turned copy
    assert moved_bytes(tied, SHORT, twice) == moved_bytes(tied, SHORT, graph)
    assert moved_bytes(tied, hidden, graph) == 4 * LAYER + ROWS + IDS + states


def test_biases_and_the_cache_move_too_and_smaller_weights_move_less() -> None:
    biased = TINY.model_copy(update={"attention_bias": True, "mlp_bias": True})
    more = moved_bytes(biased, SHORT, weight_bytes(biased)) - moved_bytes(TINY, SHORT, weight_bytes(TINY))
    assert more == 4 * (4 * 8 + 2 * 16 + 8)
    cached = SHORT.model_copy(update={"kv_out": True})
    more = moved_bytes(TINY, cached, weight_bytes(TINY)) - moved_bytes(TINY, SHORT, weight_bytes(TINY))
    assert more == 2 * 6 * 8 * 4
    quantised = 4 * EMBEDDING + LAYER + EMBEDDING  # a byte each, but for the embedding
    assert moved_bytes(TINY, SHORT, quantised) == LAYER + EMBEDDING + ROWS + IDS + LOGITS


def test_no_more_rows_are_looked_up_than_the_embedding_has() -> None:
    long = SHORT.model_copy(update={"sequence": 200})
    assert moved_bytes(TINY, long, weight_bytes(TINY)) == weight_bytes(TINY) + 400 * (2 * 8 + 100 * 4)


def test_an_arm_of_the_studys_largest_model_takes_what_was_measured() -> None:
    assert arm_bytes(STUDY, PREFILL) == pytest.approx(2.5e9, rel=0.1)  # 2.48 GB of its own, measured


def test_weights_are_counted_once_however_many_recipes_and_opsets_use_them() -> None:
    one = estimates(make(_sweep((STUDY,), {"original": Recipe()}), {}), 1e11)
    recipes = {"original": Recipe(), "one": _recipe("nop"), "two": _recipe("nop", "eliminate_identity")}
    other_opset = STUDY.model_copy(update={"opset": 16, "name": "again"})
    many = estimates(make(_sweep((STUDY, other_opset), recipes), {}), 1e11)
    assert one.weight_bytes == many.weight_bytes == weight_bytes(STUDY)
    assert (many.exports, many.passes) == (2, 4)
    assert many.disk_bytes == many.weight_bytes + many.graph_bytes + many.reference_bytes


def test_variants_that_store_their_weights_anew_take_that_much_more() -> None:
    def stored(*passes: dict[str, Any]) -> int:
        model = STUDY.model_copy(update={"exporter": "dynamo", "opset": 18})
        recipe = Recipe(passes=tuple(Pass.model_validate(said) for said in passes))
        plan = make(_sweep((model,), {"original": Recipe(), "one": recipe}), {})
        return estimates(plan, 1e11).weight_bytes - weight_bytes(STUDY)

    size, half, turn = weight_bytes(STUDY), {"precision": "fp16"}, {"fuse": "turn"}
    assert stored({"onnxoptimizer": "eliminate_identity"}) == 0
    assert stored(half) == size // 2
    assert stored(turn, half) == size + size // 2
    assert stored(half, turn) == size  # half of it twice
    assert stored(half, {"quantize": {"bits": 4}}) == size // 2 + size // 8
    assert stored({"quantize": "dynamic"}) == size // 4
    assert size // 10 < stored({"fuse": "all"}) < size // 5


def test_another_seed_is_other_weights() -> None:
    seeded = STUDY.model_copy(update={"seed": 1, "name": "seeded"})
    needs = estimates(make(_sweep((STUDY, seeded), {"original": Recipe()}), {}), 1e11)
    assert needs.weight_bytes == 2 * weight_bytes(STUDY)


def test_a_machine_twice_as_fast_halves_a_run_and_a_gpu_has_its_own_rate() -> None:
    plan = make(_sweep((STUDY,), {"original": Recipe()}), {})
    slow, fast = (estimates(plan, rate).cells[0] for rate in (1e11, 2e11))
    assert slow.run_s == pytest.approx(2 * fast.run_s)
    on_gpu = make(
        plan.sweep.model_copy(update={"targets": {"A": Target(tag="bench_gpu", provider="CUDAExecutionProvider")}}), {}
    )
    assert estimates(on_gpu, 1e11).cells[0].run_s == estimates(on_gpu, 2e11).cells[0].run_s < fast.run_s


def test_the_budget_bounds_a_cell_only_where_a_half_width_asks_for_more_than_the_pilot() -> None:
    recipes = {"original": Recipe()}
    pilot = estimates(make(_sweep((STUDY,), recipes, half_width=None, budget_s=1e6), {}), 1e11)
    more = estimates(make(_sweep((STUDY,), recipes, half_width=0.01, budget_s=1e6), {}), 1e11)
    assert pilot.most_s == pilot.pilot_s == more.pilot_s
    assert more.most_s == 1e6


def test_confirming_the_fastest_of_several_recipes_times_three_arms_once_more() -> None:
    recipes = {name: Recipe() for name in ("original", "a", "b", "c", "d")}  # and the control
    needs, without = (
        estimates(make(_sweep((STUDY,), recipes, half_width=None, confirm=confirm), {}), 1e11)
        for confirm in (True, False)
    )
    assert without.most_s == without.pilot_s == needs.pilot_s
    assert needs.most_s == pytest.approx(1.5 * needs.pilot_s)


def test_seconds_of_a_cell_grow_with_each_of_its_counts() -> None:
    measure = Measure(restarts=6, blocks=4, runs=5)
    base = cell_seconds(measure, 3, 0.5, 10**9)
    assert base > 3 * 6 * 4 * 5 * 0.5
    for counts in ({"restarts": 7}, {"blocks": 5}, {"runs": 6}):
        assert cell_seconds(measure.model_copy(update=counts), 3, 0.5, 10**9) > base
    assert cell_seconds(measure, 4, 0.5, 10**9) == pytest.approx(base * 4 / 3)
    washed = replace(ON_CPU, washout_s=0.7)
    assert cell_seconds(measure, 3, 0.5, 10**9, washed) == pytest.approx(base + 3 * 6 * 4 * 0.2)
    together = replace(ON_CPU, restart_s=2.0)
    assert cell_seconds(measure, 3, 0.5, 10**9, together) == pytest.approx(base + 6 * 2.0)


GPU = {"gpu": Target(tag="bench_gpu", provider="CUDAExecutionProvider")}


def test_cells_on_a_gpu_take_about_what_they_took() -> None:
    large = Model(hidden_size=4096, num_attention_heads=32, num_hidden_layers=32, exporter="dynamo", cache=True)
    names = {name: Recipe() for name in "abcdefghi"}
    measure = {"restarts": 6, "blocks": 6, "runs": 30, "half_width": None, "confirm": False}
    study = make(_sweep((STUDY,), {"original": Recipe(), **names}, **measure).model_copy(update={"targets": GPU}), {})
    [cell] = estimates(study, 1e11).cells
    washout_s = 6 * 6 * cell.arms * 0.25  # an H200 took 425 s for 20 arms when a washout took 50 ms
    assert 0.5 < (cell.pilot_s - washout_s) / (425 * cell.arms / 20) < 2
    step = study.sweep.model_copy(
        update={
            "models": (large,),
            "recipes": {"original": Recipe(), "a": Recipe(), "b": Recipe()},
            "workloads": {"step": Workload(kind="decode", context=1024)},
        }
    )
    [cell] = estimates(make(step, {}), 1e11).cells
    assert 0.5 < (cell.pilot_s - 6 * 6 * 4 * 0.25) / 162 < 2  # the same, 4 arms


def test_a_step_takes_as_long_as_its_weights_take_to_read() -> None:
    small = STUDY.model_copy(update={"cache": True, "head": "lm", "exporter": "dynamo", "opset": 18})
    sweep = _sweep((STUDY,), {"original": Recipe()})
    sweep = sweep.model_copy(update={"models": (small,), "workloads": {"step": Workload(kind="decode", context=64)}})
    [cell] = estimates(make(sweep, {}), 1e13).cells
    read = moved_bytes(small, sweep.workloads["step"], weight_bytes(small))
    assert cell.run_s == pytest.approx(read / BYTES_PER_S)


def test_estimating_grows_with_the_variants_and_no_faster() -> None:
    def effort(models: int, recipes: int) -> int:
        sizes = tuple(STUDY.model_copy(update={"seed": seed, "name": f"m{seed}"}) for seed in range(models))
        named = {"original": Recipe()} | {f"r{i}": _recipe(*["nop"] * (i + 1)) for i in range(recipes - 1)}
        plan = make(_sweep(sizes, named), {})
        assert len(plan.artifacts) == models * (recipes + 1)
        return calls(lambda: estimates(plan, 1e11))

    assert effort(90, 30) < 1.1 * 9 * effort(30, 10)
