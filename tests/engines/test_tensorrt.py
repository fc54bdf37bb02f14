"""TensorRT: settings that say everything, and reasons in words where it cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from llama_bench import engines
from llama_bench.errors import InputError, WorkError
from llama_bench.sweep import Session, Target, Workload

GPU = Target(tag="bench_gpu", provider="CUDAExecutionProvider")
CPU = Target(tag="bench_cpu")


def chosen(**session: Any) -> dict[str, Any]:
    return engines.settings("tensorrt", Session(**session), GPU, 8)


def test_the_precision_is_an_option_and_no_engine_is_kept_between_processes() -> None:
    plain, half = chosen(), chosen(precision="fp16", provider_options={"trt_builder_optimization_level": 5})
    assert plain["provider"] == "TensorrtExecutionProvider"
    assert (plain["provider_options"]["trt_fp16_enable"], plain["provider_options"]["trt_bf16_enable"]) == ("0", "0")
    assert (half["provider_options"]["trt_fp16_enable"], half["provider_options"]["trt_bf16_enable"]) == ("1", "0")
    assert half["provider_options"]["trt_builder_optimization_level"] == "5"
    assert chosen(precision="bf16")["provider_options"]["trt_bf16_enable"] == "1"
    assert plain["provider_options"]["trt_engine_cache_enable"] == "0"
    assert list(plain["fallback"]) == ["CUDAExecutionProvider"]


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ({"cuda_graph": True}, "engine 'tensorrt' has no cuda_graph"),
        ({"tf32": False}, "engine 'tensorrt' has no tf32: false"),
        ({"provider_options": {"trt_fp16_enable": True}}, "'trt_fp16_enable' has a key of its own .*'precision'"),
        ({"disabled_optimizers": ("Nonsense",)}, "no optimiser 'Nonsense'"),
    ],
)
def test_what_it_does_not_have_is_refused(session: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen(**session)
    with pytest.raises(
        InputError, match="'tensorrt' runs on GPU targets, not on one with provider CPUExecutionProvider"
    ):
        engines.settings("tensorrt", Session(), CPU, 8)


def test_the_library_that_is_absent_is_named() -> None:
    why = engines.missing(chosen())
    if "TensorrtExecutionProvider" not in onnxruntime.get_available_providers():
        assert why is not None
        assert "this build of ONNX Runtime has no TensorrtExecutionProvider" in why
    elif why is not None:
        assert why.startswith(
            ("TensorrtExecutionProvider needs the library lib", "TensorrtExecutionProvider cannot run")
        )


def test_a_model_with_a_cache_is_refused_with_the_reason(growing: Any, tmp_path: Path) -> None:
    workload = Workload(kind="decode", context=3)
    with pytest.raises(WorkError, match="an engine for every length of the KV cache: give the model cache: false"):
        engines.open_session(growing.folder, chosen(), growing.task(workload))


def test_a_session_where_it_is_missing_says_so_in_one_line(static: Any, capfd: pytest.CaptureFixture[str]) -> None:
    if engines.missing(chosen()) is None:
        pytest.skip("TensorRT is here")
    with pytest.raises(WorkError) as error:
        engines.open_session(static.folder, chosen(), static.task(Workload(batch=2, sequence=9)))
    assert "\n" not in str(error.value)
    assert "TensorrtExecutionProvider" in str(error.value)
    assert capfd.readouterr() == ("", "")
