"""The network against Hugging Face's own, on the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llama_bench.errors import WorkError
from llama_bench.model import layers, llama, weights
from llama_bench.model.inputs import input_names, make_inputs, output_names, positions, token_ids
from llama_bench.sweep import Model, RopeScaling, Workload

# Of the four wavelengths of a head of 8 one is kept, one lies between, and two are stretched.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "multi-head": {},
    "grouped": {"num_key_value_heads": 2},
    "one KV head": {"num_key_value_heads": 1},
    "biased": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "masked": {"attention_mask": True},
    "other base and eps": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
    "stretched evenly": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "stretched by wavelength": {"rope_scaling": LLAMA3, "num_key_value_heads": 2},
    "wide heads": {"head_dim": 12, "num_key_value_heads": 2},
    "narrow heads": {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True},
    "flattened": {"flatten_tokens": True},
    "flattened, biased": {"flatten_tokens": True, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "flattened, wide heads": {"flatten_tokens": True, "head_dim": 12},
    "flattened, masked, tied": {"flatten_tokens": True, "attention_mask": True, "tie_word_embeddings": True},
}

CACHED = [name for name, keys in VARIANTS.items() if not {"flatten_tokens", "attention_mask"} & keys.keys()]

CONFIG = [
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
]


def hugging_face(model: Model, network: llama.Llama) -> torch.nn.Module:
    """Return transformers' model with the weights of `network`, loaded by name without a missing or extra one."""
    import transformers

    config = transformers.LlamaConfig(
        **{name: getattr(model, name) for name in CONFIG},
        head_dim=model.head_size,
        rope_scaling=model.rope_scaling.model_dump() if model.rope_scaling else None,
        num_key_value_heads=model.kv_heads,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaForCausalLM(config) if model.head == "lm" else transformers.LlamaModel(config)
    prefix = "" if model.head == "lm" else "model."
    theirs.load_state_dict({name.removeprefix(prefix): value for name, value in network.state_dict().items()})
    return theirs.eval()


def their_outputs(theirs: torch.nn.Module, **inputs: object) -> list[np.ndarray]:
    with torch.inference_mode():
        out = theirs(**inputs, use_cache=True)
    first = out.logits if hasattr(out, "logits") else out.last_hidden_state
    kept = [part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)]
    return [tensor.numpy() for tensor in (first, *kept)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", ["lm", "none"])
def test_outputs_agree_with_hugging_face_on_the_same_weights(tiny, variant, head):
    model = tiny(head=head, **VARIANTS[variant])
    workload = Workload(batch=2, sequence=12, outputs="logits" if head == "lm" else "hidden")
    network = llama.build(model, workload)
    ours = llama.run(network, model, workload)
    inputs = {name: torch.from_numpy(array) for name, array in make_inputs(model, workload).items()}
    theirs = their_outputs(hugging_face(model, network), **inputs)
    assert list(ours) == output_names(model, workload)
    for (name, mine), other in zip(ours.items(), theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4, err_msg=name)
        assert np.abs(mine).max() > 1e-2, f"{name} is so small that anything would agree"


@pytest.mark.parametrize("variant", CACHED)
def test_a_prefill_and_steps_through_the_cache_agree_with_hugging_face(tiny, variant):
    model = tiny(cache=True, **VARIANTS[variant])
    network = llama.build(model, Workload(sequence=1))
    theirs, ids = hugging_face(model, network), token_ids(model, 2, 12)
    cache, past = llama.empty_cache(model, 2), None
    for start, end in ((0, 6), (6, 7), (7, 8), (8, 12)):
        given = {"input_ids": ids[:, start:end], "position_ids": positions(2, start, end - start)}
        with torch.inference_mode():
            ours = network(*llama.arguments(model, given, cache))
            there = {name: torch.from_numpy(array) for name, array in given.items()}
            out = theirs(**there, past_key_values=past, use_cache=True)
        past = out.past_key_values
        kept = [part for layer in past.layers for part in (layer.keys, layer.values)]
        for mine, other in zip(ours, [out.logits, *kept], strict=True):
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=1e-4)
        cache = list(zip(ours[1::2], ours[2::2], strict=True))


