from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from llama_bench.sweep import Measure, Model, Pass, Recipe, RopeScaling, Session, Sweep, Target, Workload


def model(**changes: Any) -> Model:
    return Model(**{"hidden_size": 16, "num_attention_heads": 2, "head": "none", **changes})


def sweep(**changes: Any) -> Sweep:
    parts: dict[str, Any] = {
        "name": "tiny",
        "models": (model(),),
        "recipes": {"original": Recipe()},
        "workloads": {"prefill": Workload(sequence=8, outputs="hidden")},
        "targets": {"cpu": Target(tag="bench_cpu")},
    }
    return Sweep(**{**parts, **changes})


def test_a_model_without_a_name_is_called_by_its_sizes() -> None:
    assert model(num_hidden_layers=3).label == "h16-a2-l3"
    assert model(name="mine").label == "mine"


def test_kv_heads_are_the_query_heads_unless_given() -> None:
    assert model().kv_heads == 2
    assert model(num_key_value_heads=1).kv_heads == 1
    assert model().head_size == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads 3 does not divide hidden_size 16"),
        ({"num_attention_heads": 16}, "head size 1 .* is odd"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads 3 does not divide"),
        ({"exporter": "torchscript", "opset": 21}, "ends at opset 20, not 21"),
        ({"hidden_size": "16"}, "valid integer"),
        ({"hidden_size": True}, "valid integer"),
        ({"hidden_size": 0}, "greater than 0"),
        ({"attention_mask": "yes"}, "valid boolean"),
        ({"rope_theta": float("inf")}, "finite"),
        ({"hiden_size": 16}, "Extra inputs"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**changes)


def test_a_pass_is_one_key_and_its_name() -> None:
    written = Pass.model_validate({"onnxoptimizer": "eliminate_identity"})
    assert written == Pass(family="onnxoptimizer", name="eliminate_identity")
    assert written.label == "onnxoptimizer: eliminate_identity"


@pytest.mark.parametrize("value", ["eliminate_identity", {}, {"a": "x", "b": "y"}, {"onnxoptimizer": ["x"]}, None])
def test_anything_else_is_no_pass(value: Any) -> None:
    with pytest.raises(ValidationError, match="pass"):
        Pass.model_validate(value)


def test_a_sweep_survives_json() -> None:
    recipe = Recipe(passes=(Pass(family="f", name="x"),), session=Session(io="host", provider_options={"a": 1}))
    whole = sweep(recipes={"original": Recipe(), "x": recipe}, measure=Measure(half_width=None))
    assert Sweep.model_validate_json(whole.model_dump_json()) == whole


def test_provider_options_keep_their_types() -> None:
    options = {"a": True, "b": 1, "c": 1.5, "d": "1"}
    kept = Session(provider_options=options).provider_options
    assert [(key, type(value)) for key, value in kept.items()] == [(key, type(value)) for key, value in options.items()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ()}, "at least 1"),
        ({"recipes": {}}, "at least 1"),
        ({"workloads": {}}, "at least 1"),
        ({"targets": {}}, "at least 1"),
        ({"models": (model(), model(attention_bias=True))}, "both called 'h16-a2-l2'"),
        ({"models": (model(), model(name="again"))}, "'h16-a2-l2' and 'again' differ in nothing but their names"),
        ({"recipes": {"original": Recipe(), "control": Recipe()}}, "'control' names the baseline's second arm"),
        ({"recipes": {"orignal": Recipe()}}, "baseline 'original' is not a recipe .* did you mean 'orignal'"),
        ({"recipes": {"original": Recipe(), "a b": Recipe()}}, "pattern"),
        ({"workloads": {"p": Workload(sequence=4096, outputs="hidden")}}, "4096 is longer .* 2048"),
        ({"workloads": {"p": Workload(sequence=8)}}, "'logits' needs models with head: lm, .* has head: none"),
        ({"models": (model(head="lm"),)}, "'hidden' needs models with head: none, .* has head: lm"),
        ({"models": (model(), model(name="lm", head="lm"))}, "and model lm has head: lm"),
        ({"name": "weights"}, "folder of the store"),
        ({"name": "../up"}, "pattern"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sweep(**changes)


def test_the_sequence_must_fit_the_shortest_model() -> None:
    short, long = model(name="short", max_position_embeddings=4), model(name="long")
    with pytest.raises(ValidationError, match="longer than max_position_embeddings 4 of model short"):
        sweep(models=(long, short))


def test_a_sweep_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        sweep().name = "other"  # type: ignore[misc]


def test_only_the_cpu_provider_does_without_a_gpu() -> None:
    assert not Target(tag="bench_cpu").needs_gpu
    assert Target(tag="bench_gpu", provider="CUDAExecutionProvider").needs_gpu


def test_the_factors_of_llama3s_rope_scaling_are_apart() -> None:
    with pytest.raises(ValidationError, match="high_freq_factor 1 is not above low_freq_factor 2"):
        RopeScaling(rope_type="llama3", factor=8.0, low_freq_factor=2.0, high_freq_factor=1.0)
