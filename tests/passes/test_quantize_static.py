"""int8 by scales from text: what is quantised, how near the outputs stay, what ONNX Runtime makes of it."""

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
from llama_bench.passes.quantize.options import Static
from llama_bench.passes.quantize.static import scale_of
from llama_bench.sweep import Pass

TOKENS = 256


def step(**options: Any) -> dict[str, Any]:
    """Return the pass with scales from a short text."""
    return {"quantize": {"name": "static", "calibration_tokens": TOKENS, **options}}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"flatten_tokens": True, "attention_bias": True, "mlp_bias": True},
        {"exporter": "torchscript", "opset": 17},
    ],
)
def test_layers_that_read_one_value_share_its_scale(
    changed: dict[str, Any], exported: Callable[..., Any], near: Callable[..., float], tmp_path: Path
) -> None:
    before = exported(**changed)
    after = before.applied(tmp_path, step())
    # a layer's input, its heads, the feed-forward's input, its inside; and lm_head's
    assert len(after.nodes("QuantizeLinear")) == 2 * 4 + 1
    assert len(after.nodes("DequantizeLinear")) == 2 * 4 + 1 + 15
    onnx.checker.check_model(after.folder / "model.onnx", full_check=True)
    assert near(after.run()["logits"], before.run()["logits"]) > 0.999
    assert after.size() < 0.6 * before.size()


def test_onnx_runtime_multiplies_integers(fused: Any, tmp_path: Path) -> None:
    after = fused.applied(tmp_path / "int8", step())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    onnxruntime.InferenceSession(after.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "executed.onnx").graph.node]
    assert found.count("MatMulIntegerToFloat") == 11
    assert "MatMul" not in found
    assert "DequantizeLinear" not in found


def test_a_cache_is_filled_and_read_as_before(fused: Any, near: Callable[..., float], tmp_path: Path) -> None:
    after = fused.applied(tmp_path, step())
    for steps in ([16], [15, 1]):
        assert near(after.run(steps=steps)["logits"], fused.run(steps=steps)["logits"]) > 0.999


def test_scales_cover_what_the_text_shows(static: Any, tmp_path: Path) -> None:
    plain, clipped = (
        static.applied(tmp_path / name, step(percentile=p)).constants() for name, p in (("all", 100), ("most", 99))
    )
    scales = [name for name, array in plain.items() if name.endswith(".scale") and array.shape == ()]
    assert len(scales) == 9
    assert all(clipped[name] < 0.9 * plain[name] for name in scales)


@pytest.mark.parametrize(
    ("options", "scale", "zero_point"),
    [
        ({}, 40 / 255, 64),  # −10 … 30
        ({"symmetric": True}, 30 / 127, 128),
        ({"percentile": 75}, 20 / 255, 0),  # 0 … 20
    ],
)
def test_a_scale_reaches_from_the_least_to_the_largest(options: dict[str, Any], scale: float, zero_point: int) -> None:
    seen = [np.arange(-10, 11, dtype=np.float32).reshape(1, 3, 7), np.arange(11, 31, dtype=np.float32)]
    found = scale_of(seen, Static(**options))
    assert found == (pytest.approx(scale), zero_point)
    assert [value.dtype for value in found] == [np.float32, np.uint8]


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_zero_stays_zero_and_one_number_is_a_range(value: float) -> None:
    for options in (Static(), Static(symmetric=True)):
        scale, zero_point = scale_of([np.full((2, 4), value, np.float32)], options)
        assert scale > 0
        back = (np.clip(np.round(value / scale) + zero_point, 0, 255) - zero_point) * scale
        assert back == pytest.approx(value, abs=0.03)


def test_smoothing_takes_large_channels_out_of_the_scale(
    cached: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    after = cached.applied(tmp_path / "smooth", step(smooth=0.5))
    plain = cached.applied(tmp_path / "plain", step())
    assert len(after.nodes("Mul")) == len(plain.nodes("Mul")) + 2 * 2  # no norm makes what o_proj and down_proj read
    assert near(after.run()["logits"], cached.run()["logits"]) > 0.998


def test_one_scale_for_the_matrix_and_seven_bits(static: Any, near: Callable[..., float], tmp_path: Path) -> None:
    after = static.applied(tmp_path, step(per_channel=False, reduce_range=True))
    held = after.constants()
    matrices = [array for name, array in held.items() if name.endswith(".int8")]
    assert len(matrices) == 15
    assert max(np.abs(array.astype(int)).max() for array in matrices) == 63
    assert near(after.run()["logits"], static.run()["logits"]) > 0.99


def test_excluded_layers_stay_in_fp32(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path, step(exclude=["o_proj", "lm_head"]))
    assert len(after.nodes("QuantizeLinear")) == 2 * 3
    assert len([name for name in after.constants() if name.endswith(".int8")]) == 12


def test_a_weight_that_is_not_fp32_is_named(static: Any, tmp_path: Path) -> None:
    half = static.applied(tmp_path / "half", {"precision": "fp16"})
    options = passes.PASSES["quantize"]["static"].options()
    work = Work("static", options, half.folder, tmp_path, static.model, static.workload, tmp_path)
    with pytest.raises(WorkError, match=r"quantize static: node node_linear: its weight is FLOAT16, not FLOAT"):
        passes.APPLY["quantize"](work)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"percentile": 50}, "percentile: input should be greater than 50"),
        ({"window": 100}, "a window of 100 tokens is longer than max_position_embeddings 64"),
        ({"weight_type": "quint8"}, "weight_type"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    options: dict[str, Any], message: str, static: Any
) -> None:
    found = passes.misfit([Pass.model_validate({"quantize": {"name": "static", **options}})], static.model)
    assert found is not None
    assert message in found[1]
