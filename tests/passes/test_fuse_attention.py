"""Attention as one operator: with a KV cache, in one buffer or a growing one, and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxscript.rewriter import RewriteRuleSet

from llama_bench import graph, passes
from llama_bench.errors import WorkError
from llama_bench.model import inputs
from llama_bench.passes.fuse import attention
from llama_bench.sweep import Pass

ALL = {"fuse": "all"}
CACHED = {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}


def test_attention_takes_lengths_instead_of_positions(exported: Callable[..., Any], tmp_path: Path) -> None:
    after = exported(**CACHED).applied(tmp_path, {"fuse": "attention"}).proto
    inputs, outputs = graph.signature(after)
    assert list(inputs)[:4] == ["input_ids", "seqlens_k", "total_sequence_length", "past.0.key"]
    assert inputs["seqlens_k"] == (onnx.TensorProto.INT32, ("batch",))
    assert inputs["total_sequence_length"] == (onnx.TensorProto.INT32, ())
    assert inputs["past.1.value"] == (onnx.TensorProto.FLOAT, ("batch", 2, "past", 16))
    assert list(outputs) == ["logits", *(f"present.{i}.{part}" for i in (0, 1) for part in ("key", "value"))]
    node = next(node for node in after.graph.node if node.op_type == "GroupQueryAttention")
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    assert attributes == {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1}


@pytest.mark.parametrize("heads", [{"num_key_value_heads": 2, "tie_word_embeddings": True}, {}])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("prompt", [1, 7, 30])
def test_generated_tokens_are_those_of_the_unfused_graph(
    heads: dict[str, Any], batch: int, prompt: int, exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(cache=True, **heads)
    after = before.applied(tmp_path, ALL)
    tokens = np.random.default_rng(prompt).integers(0, 128, (batch, prompt))
    expected = generated(before, tokens, 12)
    np.testing.assert_array_equal(generated(after, tokens, 12), expected)
    np.testing.assert_array_equal(generated(after, tokens, 12, buffer=prompt + 11), expected)
    np.testing.assert_array_equal(generated(after, tokens, 12, buffer=64), expected)


def generated(variant: Any, tokens: np.ndarray, new: int, buffer: int = 0) -> np.ndarray:
    """Return the `new` most likely tokens after `tokens`; with a `buffer` past and present are one of that length.

    What is in the buffer before it is filled is NaN, which must not be read.
    """
    session, made, past, step = variant.session(), [], 0, tokens
    binding = session.io_binding()
    wanted = {value.name: value for value in session.get_inputs()}
    caches = {
        name: np.full((len(tokens), value.shape[1], buffer, value.shape[3]), np.nan, np.float32)
        for name, value in wanted.items()
        if name.startswith("past.")
    }
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in caches.items()}
    for _ in range(new):
        for name, array in inputs.step_inputs(step, past).items():
            if name in wanted:
                binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            name = output.name.replace("present.", "past.")
            if name in values:
                binding.bind_ortvalue_input(name, values[name])
            if name in values and buffer:
                binding.bind_ortvalue_output(output.name, values[name])
            else:
                binding.bind_output(output.name)
        session.run_with_iobinding(binding)
        results = dict(zip([output.name for output in session.get_outputs()], binding.get_outputs(), strict=True))
        if not buffer:
            values = {name: results[name.replace("past.", "present.")] for name in values}
        past += step.shape[1]
        step = results["logits"].numpy()[:, -1].argmax(-1)[:, None]
        made.append(step)
    return np.concatenate(made, axis=1)


@pytest.mark.parametrize("scaling", [LLAMA3, {"rope_type": "linear", "factor": 4.0}])
def test_a_scaling_of_rope_comes_along(scaling: dict[str, Any], exported: Callable[..., Any], tmp_path: Path) -> None:
    before, plain = exported(**CACHED, rope_scaling=scaling), exported(**CACHED)
    after, unscaled = (graph.applied(tmp_path / str(i), ALL) for i, graph in enumerate((before, plain)))
    assert not np.allclose(after.constants()["cos_cache"], unscaled.constants()["cos_cache"], atol=1e-2)
    tokens = np.random.default_rng(3).integers(0, 128, (2, 60))
    for name, array in before.run(tokens).items():
        np.testing.assert_allclose(after.run(tokens)[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


def test_the_tables_are_as_long_as_the_model_has_positions(exported: Callable[..., Any], tmp_path: Path) -> None:
    after = exported(**CACHED).applied(tmp_path, ALL)
    inverse = 10000.0 ** -(np.arange(0, 16, 2) / 16)
    angles = np.arange(64)[:, None] * inverse
    np.testing.assert_allclose(after.constants()["cos_cache"], np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(after.constants()["sin_cache"], np.sin(angles), atol=1e-5)


def test_another_scale_of_the_scores_is_kept(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = edited(exported(**CACHED), tmp_path / "edited", lambda proto: scaled(proto, 0.5))
    after = before.applied(tmp_path / "after", ALL)
    for node in after.nodes("GroupQueryAttention"):
        assert {attribute.name: attribute.f for attribute in node.attribute}["scale"] == 0.5
    for name, array in before.run().items():
        np.testing.assert_allclose(after.run()[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


def test_a_layer_with_another_attention_is_named(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = edited(exported(**CACHED), tmp_path / "edited", last_axis_by_its_number)
    with pytest.raises(WorkError, match=r"fuse: node node_softmax_1 \(Softmax\) is in no attention"):
        before.applied(tmp_path / "after", {"fuse": "attention"})
    assert not list((tmp_path / "after").rglob("model.onnx"))


def test_a_mask_that_hides_too_little_is_left_alone(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = edited(exported(**CACHED), tmp_path / "edited", weakly_masked)
    after = before.applied(tmp_path / "after", {"fuse": "attention"})
    assert not after.nodes("GroupQueryAttention")
    assert len(after.nodes("Softmax")) == 2


def edited(variant: Any, folder: Path, edit: Callable[[onnx.ModelProto], None]) -> Any:
    proto = variant.proto
    edit(proto)
    folder.mkdir()
    onnx.save(proto, folder / "model.onnx")
    return type(variant)(variant.model, variant.workload, folder)


def scaled(proto: onnx.ModelProto, factor: float) -> None:
    for tensor in proto.graph.initializer:
        if not tensor.dims and onnx.numpy_helper.to_array(tensor) == 0.25:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(factor, np.float32), tensor.name))


def weakly_masked(proto: onnx.ModelProto) -> None:
    for tensor in proto.graph.initializer:
        if not tensor.dims and onnx.numpy_helper.to_array(tensor) == -1e4:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(-10, np.float32), tensor.name))


def last_axis_by_its_number(proto: onnx.ModelProto) -> None:
    node = [node for node in proto.graph.node if node.op_type == "Softmax"][1]
    node.attribute[0].i = 3


def test_a_head_that_the_operator_cannot_turn_stays_traced(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(cache=True, head_dim=8)
    after = before.applied(tmp_path, ALL)
    assert len(after.nodes("Softmax")) == 2
    assert len(after.nodes("SkipSimplifiedLayerNormalization")) == 4
    for name, array in before.run(steps=[14, 1, 1]).items():
        np.testing.assert_allclose(after.run(steps=[14, 1, 1])[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("attention", ["group_query", "multi_head"])
def test_a_padding_mask_still_hides_what_it_hid(attention: str, exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(attention_mask=True)
    after = before.applied(tmp_path, {"fuse": {"attention": attention}})
    given = inputs.make_inputs(before.model, before.workload)
    given["attention_mask"][1, :5] = 0
    given["attention_mask"][0, 9] = 0
    seen = given["attention_mask"].astype(bool)
    expected, found = (run(variant, given) for variant in (before, after))
    np.testing.assert_allclose(found[seen], expected[seen], rtol=1e-5, atol=2e-6)
    unmasked = run(after, given | {"attention_mask": np.ones_like(given["attention_mask"])})
    assert np.abs(unmasked[seen] - expected[seen]).max() > 1e-2


def run(variant: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    session = variant.session()
    first: np.ndarray = session.run(None, {value.name: given[value.name] for value in session.get_inputs()})[0]
    return first


def test_multi_head_attention_reads_the_positions(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported()
    after = before.applied(tmp_path, {"fuse": {"attention": "multi_head"}})
    assert (len(after.nodes("MultiHeadAttention")), len(after.nodes("RotaryEmbedding"))) == (2, 4)
    given = inputs.make_inputs(before.model, before.workload)
    given["position_ids"] = given["position_ids"][:, ::-1].copy()
    np.testing.assert_allclose(run(after, given), run(before, given), rtol=1e-5, atol=2e-6)


def test_attention_can_be_left_as_it_is(exported: Callable[..., Any], tmp_path: Path) -> None:
    after = exported().applied(tmp_path, {"fuse": {"attention": "traced"}})
    assert len(after.nodes("Softmax")) == 2
    assert len(after.nodes("SkipSimplifiedLayerNormalization")) == 4


def test_keys_and_values_need_not_come_out(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = edited(exported(), tmp_path / "edited", lambda proto: proto.graph.output.__delitem__(slice(1, None)))
    after = before.applied(tmp_path / "after", ALL)
    assert len(after.nodes("GroupQueryAttention")) == 2
    np.testing.assert_allclose(after.run()["logits"], before.run()["logits"], rtol=1e-5, atol=2e-6)


def test_half_precision_follows_fusion(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(**CACHED)
    after = before.applied(tmp_path, ALL, {"precision": "fp16"})
    assert len(after.nodes("GroupQueryAttention")) == 2
    expected, found = (variant.run(steps=[13, 1, 1, 1])["logits"] for variant in (before, after))
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()


@pytest.mark.parametrize("variant", [{}, CACHED])
def test_a_layer_is_found_from_its_one_end(
    variant: dict[str, Any], exported: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern of several ends is tried with every combination of the graph's nodes: minutes for 30 layers."""
    seen = []
    monkeypatch.setattr(attention, "RewriteRuleSet", lambda rules: seen.extend(rules) or RewriteRuleSet(rules))
    exported(**variant).applied(tmp_path, {"fuse": "all"})
    assert [rule._target_pattern.has_single_output_node for rule in seen] == [True, True]


def test_the_default_of_the_family_is_all() -> None:
    assert passes.name_of(Pass.model_validate({"fuse": {"attention": "traced"}})) == "all"