def test_a_cached_model_gives_the_outputs_of_the_static_one(tiny):
    workload = Workload(batch=2, sequence=9)
    plain, cached = (llama.run(llama.build(model, workload), model, workload) for model in (tiny(), tiny(cache=True)))
    assert list(plain) == list(cached)
    for name, values in plain.items():
        np.testing.assert_allclose(cached[name], values, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("scaling", [{"rope_type": "linear", "factor": 4.0}, LLAMA3], ids=["linear", "llama3"])
def test_stretched_positions_change_the_answers(tiny, scaling):
    workload = Workload(sequence=40, kv_out=False)
    plain, stretched = (
        llama.run(llama.build(model, workload), model, workload)["logits"]
        for model in (tiny(), tiny(rope_scaling=scaling))
    )
    assert np.abs(plain - stretched).max() > 1e-4


def test_short_waves_are_kept_and_long_ones_stretched_with_a_ramp_between():
    turns = np.array([100.0, 4.0, 2.5, 1.0, 0.01])  # in the length of the training's texts
    frequencies = turns * 2 * np.pi / 8192
    scaling = RopeScaling(rope_type="llama3", factor=8.0)
    np.testing.assert_allclose(llama.stretched(frequencies, scaling) / frequencies, [1, 1, 0.5625, 1 / 8, 1 / 8])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("kv_heads", "flat"), [(4, False), (2, False), (2, True)])
def test_padded_batches_agree_with_hugging_face_where_there_are_tokens(tiny, side, kv_heads, flat):
    model = tiny(attention_mask=True, num_key_value_heads=kv_heads, flatten_tokens=flat)
    workload = Workload(batch=2, sequence=10)
    network = llama.build(model, workload)
    inputs = {name: torch.from_numpy(array) for name, array in make_inputs(model, workload).items()}
    padding = slice(0, 4) if side == "left" else slice(6, 10)
    inputs["attention_mask"][1, padding] = 0
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        ours = network(*(inputs[name] for name in input_names(model)))
    theirs = their_outputs(hugging_face(model, network), **inputs)
    tokens = inputs["attention_mask"].numpy().astype(bool)
    assert all(torch.isfinite(tensor).all() for tensor in ours)
    np.testing.assert_allclose(ours[0].numpy()[tokens], theirs[0][tokens], rtol=0, atol=1e-4)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        seen = mine.numpy().transpose(0, 2, 1, 3)[tokens], other.transpose(0, 2, 1, 3)[tokens]
        np.testing.assert_allclose(*seen, rtol=0, atol=1e-4)


@pytest.mark.parametrize("outputs", ["logits", "last_logits", "hidden"])
@pytest.mark.parametrize("bias", [True, False])
def test_flattened_tokens_change_neither_weights_nor_outputs(tiny, outputs, bias):
    more = {"attention_bias": bias, "mlp_bias": bias, "num_key_value_heads": 2, "attention_mask": True}
    more["head"] = "none" if outputs == "hidden" else "lm"
    plain, flat = tiny(**more), tiny(**more, flatten_tokens=True)
    workload = Workload(batch=3, sequence=7, outputs=outputs)
    networks = {model: llama.build(model, workload) for model in (plain, flat)}
    states = [networks[model].state_dict() for model in (plain, flat)]
    assert list(states[0]) == list(states[1])
    for name, values in states[0].items():
        np.testing.assert_array_equal(states[1][name], values, err_msg=name)
    wanted, found = (llama.run(networks[model], model, workload) for model in (plain, flat))
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        assert found[name].shape == values.shape
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("flat", "shape"), [(False, (2, 6)), (True, (12,))])
def test_every_linear_layer_sees_its_tokens_in_the_shape_that_the_model_says(tiny, flat, shape):
    model, workload = tiny(flatten_tokens=flat), Workload(batch=2, sequence=6)
    network = llama.build(model, workload)
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, given, made, name=name: seen.update({name: (given[0], made)}))
    llama.run(network, model, workload)
    assert len(seen) == 2 * 7 + 1
    for given, made in seen.values():
        assert given.shape[:-1] == made.shape[:-1] == shape


