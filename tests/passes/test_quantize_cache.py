"""A KV cache in few bits: its type, its scales, and what it costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llama_bench import passes
from llama_bench.errors import WorkError
from llama_bench.passes import checkpoint
from llama_bench.passes.info import Work
from llama_bench.sweep import Pass

SHORT = {"calibration_tokens": 256, "window": 32}


def cache(**options: Any) -> dict[str, Any]:
    return {"quantize": {"name": "kv_cache", **SHORT, **options}}


def types(graph: Any) -> dict[str, tuple[int, int]]:
    """Return element type and width of every past and present."""
    values = (*graph.proto.graph.input, *graph.proto.graph.output)
    tensors = {value.name: value.type.tensor_type for value in values if value.name.startswith(("past.", "present."))}
    return {name: (tensor.elem_type, tensor.shape.dim[3].dim_value) for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("options", "dtype", "width", "least"),
    [
        ({}, onnx.TensorProto.INT8, 16, 0.995),
        ({"per_channel": False}, onnx.TensorProto.INT8, 16, 0.999),
        ({"bits": 4}, onnx.TensorProto.UINT8, 8, 0.98),
        ({"bits": 4, "per_channel": False}, onnx.TensorProto.UINT8, 8, 0.97),
    ],
)
def test_past_and_present_are_of_few_bits_and_the_logits_stay_near(
    options: dict[str, Any], dtype: int, width: int, least: float,
    fused: Any, near: Callable[..., float], tmp_path: Path,
) -> None:  # fmt: skip
    after = fused.applied(tmp_path / "made", cache(**options))
    assert set(types(after).values()) == {(dtype, width)}
    assert len(types(after)) == 8
    for steps in ([16], [15, 1], [8, *[1] * 8]):
        assert near(after.run(steps=steps)["logits"], fused.run(steps=steps)["logits"]) > least


def test_scales_are_the_largest_keys_and_values_on_the_text(fused: Any, tmp_path: Path) -> None:
    after = fused.applied(tmp_path / "made", cache())
    windows = checkpoint.windows(fused.model, checkpoint.OnText(), 32, 256)
    seen = [fused.run(window[None]) for window in windows]
    for name in ("present.0.key", "present.1.value"):
        largest = np.max([np.abs(run[name]).max((0, 2), keepdims=True) for run in seen], axis=0)
        assert np.allclose(after.constants()[f"{name}.scale"], largest / 127, rtol=1e-4)


def test_it_comes_after_quantised_weights_in_half_precision(
    fused: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    steps = [{"precision": "fp16"}, {"quantize": {"bits": 8}}, cache()]
    said = [Pass.model_validate(step) for step in ({"fuse": "all"}, *steps)]
    assert passes.misfit(said, fused.model) is None
    after = fused.applied(tmp_path / "made", *steps)
    assert set(types(after).values()) == {(onnx.TensorProto.INT8, 16)}
    assert near(after.run(steps=[15, 1])["logits"], fused.run(steps=[15, 1])["logits"]) > 0.999


@pytest.mark.parametrize(
    ("steps", "cached", "message"),
    [
        ([cache()], True, "needs a pass before it that leaves the model with GroupQueryAttention"),
        ([{"fuse": "attention"}, cache(bits=2)], True, "bits: input should be 4 or 8"),
        ([{"fuse": "norm"}, cache()], False, "needs a pass before it"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    steps: list[dict[str, Any]], cached: bool, message: str, exported: Callable[..., Any]
) -> None:
    model = exported().model.model_copy(update={"cache": cached})
    found = passes.misfit([Pass.model_validate(step) for step in steps], model)
    assert found is not None
    assert message in found[1].replace("Input", "input")


def test_a_model_without_a_cache_has_none_to_quantise(static: Any) -> None:
    options = passes.PASSES["quantize"]["kv_cache"].options()
    found = passes.PASSES["quantize"]["kv_cache"].fits(options, static.model)
    assert found == "it has no KV cache: give it cache: true"


def forced(graph: Any, folder: Path) -> None:
    """Apply the pass to a graph that a plan would keep away from it."""
    options = passes.PASSES["quantize"]["kv_cache"].options(**SHORT)
    passes.APPLY["quantize"](Work("kv_cache", options, graph.folder, folder, graph.model, graph.workload, folder))


def test_a_cache_of_another_attention_and_one_that_is_quantised_are_named(
    static: Any, cached: Any, fused: Any, tmp_path: Path
) -> None:
    with pytest.raises(WorkError, match=r"quantize kv_cache: the graph has no KV cache"):
        forced(static, tmp_path)
    with pytest.raises(WorkError, match=r"past\.0\.key is read by .*Concat.*, not by a GroupQueryAttention"):
        forced(cached, tmp_path)
    after = fused.applied(tmp_path / "made", cache())
    with pytest.raises(WorkError, match=r"past\.0\.key is INT8: quantised already"):
        forced(after, tmp_path)
