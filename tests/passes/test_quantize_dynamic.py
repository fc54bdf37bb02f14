"""int8 on both sides of a product: what is shared, how near the outputs stay, what ONNX Runtime makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from llama_bench import passes
from llama_bench.errors import WorkError
from llama_bench.passes import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import linear
from llama_bench.passes.quantize.smooth import smooth
from llama_bench.sweep import Pass

TOKEN = {"quantize": "dynamic"}
TENSOR = {"quantize": {"name": "dynamic", "activations": "tensor"}}


def executed(graph: Any, folder: Path) -> list[str]:
    """Return the operators that ONNX Runtime runs at its default level."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "executed.onnx")
    onnxruntime.InferenceSession(graph.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "executed.onnx").graph.node]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"flatten_tokens": True, "attention_bias": True, "mlp_bias": True},
        {"exporter": "torchscript", "opset": 17},
    ],
)
def test_layers_that_read_one_value_share_its_quantisation(
    changed: dict[str, Any], exported: Callable[..., Any], near: Callable[..., float], tmp_path: Path
) -> None:
    before = exported(**changed)
    expected = before.run()["logits"]
    for step, product, quantise, least in (
        (TOKEN, "MatMulIntegerToFloat", "QuantizeLinear", 0.9998),
        (TENSOR, "MatMulInteger", "DynamicQuantizeLinear", 0.9995),
    ):
        after = before.applied(tmp_path / product, step)
        assert len(after.nodes(product)) == 15
        # a layer's input, its heads, the feed-forward's input, its inside; and lm_head's
        assert len(after.nodes(quantise)) == 2 * 4 + 1
        onnx.checker.check_model(after.folder / "model.onnx", full_check=True)
        assert near(after.run()["logits"], expected) > least
        assert after.size() < 0.6 * before.size()


def test_onnx_runtime_fuses_every_product_by_tensor(static: Any, tmp_path: Path) -> None:
    found = executed(static.applied(tmp_path, TENSOR), tmp_path)
    # query, key and value, gate and up share what they read; the others quantise it themselves
    assert found.count("MatMulIntegerToFloat") == 2 * (3 + 2)
    assert found.count("DynamicQuantizeMatMul") == 2 * 2 + 1
    assert found.count("DynamicQuantizeLinear") == 2 * 2
    assert "MatMulInteger" not in found


