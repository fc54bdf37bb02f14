"""What runs a variant. To add an engine or a provider, write it into one of the two tables below."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ENGINES", "PROVIDERS", "EngineInfo"]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """An engine: the module that has its `settings` and `TimedSession`, and what it is."""

    module: str
    summary: str


ENGINES: dict[str, EngineInfo] = {
    "onnxruntime": EngineInfo("llama_bench.engines.onnxruntime", "ONNX Runtime, the engine of the study."),
}
"""Engine → where it is implemented."""

PROVIDERS: dict[str, str] = {
    "CPUExecutionProvider": "nothing: every build of ONNX Runtime has it",
    "CUDAExecutionProvider": "onnxruntime-gpu, an NVIDIA GPU, and the CUDA and cuDNN libraries of that build's version",
}
"""Execution provider of ONNX Runtime → what it needs."""
