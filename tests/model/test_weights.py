from __future__ import annotations

import hashlib

import numpy as np
import pytest

from llama_bench.model import weights
from llama_bench.sweep import Model


def sha(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("name", "shape", "seed", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), 0, "3e300829b636b84f"),
        ("model.layers.0.self_attn.q_proj.weight", (64, 64), 1, "97e6c4ec925ec48e"),
        ("model.layers.1.self_attn.q_proj.weight", (64, 64), 0, "da80113749a3eae1"),
        ("model.layers.0.input_layernorm.weight", (64,), 0, "0ec022987673c666"),
        ("model.layers.0.self_attn.k_proj.bias", (7,), 0, "ed7154d0777a16de"),
    ],
)
def test_a_name_and_a_seed_give_the_same_bytes_on_every_node(name, shape, seed, expected):
    assert sha(weights.draw(name, shape, seed)) == expected


def test_the_table_of_quantiles_is_the_same_on_every_node():
    assert sha(weights.quantiles()) == "1cfbba1e07e34386"


def test_drawing_in_chunks_changes_nothing(monkeypatch):
    whole = weights.draw("lm_head.weight", (37, 11), 3)
    monkeypatch.setattr(weights, "CHUNK", 5)
    monkeypatch.setattr(weights, "PIECE", 7)
    np.testing.assert_array_equal(weights.draw("lm_head.weight", (37, 11), 3), whole)


def test_weights_are_normal_with_deviation_0_02():
    drawn = weights.draw("lm_head.weight", (500, 400), 0)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean()) < 2e-4
    assert drawn.std() == pytest.approx(0.02, rel=0.01)
    assert (np.abs(drawn) < 0.02).mean() == pytest.approx(0.6827, abs=0.005)


def test_norm_weights_lie_around_one():
    drawn = weights.draw("model.layers.0.post_attention_layernorm.weight", (50_000,), 0)
    assert drawn.mean() == pytest.approx(1, abs=0.002)
    assert drawn.std() == pytest.approx(0.1, rel=0.02)


def test_weight_bytes_of_the_study_are_those_of_its_largest_model():
    model = Model(hidden_size=2048, num_attention_heads=16, head="none")
    # embedding, then per layer four square projections, three of the MLP and two norms, and the last norm
    per_layer = 4 * 2048**2 + 3 * 2048 * 11008 + 2 * 2048
    assert weights.weight_bytes(model) == 4 * (32000 * 2048 + 2 * per_layer + 2048)


def test_a_tied_head_costs_no_bytes():
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 96}
    with_head, tied, without = (
        weights.weight_bytes(Model(**sizes, **more)) for more in ({}, {"tie_word_embeddings": True}, {"head": "none"})
    )
    assert with_head - tied == 4 * 96 * 32
    assert tied == without


def test_without_a_source_every_parameter_is_drawn_from_its_name(tiny):
    model = tiny(num_key_value_heads=2, head_dim=16, seed=3)
    found = list(weights.load(model))
    assert {name: values.shape for name, values in found} == weights.shapes(model)
    for name, values in found:
        np.testing.assert_array_equal(values, weights.draw(name, values.shape, 3))


def test_heads_may_be_wider_than_the_hidden_size_divided_by_them(tiny):
    shapes = weights.shapes(tiny(num_key_value_heads=2, head_dim=16))
    layer = "model.layers.0.self_attn."
    assert shapes[f"{layer}q_proj.weight"] == (64, 32) and shapes[f"{layer}o_proj.weight"] == (32, 64)
    assert shapes[f"{layer}k_proj.weight"] == shapes[f"{layer}v_proj.weight"] == (32, 32)
