"""What arms answer to: inputs, torch's outputs and torch's predictions on text, against Hugging Face and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from llama_bench.errors import InputError
from llama_bench.model import llama, reference, streamed
from llama_bench.model import text as texts
from llama_bench.model.inputs import make_inputs, output_names
from llama_bench.sweep import Model, Text, Workload

PREFILL = Workload(batch=2, sequence=12)
DECODE = Workload(kind="decode", batch=2, context=9)
GENERATE = Workload(kind="generate", batch=2, prompt=7, new_tokens=12)


@pytest.fixture
def book(tmp_path):
    """A text of 2,000 bytes in which each byte depends on the last few: no two windows are alike."""
    state, path = 1, tmp_path / "book.txt"
    letters = []
    for _ in range(2000):
        state = state * 1103515245 + 12345 & 0x7FFFFFFF
        letters.append(chr(97 + state // 65536 % 26))
    path.write_text("".join(letters))
    return str(path)


def theirs(model, network):
    """Return transformers' model with the weights of `network`."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.kv_heads,
        num_hidden_layers=model.num_hidden_layers,
        intermediate_size=model.intermediate_size,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.rms_norm_eps,
        rope_theta=model.rope_theta,
        tie_word_embeddings=model.tie_word_embeddings,
        attn_implementation="eager",
    )
    made = transformers.LlamaForCausalLM(config)
    made.load_state_dict(network.state_dict())
    return made.eval()


