"""TensorRT as a provider of ONNX Runtime, which builds an engine of its own for the shapes that it first sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.engines import onnxruntime as base
from llama_bench.errors import InputError, WorkError

if TYPE_CHECKING:
    from llama_bench.engines import Task, TimedSession
    from llama_bench.sweep import Session, Target

OPTIONS = {
    "device_id": "0",
    # an engine that another process left behind would make restarts unlike one another
    "trt_engine_cache_enable": "0",
    "trt_timing_cache_enable": "0",
}

PRECISIONS = {"fp16": "trt_fp16_enable", "bf16": "trt_bf16_enable"}
"""A sweep's word → the option that lets TensorRT compute in it."""


def settings(engine: str, session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return everything that shapes execution, ready for JSON; what TensorRT does not take runs on CUDA.

    Raises InputError for targets without a GPU, for an option that has a key of its own, and for what TensorRT's
    provider has no option for.
    """
    if not target.needs_gpu:
        raise InputError(f"engine {engine!r} runs on GPU targets, not on one with provider {target.provider}")
    if session.cuda_graph or not session.tf32:
        raise InputError(f"engine {engine!r} has no {'cuda_graph' if session.cuda_graph else 'tf32: false'}")
    for option in PRECISIONS.values():
        base.refuse_twice(session, option, "precision")
    chosen = {option: base.text(session.precision == word) for word, option in PRECISIONS.items()}
    given = {key: base.text(value) for key, value in session.provider_options.items()}
    return base.common(engine, session, target, physical_cores) | {
        "provider": base.TENSORRT,
        "provider_options": dict(sorted({**OPTIONS, **chosen, **given}.items())),
        "fallback": {base.CUDA: base.cuda_options(session)},
    }


def missing(settings: Mapping[str, Any]) -> str | None:
    """Return why this machine cannot run with `settings`: the build of ONNX Runtime, or the library that is absent."""
    return base.missing(settings)


def open_session(
    folder: Path, settings: Mapping[str, Any], task: Task, *, adjust: Callable[[Any], None] | None = None
) -> TimedSession:
    """Load the variant in `folder` and make it ready to run. Raises WorkError, also for a model with a KV cache."""
    if task.model.get("cache"):
        raise WorkError("TensorRT would build an engine for every length of the KV cache: give the model cache: false")
    return base.open_session(folder, settings, task, adjust=adjust)
