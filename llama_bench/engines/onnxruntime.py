"""ONNX Runtime: everything that shapes execution as explicit settings, and the session that they make."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.engines.binding import HOST_PROVIDERS, place_of
from llama_bench.engines.cuda import CUDA, TENSORRT, preload, why_not
from llama_bench.engines.failures import failing
from llama_bench.errors import InputError, WorkError, nearest

if TYPE_CHECKING:
    from llama_bench.engines import Task, TimedSession
    from llama_bench.sweep import Session, Target

__all__ = ["CPU", "CUDA", "TENSORRT", "check_installation", "load", "missing", "open_session", "settings"]

CPU = "CPUExecutionProvider"

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")

LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
"""A sweep's word → member of onnxruntime.GraphOptimizationLevel."""

CONFIG = {
    "session.intra_op.allow_spinning": "1",
    "session.inter_op.allow_spinning": "1",
    # an idle session would spin on for up to half a second and steal the next arm's cores
    "session.force_spinning_stop": "1",
}
"""Session configuration entries of every session; a recipe's `config` comes on top."""

CUDA_OPTIONS = {
    "device_id": "0",
    "do_copy_in_default_stream": "1",
    "arena_extend_strategy": "kNextPowerOfTwo",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "prefer_nhwc": "0",
    "use_ep_level_unified_stream": "0",
}
"""ONNX Runtime's defaults, written down so that a new version's defaults cannot shift a comparison unseen."""

FATAL = 4
ERROR = 3


def check_installation(installed: Callable[[str], object] = metadata.version) -> None:
    """Raise InputError when both builds of ONNX Runtime, or none, are installed."""
    found = []
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed(name)
            found.append(name)
    if len(found) > 1:
        raise InputError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "pip uninstall onnxruntime onnxruntime-gpu, then install one of them"
        )
    if not found:
        raise InputError("ONNX Runtime is not installed: pip install onnxruntime-gpu (or onnxruntime without a GPU)")


