"""A network that holds no weights gives the answers of one that does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llama_bench.model import llama, streamed, weights
from llama_bench.sweep import Workload

VARIANTS = {
    "static": ({"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2}, "logits"),
    "cached": ({"cache": True}, "last_logits"),
    "tied": ({"cache": True, "tie_word_embeddings": True}, "logits"),
    "headless": ({"head": "none"}, "hidden"),
}


@pytest.mark.parametrize(("more", "outputs"), VARIANTS.values(), ids=VARIANTS)
def test_streaming_changes_no_bit_of_any_output_in_any_run(tiny, more, outputs):
    model, workload = tiny(**more), Workload(batch=2, sequence=8, outputs=outputs)
    wanted = llama.run(llama.build(model, workload), model, workload)
    network = streamed.stream(model, workload)
    for _ in range(2):
        found = llama.run(network, model, workload)
        assert list(found) == list(wanted)
        for name, values in wanted.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_no_more_than_one_layer_is_held_beside_a_tied_embedding(tiny, tied):
    model, workload = tiny(num_hidden_layers=3, tie_word_embeddings=tied), Workload(sequence=8)
    network = streamed.stream(model, workload)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    seen = {}

    def stage(name):
        return ".".join(name.split(".")[:3]) if "layers" in name else name

    def look(name):
        held = {stage(key) for key in parameters if network.get_parameter(key).device.type != "meta"}
        seen[name] = held - {"model.embed_tokens.weight"}

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda *_, name=name: look(name))
    llama.run(network, model, workload)
    assert len(seen) == 3 * 7 + 1
    for name, held in seen.items():
        assert held == {"lm_head.weight" if name == "lm_head" else stage(name)}, name
    look("afterwards")
    assert seen["afterwards"] == ({"lm_head.weight"} if tied else set())


def test_only_models_above_the_limit_are_streamed(tiny, monkeypatch):
    model, workload = tiny(), Workload(sequence=8)
    monkeypatch.setattr(streamed, "RESIDENT_BYTES", weights.weight_bytes(model))
    assert streamed.build(model, workload).read is None
    monkeypatch.setattr(streamed, "RESIDENT_BYTES", weights.weight_bytes(model) - 1)
    assert streamed.build(model, workload).read is not None


def test_given_weights_are_streamed_too(tiny):
    model, workload = tiny(), Workload(sequence=8)
    given = {name: weights.draw(name, shape, 7) for name, shape in weights.shapes(model).items()}
    wanted = llama.run(llama.build(model, workload, given), model, workload)["logits"]
    found = llama.run(streamed.stream(model, workload, given), model, workload)["logits"]
    np.testing.assert_array_equal(found, wanted)
