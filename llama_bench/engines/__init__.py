"""What runs a variant. To add an engine or a provider, write it into one of the two tables below.

An engine is a module with three functions: `settings` says everything that shapes execution, `missing` why this
machine cannot run it, `open_session` makes the session that is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import numpy as np

    from llama_bench.sweep import Session, Target

__all__ = ["ENGINES", "PROVIDERS", "EngineInfo", "Task", "TimedSession", "missing", "open_session", "settings"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine: its module, what it is, and the distribution that it needs besides those of this package.

    `graph` says whether it executes the variant's ONNX graph, so that what it makes of it can be examined.
    """

    module: str
    summary: str
    extra: str | None = None
    graph: bool = True


ENGINES: dict[str, EngineInfo] = {
    "onnxruntime": EngineInfo("llama_bench.engines.onnxruntime", "ONNX Runtime, the engine of the study."),
    "openvino": EngineInfo(
        "llama_bench.engines.openvino", "OpenVINO under ONNX Runtime, on Intel CPUs.", extra="onnxruntime-ep-openvino"
    ),
    "tensorrt": EngineInfo(
        "llama_bench.engines.tensorrt", "TensorRT under ONNX Runtime, on GPUs; needs its library libnvinfer."
    ),
    "torch-eager": EngineInfo("llama_bench.engines.torch_engine", "torch, attention written out.", graph=False),
    "torch-sdpa": EngineInfo("llama_bench.engines.torch_engine", "torch, its own fused attention.", graph=False),
    "torch-compile": EngineInfo(
        "llama_bench.engines.torch_engine", "torch-sdpa compiled by inductor; needs a C++ compiler.", graph=False
    ),
}
"""Engine → where it is implemented."""

PROVIDERS: dict[str, str] = {
    "CPUExecutionProvider": "nothing: every build of ONNX Runtime has it",
    "CUDAExecutionProvider": "onnxruntime-gpu, an NVIDIA GPU, and the CUDA and cuDNN libraries of that build's version",
}
"""Execution provider of ONNX Runtime → what it needs."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a session is to run, as plain data: the process that is timed should import little.

    `model` and `workload` are the sweep's as dictionaries (`model_dump`), `inputs` what a run is given by name: see
    :func:`llama_bench.model.inputs.make_inputs`.
    """

    model: Mapping[str, Any]
    workload: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray[Any, Any]]


class TimedSession(Protocol):
    """A variant loaded and ready: what is timed is `run`, all else stays outside."""

    providers: list[str]
    """What executes it, first the one that was asked for."""

    token_seconds: tuple[float, ...]
    """Of the last run of a `generate`: seconds of each new token, the first with the prompt; else empty."""

    @property
    def clock(self) -> Callable[[], int]:
        """What its runs are timed with: nanoseconds that never step back. It is the machine's unless it has its own."""
        return time.perf_counter_ns

    def run(self) -> None:
        """Execute the workload once; returns when its outputs are complete. Raises WorkError."""

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the last run's outputs by the names of the reference, on the host, a cache as far as it is filled.

        `generate` has one output, `tokens`, the new tokens [B, m], int64. Raises WorkError before the first run.
        """

    def score(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield for each window of tokens (a row of int64 [N, W]) the logits [W, vocabulary] of its next tokens.

        Through this very session: a prefill of all logits takes windows of its own length, all else goes token by
        token through its KV cache. The next `run` is as if nothing had been scored. Raises WorkError.
        """

    def device_bytes(self) -> int | None:
        """Return the bytes that this process holds on the GPU, None where there is none or it cannot be asked."""


def settings(engine: str, session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return everything that shapes execution, ready for JSON; raises InputError for what the engine does not have."""
    return cast("dict[str, Any]", _module(engine).settings(engine, session, target, physical_cores))


def missing(settings: Mapping[str, Any]) -> str | None:
    """Return why this machine cannot run an arm with these settings: a library or a device is not here."""
    return cast("str | None", _module(settings["engine"]).missing(settings))


def open_session(folder: Path, settings: Mapping[str, Any], task: Task) -> TimedSession:
    """Load the variant in `folder` and make it ready to run. Raises WorkError when that fails."""
    return cast("TimedSession", _module(settings["engine"]).open_session(folder, settings, task))


def _module(engine: str) -> Any:
    return import_module(ENGINES[engine].module)