def test_padding_is_not_seen_by_the_tokens(tiny):
    model = tiny(attention_mask=True)
    network = llama.build(model, Workload(sequence=8))
    ids, mask, positions = (
        torch.from_numpy(array)
        for array in (make_inputs(model, Workload(sequence=8))[name] for name in input_names(model))
    )
    mask[:, :3] = 0
    other = ids.clone()
    other[:, :3] = (ids[:, :3] + 1) % model.vocab_size
    with torch.inference_mode():
        first, second = network(ids, mask, positions)[0], network(other, mask, positions)[0]
    torch.testing.assert_close(first[:, 3:], second[:, 3:], rtol=0, atol=0)
    assert (first[:, :3] != second[:, :3]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masked_scores_survive_every_float_type(dtype):
    allowed = torch.tensor([[True, True, False], [False, False, False]])
    probabilities = torch.softmax(torch.zeros(2, 3, dtype=dtype) + layers.additive(allowed).to(dtype), dim=-1)
    assert torch.isfinite(probabilities).all()
    assert probabilities[0, 2] == 0


def test_the_last_logits_are_those_of_the_last_token(tiny):
    model = tiny()
    workloads = Workload(batch=2, sequence=6), Workload(batch=2, sequence=6, outputs="last_logits")
    everything, last = (llama.run(llama.build(model, workload), model, workload) for workload in workloads)
    assert last["logits"].shape == (2, 1, model.vocab_size)
    np.testing.assert_allclose(last["logits"], everything["logits"][:, -1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("changed", VARIANTS.values(), ids=VARIANTS)
def test_weight_bytes_count_every_parameter_once(tiny, changed):
    model = tiny(**changed)
    network = llama.build(model, Workload(sequence=4))
    assert weights.weight_bytes(model) == sum(p.numel() * p.element_size() for p in network.parameters())


def test_a_tied_head_shares_the_memory_of_the_embedding(tiny):
    network = llama.build(tiny(tie_word_embeddings=True), Workload(sequence=4))
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_parameters_hold_the_seeded_weights(tiny):
    model = tiny(seed=5)
    drawn = weights.draw("model.norm.weight", (32,), 5)
    np.testing.assert_array_equal(llama.build(model, Workload(sequence=4)).state_dict()["model.norm.weight"], drawn)


def checkpoint(model: Model) -> dict[str, np.ndarray]:
    return {name: weights.draw(name, shape, 7) for name, shape in weights.shapes(model).items()}


@pytest.mark.parametrize("tied", [True, False])
def test_given_weights_take_the_place_of_the_models_own(tiny, tied):
    model, workload = tiny(tie_word_embeddings=tied), Workload(sequence=4)
    given = checkpoint(model) | ({"lm_head.weight": np.zeros((96, 32), np.float32)} if tied else {})
    ours, own = llama.build(model, workload, given), llama.build(model.model_copy(update={"seed": 7}), workload)
    assert list(ours.state_dict()) == list(own.state_dict())
    for name, values in own.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.norm.weight": None}, r"lack model\.norm\.weight \(and 0 more\)"),
        ({"model.norm.weight": np.ones(31, np.float32)}, r"model\.norm\.weight has shape \[31\], not \[32\]"),
        ({"model.norm.bias": np.ones(32, np.float32)}, r"hold model\.norm\.bias, which the model does not have"),
    ],
)
def test_given_weights_that_do_not_fit_are_refused_by_name(tiny, changed, message):
    given = {name: array for name, array in (checkpoint(tiny()) | changed).items() if array is not None}
    with pytest.raises(WorkError, match=message):
        llama.build(tiny(), Workload(sequence=4), given)


def test_other_outputs_are_computed_with_the_same_weights(tiny):
    model = tiny(cache=True)
    network = llama.build(model, Workload(sequence=5, outputs="last_logits"))
    everything = network.returning("logits")
    assert everything.lm_head.weight is network.lm_head.weight
    whole, last = (llama.run(which, model, Workload(sequence=5))["logits"] for which in (everything, network))
    np.testing.assert_allclose(whole[:, -1:], last, rtol=0, atol=1e-6)
