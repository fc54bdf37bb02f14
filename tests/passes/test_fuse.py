"""Our fusions: which nodes become which, that outputs stay, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llama_bench import graph, passes
from llama_bench.passes.fuse import PASSES, STEPS
from llama_bench.sweep import Model, Pass

ALL = {"fuse": "all"}
CACHED = {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
FUSED = {
    "SimplifiedLayerNormalization": 1,
    "SkipSimplifiedLayerNormalization": 4,
    "GroupQueryAttention": 2,
    "QuickGelu": 2,
    "Mul": 2,
    "MatMul": 11,
    "Gather": 1,
}
"""What is left of two layers and lm_head when everything is fused: of a layer's seven products five."""

VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "grouped heads": {"num_key_value_heads": 2},
    "opset 23": {"opset": 23},
    "torchscript": {"exporter": "torchscript", "opset": 17},
    "torchscript, grouped heads": {"exporter": "torchscript", "opset": 17, "num_key_value_heads": 2},
    "hidden states": {"head": "none"},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "padding mask": {"attention_mask": True, "num_key_value_heads": 2},
    "cache": {"cache": True},
    "cache, grouped and tied": CACHED,
    "cache, opset 23": {"cache": True, "opset": 23},
    "cache, unfolded": {"cache": True, "constant_folding": False},
}