@pytest.mark.parametrize("outputs", ["logits", "last_logits", "hidden"])
@pytest.mark.parametrize("cache", [False, True])
def test_a_prefill_has_all_outputs_that_its_workload_asks_for(tiny, tmp_path, outputs, cache):
    model = tiny(head="none" if outputs == "hidden" else "lm", cache=cache)
    workload = Workload(batch=2, sequence=12, outputs=outputs)
    facts = reference.make(model, workload, None, tmp_path)
    json.dumps(facts)
    assert set(facts) == {"seconds"}
    assert {path.name for path in tmp_path.iterdir()} == {"inputs.safetensors", "reference.safetensors"}
    given, found = load_file(tmp_path / "inputs.safetensors"), load_file(tmp_path / "reference.safetensors")
    for name, values in make_inputs(model, workload).items():
        np.testing.assert_array_equal(given[name], values)
    wanted = llama.run(llama.build(model, workload), model, workload)
    assert set(found) == set(output_names(model, workload))
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_decode_step_has_the_logits_of_its_last_token(tiny, tmp_path):
    model = tiny(cache=True, num_key_value_heads=2)
    reference.make(model, DECODE, None, tmp_path)
    found = load_file(tmp_path / "reference.safetensors")
    ids = torch.from_numpy(load_file(tmp_path / "inputs.safetensors")["input_ids"])
    assert ids.shape == (2, 10)
    with torch.inference_mode():
        wanted = theirs(model, llama.build(model, DECODE))(ids).logits[:, -1:]
    assert set(found) == {"logits"}
    np.testing.assert_allclose(found["logits"], wanted.numpy(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("more", [{}, {"num_key_value_heads": 2}])
def test_generated_tokens_are_those_of_hugging_faces_greedy_search(tiny, tmp_path, more):
    model = tiny(cache=True, **more)
    reference.make(model, GENERATE, None, tmp_path)
    found = load_file(tmp_path / "reference.safetensors")
    prompt = torch.from_numpy(load_file(tmp_path / "inputs.safetensors")["input_ids"])
    wanted = theirs(model, llama.build(model, GENERATE)).generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12, eos_token_id=None
    )
    assert set(found) == {"tokens"}
    assert found["tokens"].dtype == np.int64
    np.testing.assert_array_equal(found["tokens"], wanted[:, 7:].numpy())
    assert len(set(found["tokens"].flatten().tolist())) > 3, "so few tokens that anything would agree"


def scored_by_hand(model, network, ids, window, stride):
    """Return the logits and −ln p of every prediction that counts, one window after another, without a library."""
    rows, surprise = [], []
    for begin in range(0, len(ids) - window + 1, stride):
        piece = ids[begin : begin + window]
        with torch.inference_mode():
            logits = network(torch.from_numpy(piece[None])).logits[0].numpy()
        first = 0 if begin == 0 else window - 1 - stride
        for t in range(first, window - 1):
            rows.append(logits[t])
            shifted = logits[t].astype(np.float64) - logits[t].max()
            surprise.append(math.log(np.exp(shifted).sum()) - shifted[piece[t + 1]])
    return np.array(rows), surprise


@pytest.mark.parametrize(
    ("cache", "workload", "text", "window", "stride", "scored"),
    [
        (False, PREFILL, {"tokens": 30}, 12, 11, [11, 11, 11]),
        (False, PREFILL, {"tokens": 30, "stride": 4}, 12, 4, [11, 4, 4, 4, 4, 4]),
        (False, PREFILL, {"tokens": 5, "window": 12}, 12, 11, [11]),
        (True, PREFILL, {"tokens": 12}, 12, 11, [11, 11]),
        (True, PREFILL, {"tokens": 12, "window": 5, "stride": 2}, 5, 2, [4, 2, 2, 2, 2]),
        (True, DECODE, {"tokens": 64}, 64, 63, [63, 63]),
        (True, GENERATE, {"tokens": 20, "window": 8}, 8, 7, [7, 7, 7]),
    ],
)
def test_text_is_predicted_in_windows_as_hugging_face_predicts_it(
    tiny, tmp_path, book, cache, workload, text, window, stride, scored
):
    model, folder = tiny(cache=cache), tmp_path / "out"
    text = Text(file=book, **text)
    facts = reference.make(model, workload, text, folder)
    found = load_file(folder / "text.safetensors")
    count = window + stride * (len(scored) - 1)
    ids = texts.tokens(model, text, count)
    logits, surprise = scored_by_hand(model, theirs(model, llama.build(model, workload)), ids, window, stride)
    assert found["scored"].tolist() == scored
    assert sum(scored) >= text.tokens
    np.testing.assert_array_equal(found["windows"], [ids[i * stride :][:window] for i in range(len(scored))])
    assert found["logits"].dtype == np.float32
    np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4)
    about = json.loads((folder / "text.json").read_text())
    assert about == {"window": window, "stride": stride, "source": "book.txt"}
    assert facts["reference_perplexity"] == pytest.approx(math.exp(sum(surprise) / len(surprise)), rel=1e-5)
    assert (facts["tokens"], facts["window"], facts["stride"]) == (sum(scored), window, stride)


def test_the_perplexity_of_a_tiny_case_is_the_one_computed_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], np.float32)) + np.float32(3)
    assert reference.negative_log_likelihood(logits, np.array([1, 2])) == pytest.approx(-math.log(0.25 * 0.8), rel=1e-6)


@pytest.mark.parametrize(
    ("more", "workload"),
    [
        ({"head": "none"}, Workload(sequence=12, outputs="hidden")),
        ({"head": "none", "cache": True}, Workload(sequence=12, outputs="hidden")),
        ({}, Workload(sequence=12, outputs="last_logits")),
        ({}, Workload(sequence=1)),
    ],
)
def test_outputs_that_predict_no_text_are_not_scored_on_any(tiny, tmp_path, book, more, workload):
    assert set(reference.make(tiny(**more), workload, Text(file=book), tmp_path / "out")) == {"seconds"}
    assert not (tmp_path / "out" / "text.safetensors").exists()


def test_a_long_window_is_cut_to_the_positions_and_to_128(tiny):
    assert reference.window_length(tiny(cache=True), DECODE, Text()) == 64
    assert reference.window_length(tiny(cache=True, max_position_embeddings=4096), DECODE, Text()) == 128