def settings(engine: str, session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return everything that shapes execution, ready for JSON: equal for equal arms, different for different ones.

    `tf32` and `cuda_graph` exist on CUDA only, so elsewhere they make no difference. Threads are those of the target,
    or `physical_cores`. Raises InputError for an option that is set twice (by its own key and among the provider's),
    for a precision, and for an optimiser that ONNX Runtime does not have.
    """
    if session.precision != "fp32":
        raise InputError(
            f"precision {session.precision!r} is not for engine {engine!r}, which computes in what the model says: "
            f"{{passes: [{{precision: {session.precision}}}]}} converts the model"
        )
    options: dict[str, str] = {}
    if target.provider == CUDA:
        options = cuda_options(session)
        for option, key in (("use_tf32", "tf32"), ("enable_cuda_graph", "cuda_graph")):
            refuse_twice(session, option, key)
    options |= {key: text(value) for key, value in session.provider_options.items()}
    return common(engine, session, target, physical_cores) | {
        "provider": target.provider,
        "provider_options": dict(sorted(options.items())),
    }


def common(engine: str, session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return the settings that every engine made of ONNX Runtime has, all but the provider and its options."""
    disabled: tuple[str, ...] = ()
    if session.disabled_optimizers:
        from llama_bench.passes.optimizers import check_optimizers

        disabled = check_optimizers(session.disabled_optimizers)
    return {
        "engine": engine,
        "optimization_level": session.optimization_level,
        "disabled_optimizers": list(disabled),
        "precision": session.precision,
        "io": session.io,
        "intra_op_num_threads": target.threads or physical_cores,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "enable_cpu_mem_arena": True,
        "enable_mem_pattern": True,
        "enable_mem_reuse": True,
        "config": dict(sorted({**CONFIG, **session.config}.items())),
        "environment": dict(sorted(session.environment.items())),
    }


def cuda_options(session: Session) -> dict[str, str]:
    """Return the options of the CUDA provider that a recipe's session stands for."""
    return {**CUDA_OPTIONS, "use_tf32": text(session.tf32), "enable_cuda_graph": text(session.cuda_graph)}


def refuse_twice(session: Session, option: str, key: str) -> None:
    """Raise InputError when a provider option is given that a recipe's session has a key for."""
    if option in session.provider_options:
        raise InputError(f"provider option {option!r} has a key of its own in a recipe's session: {key!r}")


def text(value: object) -> str:
    """Return the value of a provider option as ONNX Runtime takes it."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """Return the hash of `settings`, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def session_options(settings: Mapping[str, Any]) -> Any:
    """Return onnxruntime.SessionOptions that say what `settings` say, with ONNX Runtime's warnings off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = ERROR
    options.logid = settings.get("arm", "")  # its lines say whose they are: all arms write into one log
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, LEVELS[settings["optimization_level"]])
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = settings["intra_op_num_threads"]
    options.inter_op_num_threads = settings["inter_op_num_threads"]
    options.enable_cpu_mem_arena = settings["enable_cpu_mem_arena"]
    options.enable_mem_pattern = settings["enable_mem_pattern"]
    options.enable_mem_reuse = settings["enable_mem_reuse"]
    for key, value in settings["config"].items():
        options.add_session_config_entry(key, value)
    return options


def missing(settings: Mapping[str, Any]) -> str | None:
    """Return why this machine cannot run with the provider of `settings`: the build, or a library that it needs."""
    import onnxruntime as ort

    provider = settings["provider"]
    if provider not in ort.get_available_providers():
        return f"this build of ONNX Runtime has no {provider}{nearest(provider, ort.get_available_providers())}"
    preload(provider)
    return why_not(provider)


def open_session(
    folder: Path, settings: Mapping[str, Any], task: Task, *, adjust: Callable[[Any], None] | None = None
) -> TimedSession:
    """Load the variant in `folder` and make it ready to run; `adjust` may change the session's options before.

    Raises WorkError when the session cannot be made, runs on another provider than asked for, or wants inputs that the
    task lacks.
    """
    return timed(load(folder / "model.onnx", settings, adjust), settings, task)


def timed(session: Any, settings: Mapping[str, Any], task: Task) -> TimedSession:
    """Return the session that runs the task on an InferenceSession, as its graph has a KV cache or not."""
    from llama_bench.engines.cached import CachedSession
    from llama_bench.engines.cached_graph import PAST
    from llama_bench.engines.static import StaticSession

    place = place_of(settings)
    own = "onnx" in task.model  # somebody's graph is run once, whatever its inputs are called
    if not own and any(value.name.startswith(PAST) for value in session.get_inputs()):
        return CachedSession(session, settings, place, task)
    if task.workload["kind"] != "prefill":
        raise WorkError(f"{task.workload['kind']} needs a graph with a KV cache, and this one takes no {PAST}*")
    return StaticSession(session, settings, place, task.inputs)


def load(model: Path, settings: Mapping[str, Any], adjust: Callable[[Any], None] | None = None) -> Any:
    """Make an InferenceSession; raises WorkError unless it runs on the provider that `settings` name.

    `fallback` in the settings are providers, with their options, for what the first one does not take.
    """
    import onnxruntime as ort

    provider = settings["provider"]
    os.environ.update(settings.get("environment", {}))  # an arm's process is its own
    if provider not in ort.get_available_providers():
        raise WorkError(
            f"this build of ONNX Runtime has no {provider}{nearest(provider, ort.get_available_providers())}"
        )
    # a provider that cannot load is reported by a WorkError below; ONNX Runtime's own coloured lines add nothing
    ort.set_default_logger_severity(FATAL if provider != CPU else ERROR)
    preload(provider)
    providers = {provider: settings["provider_options"], **settings.get("fallback", {}), CPU: {}}
    options = session_options(settings)
    if adjust is not None:
        adjust(options)
    try:
        session = make(model, options, settings, providers=[(name, dict(given)) for name, given in providers.items()])
    except WorkError as error:  # TensorRT's provider fails where CUDA's falls back
        why = why_not(provider)
        raise WorkError(why) if why is not None else error from error
    if session.get_providers() != list(providers):
        why = why_not(provider) or f"{provider} found no device that it can use: nvidia-smi must list one"
        raise WorkError(f"ONNX Runtime fell back to {session.get_providers()[0]}: {why}")
    return session


def make(model: Path, options: Any, settings: Mapping[str, Any], **providers: Any) -> Any:
    """Return onnxruntime.InferenceSession without its fallback to other providers. Raises WorkError."""
    import onnxruntime as ort

    with failing(f"to load {model}", gpu=settings["provider"] not in HOST_PROVIDERS):
        disabled = settings["disabled_optimizers"]
        session = ort.InferenceSession(
            str(model), options, enable_fallback=0, disabled_optimizers=disabled, **providers
        )
    session.disable_fallback()
    return session
