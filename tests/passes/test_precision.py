"""fp16 and bf16: what becomes half, what must not, and that outputs stay near."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from llama_bench import passes
from llama_bench.errors import WorkError
from llama_bench.passes.info import Work
from llama_bench.sweep import Pass

FLOAT, FP16, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
STATISTICS = ("Pow", "ReduceMean", "Sqrt", "Reciprocal", "Div", "Cos", "Sin")


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element type of every value, as ONNX's own inference finds it."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*inferred.input, *inferred.output, *inferred.value_info)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in inferred.initializer}


def read_types(model: onnx.ModelProto, op_type: str) -> set[int]:
    """Return the types that the operators of one kind read, but for whole numbers."""
    known = types(model)
    floats = {FLOAT, FP16, BF16}
    return {known[name] for node in model.graph.node if node.op_type == op_type for name in node.input} & floats


VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "cached": {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "torchscript": {"exporter": "torchscript", "opset": 17},
    "masked": {"attention_mask": True, "flatten_tokens": True, "attention_bias": True},
    "unfolded": {"constant_folding": False},
    "opset 23": {"opset": 23},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp16_halves_the_model_and_keeps_the_logits(variant: str, exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(**VARIANTS[variant])
    after = before.applied(tmp_path, {"precision": "fp16"})
    onnx.checker.check_model(after.folder / "model.onnx", full_check=True)
    held = {name: array for name, array in after.constants().items() if array.size > 64 and array.dtype.kind == "f"}
    assert {array.dtype for array in held.values()} == {np.dtype(np.float16)}
    expected, found = before.run(), after.run()
    assert found["logits"].dtype == np.float32
    assert found["present.1.key"].dtype == np.float16
    assert np.abs(found["logits"] - expected["logits"]).max() < 2e-3 * np.abs(expected["logits"]).max()
    assert np.abs(found["present.1.key"] - expected["present.1.key"]).max() < 5e-3


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("variant", ["static", "cached", "torchscript"])
def test_statistics_and_angles_stay_in_fp32_and_products_do_not(
    variant: str, name: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    after = exported(**VARIANTS[variant]).applied(tmp_path, {"precision": name})
    onnx.checker.check_model(after.folder / "model.onnx", full_check=True)
    half = {"fp16": FP16, "bf16": BF16}[name]
    for op_type in STATISTICS:
        assert read_types(after.proto, op_type) <= {FLOAT}, op_type
    known = types(after.proto)
    products = [node for node in after.proto.graph.node if node.op_type == "MatMul"]
    kinds = Counter(known[node.input[1]] for node in products)
    assert kinds == {half: 15 + 4, FLOAT: 1}  # but for positions times frequencies
    assert read_types(after.proto, "Softmax") == {half}
    ends = {value.name: known[value.name] for value in (*after.proto.graph.input, *after.proto.graph.output)}
    assert ends["logits"] == FLOAT
    assert {kind for end, kind in ends.items() if end.startswith(("past.", "present."))} == {half}


def test_a_norm_computes_its_quotient_in_fp32_and_its_scale_in_half(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path, {"precision": "fp16"})
    known = types(after.proto)
    for node in after.nodes("Reciprocal"):
        [quotient] = [other for other in after.nodes("Mul") if node.output[0] in other.input]
        assert {known[name] for name in quotient.input} == {FLOAT}
        [cast] = [other for other in after.nodes("Cast") if quotient.output[0] in other.input]
        [scaled] = [other for other in after.nodes("Mul") if cast.output[0] in other.input]
        assert {known[name] for name in scaled.input} == {FP16}
    assert len(after.nodes("Cast")) == len(static.nodes("Cast")) + 2 * 5 + 2 + 1  # norms, cos and sin, logits


def test_a_cached_fp16_graph_goes_on_from_its_own_half_cache(cached: Any, tmp_path: Path) -> None:
    after = cached.applied(tmp_path, {"precision": "fp16"})
    steps = [10, 5, 1]
    expected, found = cached.run(steps=steps), after.run(steps=steps)
    assert found["present.0.value"].shape == (2, 2, 16, 16)
    assert np.abs(found["logits"] - expected["logits"]).max() < 2e-3 * np.abs(expected["logits"]).max()


def test_fused_operators_compute_in_half_too(fused: Any, tmp_path: Path) -> None:
    after = fused.applied(tmp_path / "half", {"precision": "fp16"})
    arrays = after.constants()
    for op_type in ("GroupQueryAttention", "SkipSimplifiedLayerNormalization", "SimplifiedLayerNormalization"):
        read = {arrays[name].dtype for node in after.nodes(op_type) for name in node.input if name in arrays}
        assert read == {np.dtype(np.float16)}, op_type
    assert len(after.nodes("Cast")) == len(fused.nodes("Cast")) + 1  # the logits
    for steps in ([16], [15, 1]):
        expected, found = fused.run(steps=steps), after.run(steps=steps)
        assert np.abs(found["logits"] - expected["logits"]).max() < 3e-3 * np.abs(expected["logits"]).max()


def test_bf16_rounds_the_weights_to_the_nearest(static: Any, tmp_path: Path) -> None:
    import ml_dtypes

    after = static.applied(tmp_path, {"precision": "bf16"})
    before = static.constants()
    for node in after.nodes("MatMul"):
        [tensor] = [t for t in after.proto.graph.initializer if t.name == node.input[1]] or [None]
        if tensor is not None:
            rounded = before[tensor.name.removesuffix(".bf16")].astype(ml_dtypes.bfloat16)
            assert np.array_equal(numpy_helper.to_array(tensor).astype(np.float32), rounded.astype(np.float32))


def test_keep_leaves_operators_and_named_nodes_in_fp32(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path, {"precision": {"keep": ("Softmax", "lm_head", "layers.1.mlp.up_proj")}})
    known = types(after.proto)
    assert read_types(after.proto, "Softmax") == {FLOAT}
    kept = [node.name for node in after.nodes("MatMul") if known[node.input[1]] == FLOAT]
    assert kept == ["node_matmul", "node_linear_12", "node_linear_14"]
    near = np.abs(after.run()["logits"] - static.run()["logits"]).max()
    assert near < 2e-3 * np.abs(static.run()["logits"]).max()


def test_a_name_that_nothing_has_is_an_error(static: Any, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"precision fp16: keep 'lm_haed' is no operator and in no name of the graph"):
        static.applied(tmp_path, {"precision": {"keep": ("lm_haed",)}})


def written(text: str, folder: Path, **constants: np.ndarray) -> Path:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return folder


def apply(static: Any, source: Path, made: Path, name: str = "fp16") -> onnx.ModelProto:
    made.mkdir()
    options = passes.PASSES["precision"][name].options()
    work = Work(name, options, source, made, static.model, static.workload, made / "state")
    passes.APPLY["precision"](work)
    return onnx.load(made / "model.onnx")


def test_numbers_beyond_fp16_become_its_largest_and_not_infinity(static: Any, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Add(x, mask) }'
    source = written(text, tmp_path / "source", mask=np.array([-3.4e38, np.inf], np.float32))
    [mask] = apply(static, source, tmp_path / "made").graph.initializer
    assert numpy_helper.to_array(mask).tolist() == [-65504, 65504]


def test_positions_that_become_whole_numbers_are_not_rounded_before(static: Any, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (int64[3] x) => (int64[3] y)
        { f = Cast<to = 1>(x) g = Add(f, one) y = Cast<to = 7>(g) }"""
    source = written(text, tmp_path / "source", one=np.array(1, np.float32))
    made = apply(static, source, tmp_path / "made")
    assert [node.op_type for node in made.graph.node] == ["Cast", "Add", "Cast"]
    [y] = onnx.reference.ReferenceEvaluator(made).run(None, {"x": np.array([1, 2048, 9000])})
    assert y.tolist() == [2, 2049, 9001]  # fp16 has no 2049


