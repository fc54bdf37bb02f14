"""Why CUDA cannot be used: of a driver that answers as its reference says, and of this machine."""

from __future__ import annotations

import ctypes
from typing import Any

import onnxruntime
import pytest

from llama_bench import engines
from llama_bench.bench import nvml
from llama_bench.engines import cuda
from llama_bench.sweep import Session, Target

GPU = Target(tag="bench_gpu", provider="CUDAExecutionProvider")


class Driver:
    """libcuda with a version, and what its start answers."""

    def __init__(self, version: int = 13000, status: int = 0) -> None:
        self.version, self.status = version, status

    def cuDriverGetVersion(self, into: Any) -> int:
        into._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status


def test_a_driver_that_starts_and_is_new_enough_has_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda.driver_fault(13, Driver()) is None
    assert cuda.driver_fault(12, Driver()) is None
    assert cuda.driver_fault(None, Driver(11000)) is None


def test_a_driver_that_is_too_old_is_said_with_both_versions() -> None:
    assert cuda.driver_fault(13, Driver(12080)) == (
        "the NVIDIA driver is of CUDA 12, and CUDA 13 is to run on it: update the driver"
    )


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (34, "CUDA's stub"),
        (100, "sees no GPU"),
        (802, "fabricmanager"),
        (803, "restart"),
        (804, "update"),
        (999, "999"),
    ],
)
def test_what_the_driver_answers_is_said_in_words(status: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert words in str(cuda.driver_fault(13, Driver(status=status)))


def test_a_variable_that_hides_every_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert str(cuda.driver_fault(13, Driver(status=100))).startswith("CUDA_VISIBLE_DEVICES='7' leaves no GPU")


@pytest.mark.skipif(bool(nvml.facts()), reason="this machine has a GPU")
def test_a_machine_without_a_driver_says_so_of_every_provider_that_needs_one() -> None:
    try:
        ctypes.CDLL(cuda.DRIVER)
    except OSError:
        for provider in cuda.LIBRARIES:
            assert str(cuda.why_not(provider)).startswith(f"{provider} cannot run: there is no NVIDIA driver here")
    assert cuda.why_not("CPUExecutionProvider") is None
    assert nvml.absent() is not None


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="a CPU build")
def test_a_library_that_is_not_installed_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "driver_fault", lambda major: None)
    library = cuda.missing_library(cuda.CUDA)
    settings = engines.settings("onnxruntime", Session(), GPU, 1)
    if library is None:
        assert engines.missing(settings) is None
        return
    assert engines.missing(settings) == (
        f"CUDAExecutionProvider needs the library {library}, which is not installed here: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]' brings CUDA and cuDNN"
    )


@pytest.mark.parametrize(
    ("library", "words"),
    [("libcudnn.so.9", "[cuda,cudnn]"), ("libcublasLt.so.13", "[cuda,cudnn]"), ("libnvinfer.so.10", "tensorrt")],
)
def test_each_library_says_what_brings_it(library: str, words: str) -> None:
    assert words in cuda.brings(library)


@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="a CPU build")
def test_the_cuda_that_this_build_wants_is_known() -> None:
    assert cuda.built_for() in range(11, 20)