@pytest.mark.parametrize("step", [TOKEN, TENSOR])
def test_a_fused_graph_is_quantised_in_its_packed_layers(
    step: dict[str, Any], fused: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    after = fused.applied(tmp_path / "int8", step)
    assert len(after.nodes("MatMulInteger")) + len(after.nodes("MatMulIntegerToFloat")) == 11
    for steps in ([16], [15, 1]):
        assert near(after.run(steps=steps)["logits"], fused.run(steps=steps)["logits"]) > 0.9995


def product(folder: Path, weights: np.ndarray) -> Path:
    """Write a graph of one linear layer from x [1, 4, K] to y, after a product with the vector `scale`."""
    inputs = len(weights)
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]> g (float[1, 4, {inputs}] x) => (float[1, 4, {weights.shape[1]}] y)
        {{ scaled = Mul(x, scale) y = MatMul(scaled, weight) }}"""
    )
    constants = {"scale": np.full(inputs, 2, np.float32), "weight": weights}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    return folder


def test_a_token_far_larger_than_the_others_does_not_cost_them_their_digits(static: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 32)).astype(np.float32)
    x = rng.normal(size=(1, 4, 64)).astype(np.float32)
    x[0, 1] *= 1000
    x[0, 2] = 0
    source = type(static)(static.model, static.workload, product(tmp_path / "source", weights))
    expected = 2 * x @ weights
    errors = {}
    for step in (TOKEN, TENSOR):
        [y] = source.applied(tmp_path / str(len(errors)), step).session().run(None, {"x": x})
        assert np.isfinite(y).all()
        assert (y[0, 2] == 0).all()
        errors[len(errors)] = np.linalg.norm(y - expected, axis=-1)[0, [0, 3]] / np.linalg.norm(
            expected[0, [0, 3]], axis=-1
        )
    assert (errors[0] < 0.02).all()
    assert (errors[1] > 0.5).all()


def test_smoothing_divides_in_norms_where_it_can_and_keeps_the_product(
    static: Any, cached: Any, tmp_path: Path
) -> None:
    plain = cached.applied(tmp_path / "plain", TOKEN)
    said = {"name": "dynamic", "smooth": 0.5, "calibration_tokens": 256}
    after = cached.applied(tmp_path / "smooth", {"quantize": said})
    assert len(after.nodes("MatMulIntegerToFloat")) == 15
    # what o_proj and down_proj read is made by no norm
    assert len(after.nodes("Mul")) == len(plain.nodes("Mul")) + 2 * 2
    for steps in ([16], [15, 1]):
        expected, found = cached.run(steps=steps)["logits"], after.run(steps=steps)["logits"]
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_smoothing_a_fused_graph_goes_into_its_norms(fused: Any, near: Callable[..., float], tmp_path: Path) -> None:
    said = {"name": "dynamic", "smooth": 0.5, "calibration_tokens": 256}
    after = fused.applied(tmp_path / "smooth", {"quantize": said})
    held, before = after.constants(), fused.constants()
    for op_type, place in (("SkipSimplifiedLayerNormalization", 2), ("SimplifiedLayerNormalization", 1)):
        for old, new in zip(fused.nodes(op_type), after.nodes(op_type), strict=True):
            assert not np.allclose(before[old.input[place]], held[new.input[place]])
    assert near(after.run(steps=[15, 1])["logits"], fused.run(steps=[15, 1])["logits"]) > 0.9998


def test_smoothing_makes_up_for_channels_that_are_large_in_every_token(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(64, 32)).astype(np.float32)
    seen = rng.normal(size=(1, 40, 64)).astype(np.float32)
    seen[..., 5] *= 100
    model = files.read(product(tmp_path / "source", weights))
    [layer] = linear.find(model.graph, (), "test")
    [smoothed] = smooth([layer], [seen], 0.5)
    factors = smoothed.factors
    assert factors is not None
    divided, multiplied = seen / factors, smoothed.matrix()
    assert np.allclose(divided @ multiplied, seen @ weights, rtol=1e-3, atol=1e-2)
    assert np.ptp(np.log(np.abs(divided).max((0, 1)))) < 0.6 * np.ptp(np.log(np.abs(seen).max((0, 1))))
    scale = next(value for value in model.graph.initializers.values() if value.name == "scale.smooth").const_value
    assert scale is not None
    assert np.allclose(scale.numpy(), 2 / factors)


@pytest.mark.parametrize("weight_type", ["qint8", "quint8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_weights_are_within_half_a_step(
    weight_type: str, per_channel: bool, reduce_range: bool, static: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    options = {"weight_type": weight_type, "per_channel": per_channel, "reduce_range": reduce_range}
    after = static.applied(tmp_path, {"quantize": {"name": "dynamic", **options}})
    held, before = after.constants(), static.constants()
    for node in after.nodes("MatMulIntegerToFloat"):
        name = node.input[1].removesuffix(".int8")
        numbers, scale = held[node.input[1]], held[f"{name}.scale"]
        zero_point = held.get(f"{name}.zero_point", np.zeros(1))
        assert scale.shape == ((numbers.shape[1],) if per_channel else ())
        assert numbers.dtype == {"qint8": np.int8, "quint8": np.uint8}[weight_type]
        assert len(node.input) == (5 if weight_type == "qint8" else 6)
        assert np.ptp(numbers.astype(int)) <= (127 if reduce_range else 255)
        weights = (numbers.astype(np.float32) - zero_point.astype(np.float32)) * scale
        assert (np.abs(weights - before[name]) <= 0.5001 * scale).all()
    assert near(after.run()["logits"], static.run()["logits"]) > 0.999


def test_excluded_layers_stay_in_fp32(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path, {"quantize": {"name": "dynamic", "exclude": ("lm_head", "down_proj")}})
    assert len(after.nodes("MatMulIntegerToFloat")) == 12
    assert len(after.nodes("QuantizeLinear")) == 2 * 3


def test_a_weight_that_is_not_fp32_is_named(static: Any, tmp_path: Path) -> None:
    half = static.applied(tmp_path, {"precision": "fp16"})
    options = passes.PASSES["quantize"]["dynamic"].options()
    work = Work("dynamic", options, half.folder, tmp_path, static.model, static.workload, tmp_path)
    with pytest.raises(WorkError, match=r"quantize dynamic: node node_linear: its weight is FLOAT16, not FLOAT"):
        passes.APPLY["quantize"](work)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 16}, "window is for smooth, which alone looks at text"),
        ({"smooth": 1.5}, "smooth: input should be less than or equal to 1"),
        ({"smooth": 0.5, "window": 100}, "a window of 100 tokens is longer than max_position_embeddings 64"),
        ({"activations": "channel"}, "activations: input should be 'token' or 'tensor'"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    options: dict[str, Any], message: str, static: Any
) -> None:
    found = passes.misfit([Pass.model_validate({"quantize": {"name": "dynamic", **options}})], static.model)
    assert found is not None
    assert message in found[1]