def test_a_subgraph_and_an_unknown_operator_are_named(static: Any, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 18]> g (bool c, float[2] x) => (float[2] y)
        { y = If(c) <then_branch = a () => (float[2] p) { p = Identity(x) },
                     else_branch = b () => (float[2] q) { q = Neg(x) }> }"""
    source = written(text, tmp_path / "if")
    with pytest.raises(WorkError, match=r"precision fp16: node .* \(If\) holds a graph of its own"):
        apply(static, source, tmp_path / "made")
    text = """<ir_version: 8, opset_import: ["" : 18, "mine" : 1]> g (float[2] x) => (float[2] y)
        { y = mine.Twirl(x) }"""
    source = written(text, tmp_path / "unknown")
    with pytest.raises(WorkError, match=r"nobody knows the types of its operator mine\.Twirl"):
        apply(static, source, tmp_path / "made2")


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"quantize": {"bits": 4}}, {"precision": "fp16"}], "precision: fp16 cannot follow quantize: {bits: 4}"),
        ([{"precision": "bf16"}, {"precision": "fp16"}], "precision: fp16 cannot follow precision: bf16"),
        ([{"precision": "fp16"}, {"quantize": "dynamic"}], "quantize: dynamic cannot follow precision: fp16"),
        ([{"precision": {"kept": ("MatMul",)}}], "unknown option 'kept'; did you mean 'keep'?"),
    ],
)
def test_what_cannot_follow_is_refused_before_anything_is_built(
    steps: list[dict[str, Any]], message: str, static: Any
) -> None:
    found = passes.misfit([Pass.model_validate(step) for step in steps], static.model)
    assert found is not None
    assert message in found[1]


def test_int4_may_follow_fp16(static: Any) -> None:
    steps = [Pass.model_validate(step) for step in ({"precision": "fp16"}, {"quantize": {"bits": 4}})]
    assert passes.misfit(steps, static.model) is None