def operators(folder: Path) -> Counter[str]:
    return Counter(graph.histogram(graph.load(folder / "model.onnx")))


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_fuses_every_layer_and_keeps_the_outputs(
    variant: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(**VARIANTS[variant])
    after = before.applied(tmp_path, ALL)
    found = operators(after.folder)
    head = {"MatMul": 10} if variant == "hidden states" else {}
    unpacked = {"MatMul": 15} if variant == "cache, unfolded" else {}  # its weights are turned at run time
    expected = FUSED | head | unpacked
    assert {op: found[op] for op in expected} == expected
    assert not {"Softmax", "Sigmoid", "Split", "Slice", "Range", "Cos"} & set(found)
    close(after.run(), before.run())


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("norm", {"SimplifiedLayerNormalization": 5, "Reciprocal": -5, "Pow": -5, "ReduceMean": -5, "Sqrt": -5}),
        ("skip_norm", {"SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 4, "Reciprocal": -5}),
        ("qkv", {"MatMul": -4, "Split": 2}),
        ("gate_up", {"MatMul": -2, "Split": 2}),
        ("turn", {"FusedMatMul": 14, "MatMul": -14, "Transpose": 0}),
        ("swiglu", {"QuickGelu": 2, "Sigmoid": -2, "Mul": -2}),
        ("attention", {"GroupQueryAttention": 2, "Softmax": -2, "LessOrEqual": -1, "Cos": -1, "Concat": -18}),
    ],
)
def test_each_fusion_alone_changes_its_own_nodes(
    name: str, changed: dict[str, int], exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(**CACHED)
    after = before.applied(tmp_path, {"fuse": name})
    difference = operators(after.folder)
    difference.subtract(operators(before.folder))
    assert {op: difference[op] for op in changed} == changed
    close(after.run(), before.run())
    close(after.run(steps=[13, 1, 1, 1]), before.run(steps=[13, 1, 1, 1]))


def test_the_fusions_in_any_order_come_to_the_same_operators(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(**CACHED)
    steps = [{"fuse": name} for name in ("qkv", "swiglu", "attention", "norm", "skip_norm")]
    after = before.applied(tmp_path / "one by one", *steps)
    assert operators(after.folder) == operators(before.applied(tmp_path / "all", ALL).folder)
    close(after.run(), before.run())


def test_packed_weights_are_the_three_side_by_side(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(cache=True, num_key_value_heads=2, attention_bias=True)
    after = before.applied(tmp_path, {"fuse": "qkv"})
    old, new = before.constants(), after.constants()
    node = after.nodes("Split")[0]
    producer = {output: node for node in after.proto.graph.node for output in node.output}
    add = producer[node.input[0]]
    product = producer[add.input[0]]
    assert new[node.input[1]].tolist() == [64, 32, 32]
    weights = {array.tobytes() for array in old.values()}
    for packed in (new[product.input[1]], new[add.input[1]]):
        for part in np.split(packed, [64, 96], axis=-1):
            assert np.ascontiguousarray(part).tobytes() in weights
    assert sum(array.nbytes for array in new.values()) < sum(array.nbytes for array in old.values()) + 100


def test_turned_weights_are_the_same_numbers_and_go_on_to_half_precision(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(cache=True).applied(tmp_path / "fused", ALL)
    after = before.applied(tmp_path / "turned", {"fuse": "turn"})
    old, new = before.constants(), after.constants()
    for node in after.nodes("FusedMatMul"):
        name = node.input[1].removesuffix(".turned")
        np.testing.assert_array_equal(new[node.input[1]], old[name].T)
        assert name not in new
    assert len(after.nodes("FusedMatMul")) == len(before.nodes("MatMul"))
    half = after.applied(tmp_path / "half", {"precision": "fp16"})
    assert {half.constants()[node.input[1]].dtype for node in half.nodes("FusedMatMul")} == {np.dtype(np.float16)}


@pytest.mark.parametrize("name", ["gate_up", "turn"])
def test_products_are_packed_and_turned_before_or_after_half_precision_alike(
    name: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    before, half = exported(**CACHED), {"precision": "fp16"}
    steps = [Pass.model_validate(step) for step in (ALL, half, {"fuse": name}, {"quantize": {"block_size": 16}})]
    assert passes.misfit(steps, before.model) is None
    first = before.applied(tmp_path / "first", ALL, {"fuse": name}, half)
    later = before.applied(tmp_path / "later", ALL, half, {"fuse": name})
    assert operators(later.folder) == operators(first.folder) != operators(before.applied(tmp_path / "x", ALL).folder)
    for one, other in zip(first.run().values(), later.run().values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_norms_are_computed_with_the_graphs_own_epsilon(exported: Callable[..., Any], tmp_path: Path) -> None:
    after = exported(rms_norm_eps=1e-3).applied(tmp_path, {"fuse": "skip_norm"})
    for op_type in ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"):
        for node in after.nodes(op_type):
            [epsilon] = [attribute.f for attribute in node.attribute if attribute.name == "epsilon"]
            assert epsilon == pytest.approx(1e-3)


def test_a_sum_that_broadcasts_is_not_taken_into_a_norm(static: Any, tmp_path: Path) -> None:
    normed = static.applied(tmp_path / "normed", {"fuse": "norm"})
    proto = normed.proto
    node = next(node for node in proto.graph.node if node.op_type == "Add" and "linear" in node.input[1])
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(64, np.float32), "row"))
    node.input[1] = "row"
    onnx.save(proto, normed.folder / "model.onnx")
    after = normed.applied(tmp_path / "after", {"fuse": "skip_norm"})
    assert operators(after.folder)["SkipSimplifiedLayerNormalization"] == 3
    close(after.run(), normed.run())


@pytest.mark.parametrize("name", PASSES)
def test_where_there_is_nothing_to_fuse_the_model_is_given_back(
    name: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(**CACHED).applied(tmp_path / "before", ALL, {"fuse": "gate_up"}, {"fuse": "turn"})
    step, made = Pass(family="fuse", name=name), tmp_path / "made"
    effect = passes.apply(step, before.folder, made, before.model, before.workload, tmp_path)
    assert not effect.changed
    assert {file.name: file.read_bytes() for file in made.iterdir()} == {
        file.name: file.read_bytes() for file in before.folder.iterdir()
    }


@pytest.mark.parametrize(
    ("steps", "model", "why"),
    [
        ([{"fuse": "attention"}], {}, "GroupQueryAttention needs a KV cache: give the model cache: true"),
        ([{"fuse": "attention"}], {"cache": True, "head_dim": 24}, "turns heads of a multiple of 16, and these are 24"),
        ([{"fuse": {"attention": "multi_head"}}], {"cache": True}, "multi_head is for models without a KV cache"),
        ([{"fuse": {"attention": "multi_head"}}], {"num_key_value_heads": 2}, "as many KV heads as heads"),
        ([{"precision": "fp16"}, ALL], {}, "fuse: all cannot follow precision: fp16"),
        ([{"fuse": {"name": "norm", "attention": "traced"}}], {}, "unknown option 'attention'; it has no options"),
        ([{"fuse": {"attention": "grouped"}}], {}, "attention: input should be 'group_query', 'multi_head' or"),
    ],
)
def test_what_cannot_be_fused_is_refused_before_anything_is_built(
    steps: list[Any], model: dict[str, Any], why: str
) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, **model}
    found = passes.misfit([Pass.model_validate(step) for step in steps], Model(**sizes))
    assert found is not None
    assert found[0] == len(steps) - 1
    assert why in found[1]


def test_every_step_is_a_fusion_of_its_own() -> None:
    for name, steps in STEPS.items():
        assert name in PASSES
        assert set(steps) <= set(PASSES) - {"all"}
