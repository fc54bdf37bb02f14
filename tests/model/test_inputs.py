from __future__ import annotations

import hashlib

import numpy as np
import pytest

from llama_bench.errors import InputError
from llama_bench.model.inputs import input_names, make_inputs, output_names, step_inputs
from llama_bench.sweep import Workload


def test_a_seed_gives_the_same_tokens_on_every_machine(tiny):
    ids = make_inputs(tiny(vocab_size=32000), Workload(batch=2, sequence=8), seed=7)["input_ids"]
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:16] == "37eed6b5917021b7"
    assert ids[0].tolist() != ids[1].tolist()


def test_another_seed_gives_other_tokens(tiny):
    workload = Workload(sequence=16)
    first, second = (make_inputs(tiny(), workload, seed)["input_ids"] for seed in (0, 1))
    assert (first != second).any()


def test_inputs_have_the_timed_shape_and_stay_inside_the_vocabulary(tiny):
    inputs = make_inputs(tiny(attention_mask=True), Workload(batch=3, sequence=40))
    assert {name: (array.shape, array.dtype) for name, array in inputs.items()} == dict.fromkeys(
        input_names(tiny(attention_mask=True)), ((3, 40), np.dtype(np.int64))
    )
    assert inputs["input_ids"].min() >= 0
    assert inputs["input_ids"].max() < 96
    assert (inputs["attention_mask"] == 1).all()
    assert (inputs["position_ids"] == np.arange(40)).all()


def test_a_causal_model_takes_no_attention_mask(tiny):
    assert list(make_inputs(tiny(), Workload(sequence=4))) == ["input_ids", "position_ids"]


def test_outputs_are_named_by_what_the_workload_asks_for(tiny):
    hidden = Workload(sequence=4, outputs="hidden")
    assert output_names(tiny(num_hidden_layers=1), hidden) == ["hidden_states", "present.0.key", "present.0.value"]
    assert output_names(tiny(), Workload(sequence=4, outputs="last_logits", kv_out=False)) == ["logits"]


def test_logits_of_a_model_without_a_head_are_refused(tiny):
    with pytest.raises(InputError, match="need head: lm"):
        make_inputs(tiny(head="none"), Workload(sequence=4))


def test_a_sequence_longer_than_the_positions_is_refused(tiny):
    with pytest.raises(InputError, match="65 is longer than max_position_embeddings 64"):
        make_inputs(tiny(), Workload(sequence=65))


def test_a_cached_model_takes_and_gives_the_keys_and_values_of_every_layer(tiny):
    model = tiny(cache=True, num_hidden_layers=2)
    parts = ["0.key", "0.value", "1.key", "1.value"]
    assert input_names(model) == ["input_ids", "position_ids", *(f"past.{part}" for part in parts)]
    given_anyway = Workload(sequence=4, kv_out=False)  # without them there would be no next step
    assert output_names(model, given_anyway) == ["logits", *(f"present.{part}" for part in parts)]


def test_a_decode_step_is_given_its_context_and_its_own_token(tiny):
    decode = make_inputs(tiny(cache=True), Workload(kind="decode", batch=2, context=6))
    generate = make_inputs(tiny(cache=True), Workload(kind="generate", batch=2, prompt=5, new_tokens=3))
    assert decode["input_ids"].shape == decode["position_ids"].shape == (2, 7)
    assert generate["input_ids"].shape == (2, 5)


def test_text_cannot_be_made_without_a_cache(tiny):
    with pytest.raises(InputError, match="decode needs a KV cache: give the model cache: true"):
        make_inputs(tiny(), Workload(kind="decode", context=6))


def test_generating_beyond_the_positions_is_refused(tiny):
    make_inputs(tiny(cache=True), Workload(kind="generate", prompt=60, new_tokens=5))  # the 5th is not fed back
    with pytest.raises(InputError, match="65 is longer"):
        make_inputs(tiny(cache=True), Workload(kind="generate", prompt=60, new_tokens=6))


def test_a_step_says_where_it_stands_in_every_way_that_a_graph_may_ask_for():
    step = step_inputs(np.array([[5, 6], [7, 8]]), 3)
    assert {name: (array.tolist(), array.dtype.name) for name, array in step.items()} == {
        "input_ids": ([[5, 6], [7, 8]], "int64"),
        "position_ids": ([[3, 4], [3, 4]], "int64"),
        "seqlens_k": ([4, 4], "int32"),
        "total_sequence_length": (5, "int32"),
    }