@pytest.mark.parametrize(
    ("cache", "text", "message"),
    [
        (False, {"window": 13}, "sessions take 12 tokens and nothing else, so the text's window must be 12, not 13"),
        (True, {"window": 65}, "window of 65 tokens is longer than max_position_embeddings 64"),
        (True, {"tokens": 3000}, r"book\.txt: has 2000 tokens of model h32-a4-l2, and 3004 are needed"),
        (True, {"window": 8, "stride": 8}, "stride 8"),
    ],
)
def test_a_text_that_does_not_fit_is_refused_in_one_line_before_any_work(
    tiny, tmp_path, book, monkeypatch, cache, text, message
):
    monkeypatch.setattr(llama, "build", None)
    with pytest.raises(InputError, match=message) as error:
        reference.make(tiny(cache=cache), PREFILL, Text(file=book, **text), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [PREFILL, DECODE, GENERATE], ids=["prefill", "decode", "generate"])
def test_a_model_too_large_to_hold_has_the_same_reference(tiny, tmp_path, book, monkeypatch, kind):
    model, text = tiny(cache=True), Text(file=book, tokens=40, window=16)
    held = reference.make(model, kind, text, tmp_path / "held")
    monkeypatch.setattr(streamed, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(llama, "build", None)
    streaming = reference.make(model, kind, text, tmp_path / "streamed")
    assert {**streaming, "seconds": 0} == {**held, "seconds": 0}
    for name in ("inputs.safetensors", "reference.safetensors", "text.safetensors", "text.json"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()


def test_windows_go_through_torch_in_groups_of_limited_size(tiny, tmp_path, book, monkeypatch):
    model, text = tiny(cache=True), Text(file=book, tokens=60, window=8)
    reference.make(model, DECODE, text, tmp_path / "whole")
    monkeypatch.setattr(reference, "GROUP_BYTES", 4 * 8 * 96 * 2)  # two windows
    sizes = []
    forward = llama.Llama.forward

    def counted(self, *args):
        sizes.append(len(args[0]))
        return forward(self, *args)

    monkeypatch.setattr(llama.Llama, "forward", counted)
    reference.make(model, DECODE, text, tmp_path / "pairs")
    assert sizes == [2, 2, 2, 2, 2, 1]  # the step, then nine windows
    whole, pairs = (load_file(tmp_path / name / "text.safetensors") for name in ("whole", "pairs"))
    np.testing.assert_allclose(pairs["logits"], whole["logits"], rtol=0, atol=1e-5)


def test_a_trained_model_is_given_the_beginning_of_the_text_each_sequence_another_piece(
    tiny, tmp_path, book, monkeypatch
):
    model = tiny(cache=True, source="weights")
    monkeypatch.setattr(texts, "tokens", lambda model, text, count: np.arange(count) % 96)
    given = reference.inputs(model, PREFILL, Text(file=book))
    np.testing.assert_array_equal(given["input_ids"], np.arange(24).reshape(2, 12))
    np.testing.assert_array_equal(given["position_ids"], [np.arange(12)] * 2)
    without = reference.inputs(model, PREFILL, None)
    np.testing.assert_array_equal(without["input_ids"], given["input_ids"])


@pytest.mark.slow
@pytest.mark.weights
def test_a_trained_model_goes_on_with_the_text_as_in_hugging_face(smollm2, tmp_path):
    from llama_bench.model import source

    described = source.describe(str(smollm2), tmp_path)
    model = Model(**described.config, cache=True, source=str(smollm2), source_sha256=described.sha256)
    workload = Workload(kind="generate", prompt=24, new_tokens=8)
    facts = reference.make(model, workload, Text(tokens=100), tmp_path)
    prompt = torch.from_numpy(load_file(tmp_path / "inputs.safetensors")["input_ids"])
    wanted = theirs(model, llama.build(model, workload)).generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=8, eos_token_id=None
    )
    np.testing.assert_array_equal(load_file(tmp_path / "reference.safetensors")["tokens"], wanted[:, 24:].numpy())
    assert 2 < facts["reference_perplexity"] < 60  # it knows English; seeded weights come to about the vocabulary
