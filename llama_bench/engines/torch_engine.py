"""torch as an engine: what users would otherwise run. It takes the sweep's model, not the ONNX graph.

Three of one module: `torch-eager` with attention written out, `torch-sdpa` with torch's fused attention, and
`torch-compile`, which compiles the latter with inductor. All have packed weights and write their KV cache in place. A
checkpoint that a pass left in the variant's folder is taken in place of the model's own weights.
"""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.engines.cuda import driver_fault
from llama_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from llama_bench.engines import Task, TimedSession
    from llama_bench.sweep import Session, Target

DEVICES = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
"""Provider of a target → torch's name of the device."""

COMPILE = "torch-compile"

ATTENTION = {"torch-eager": "written", "torch-sdpa": "sdpa", COMPILE: "sdpa"}
"""Engine → how it computes attention."""

INDUCTOR: dict[str, dict[str, dict[str, bool]]] = {
    # Frozen weights are packed ahead. In fp32 tuning then finds that inductor's own C++ product takes half the time of
    # MKL's in a decode step; in half precision what it chose was slower than oneDNN's. docs/peers.md has the numbers.
    "cpu": {
        "fp32": {"freezing": True, "max_autotune": True},
        "bf16": {"freezing": True, "max_autotune": False},
        "fp16": {"freezing": True, "max_autotune": False},
    },
    # torch.compile's mode "max-autotune": kernels tuned, and replayed as a CUDA graph
    "cuda": {
        precision: {"max_autotune": True, "coordinate_descent_tuning": True, "triton.cudagraphs": True}
        for precision in ("fp32", "bf16", "fp16")
    },
}
"""Device → precision → what inductor is told beyond its defaults."""

NEVER = ("disabled_optimizers", "cuda_graph", "provider_options", "config", "environment")
"""Keys of a recipe's session that are ONNX Runtime's."""


def settings(engine: str, session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return everything that shapes execution, ready for JSON.

    `tf32` exists on CUDA only, so elsewhere it makes no difference. Threads are those of the target, or
    `physical_cores`. Raises InputError for session options that are ONNX Runtime's, and for providers that torch has no
    device for.
    """
    device = DEVICES.get(target.provider)
    if device is None:
        near = nearest(target.provider, DEVICES)
        raise InputError(f"engine {engine!r} has no device for targets with provider {target.provider!r}{near}")
    given = [key for key in NEVER if getattr(session, key)]
    if session.optimization_level != "all":
        given.insert(0, "optimization_level")
    if given:
        raise InputError(f"session option {given[0]!r} is ONNX Runtime's, and engine {engine!r} has nothing like it")
    return {
        "engine": engine,
        "provider": target.provider,
        "provider_options": {},
        "intra_op_num_threads": target.threads or physical_cores,
        "io": session.io,
        "precision": session.precision,
        "tf32": session.tf32 and device == "cuda",
        "attention": ATTENTION[engine],
        "inductor": INDUCTOR[device][session.precision] if engine == COMPILE else None,
    }


def missing(settings: Mapping[str, Any]) -> str | None:
    """Return why this machine cannot run with `settings`: no GPU, no C++ compiler, no Triton."""
    engine, device = settings["engine"], DEVICES[settings["provider"]]
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            if not torch.version.cuda:
                return f"engine {engine!r} needs a GPU, and torch {torch.__version__} is a build without CUDA"
            fault = driver_fault(int(torch.version.cuda.partition(".")[0]))
            return (
                f"engine {engine!r} needs a GPU, and torch {torch.__version__} finds none: {fault or 'nobody says why'}"
            )
        if engine == COMPILE and find_spec("triton") is None:
            return f"engine {engine!r} needs the package triton on a GPU: pip install triton"
        return None
    return missing_compiler(engine) if engine == COMPILE else None


def missing_compiler(engine: str) -> str | None:
    """Return what of a C++ compiler this machine lacks: the program, or Python's header files."""
    from torch._inductor import cpp_builder, exc

    try:
        compiler = cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        compiler = ""
    if not compiler or shutil.which(compiler) is None:
        return f"engine {engine!r} needs a C++ compiler (apt install g++, or CXX=…), and there is none here"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"engine {engine!r} needs Python's header files (apt install python3-dev): {header} is not there"
    return None


def open_session(folder: Path, settings: Mapping[str, Any], task: Task) -> TimedSession:
    """Load the model of the task, or the checkpoint in `folder`, and make it ready to run.

    `torch-compile` compiles here, outside of all timing. Raises WorkError when something is missing or fails.
    """
    from llama_bench.engines.torch_session import TorchSession

    return TorchSession(folder, settings, task)
