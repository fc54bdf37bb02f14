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
from llama_bench.passes.info import Work

DYNAMIC = {"quantize": "dynamic"}


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
    after = before.applied(tmp_path, DYNAMIC)
    assert len(after.nodes("MatMulInteger")) == 15
    # a layer's input, its heads, the feed-forward's input, its inside; and lm_head's
    assert len(after.nodes("DynamicQuantizeLinear")) == 2 * 4 + 1
    onnx.checker.check_model(after.folder / "model.onnx", full_check=True)
    assert near(after.run()["logits"], before.run()["logits"]) > 0.9995
    assert after.size() < 0.6 * before.size()


def test_onnx_runtime_fuses_every_product(static: Any, tmp_path: Path) -> None:
    found = executed(static.applied(tmp_path, DYNAMIC), tmp_path)
    # query, key and value, gate and up share what they read; the others quantise it themselves
    assert found.count("MatMulIntegerToFloat") == 2 * (3 + 2)
    assert found.count("DynamicQuantizeMatMul") == 2 * 2 + 1
    assert found.count("DynamicQuantizeLinear") == 2 * 2
    assert "MatMulInteger" not in found


def test_a_fused_graph_is_quantised_in_its_packed_layers(
    fused: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    after = fused.applied(tmp_path / "int8", DYNAMIC)
    assert len(after.nodes("MatMulInteger")) == 11
    for steps in ([16], [15, 1]):
        assert near(after.run(steps=steps)["logits"], fused.run(steps=steps)["logits"]) > 0.9995


@pytest.mark.parametrize("weight_type", ["qint8", "quint8"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_weights_are_within_half_a_step(
    weight_type: str, per_channel: bool, reduce_range: bool, static: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    options = {"weight_type": weight_type, "per_channel": per_channel, "reduce_range": reduce_range}
    after = static.applied(tmp_path, {"quantize": {"name": "dynamic", **options}})
    held, before = after.constants(), static.constants()
    for node in after.nodes("MatMulInteger"):
        name = node.input[1].removesuffix(".int8")
        numbers, scale = held[node.input[1]], held[f"{name}.scale"]
        zero_point = held.get(f"{name}.zero_point", np.zeros(1))
        assert scale.shape == ((numbers.shape[1],) if per_channel else ())
        assert numbers.dtype == {"qint8": np.int8, "quint8": np.uint8}[weight_type]
        assert len(node.input) == (3 if weight_type == "qint8" else 4)
        assert np.ptp(numbers.astype(int)) <= (127 if reduce_range else 255)
        weights = (numbers.astype(np.float32) - zero_point.astype(np.float32)) * scale
        assert (np.abs(weights - before[name]) <= 0.5001 * scale).all()
    assert near(after.run()["logits"], static.run()["logits"]) > 0.999


def test_excluded_layers_stay_in_fp32(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path, {"quantize": {"name": "dynamic", "exclude": ("lm_head", "down_proj")}})
    assert len(after.nodes("MatMulInteger")) == 12
    assert len(after.nodes("DynamicQuantizeLinear")) == 2 * 3


def test_a_weight_that_is_not_fp32_is_named(static: Any, tmp_path: Path) -> None:
    half = static.applied(tmp_path, {"precision": "fp16"})
    options = passes.PASSES["quantize"]["dynamic"].options()
    work = Work("dynamic", options, half.folder, tmp_path, static.model, static.workload, tmp_path)
    with pytest.raises(WorkError, match=r"quantize dynamic: node node_linear: its weight is FLOAT16, not FLOAT"):
        passes.APPLY["quantize"](work)
