"""ONNX Runtime: everything that shapes execution as explicit settings, and the session that is timed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.errors import InputError, WorkError, nearest

if TYPE_CHECKING:
    from llama_bench.sweep import Session, Target

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

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

ELEMENT_TYPES = {
    "tensor(float)": 1,
    "tensor(uint8)": 2,
    "tensor(int8)": 3,
    "tensor(int32)": 6,
    "tensor(int64)": 7,
    "tensor(bool)": 9,
    "tensor(float16)": 10,
    "tensor(double)": 11,
    "tensor(bfloat16)": 16,
}
"""ONNX Runtime's name of a tensor type → number of the type in onnx.TensorProto."""

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


def settings(session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return everything that shapes execution, ready for JSON: equal for equal arms, different for different ones.

    `tf32` and `cuda_graph` exist on CUDA only, so elsewhere they make no difference. Threads are those of the target,
    or `physical_cores`. Raises InputError for an option that is set twice: by its own key and among the provider's.
    """
    options: dict[str, str] = {}
    if target.provider == CUDA:
        options = {
            **CUDA_OPTIONS,
            "use_tf32": str(int(session.tf32)),
            "enable_cuda_graph": str(int(session.cuda_graph)),
        }
        for option, key in (("use_tf32", "tf32"), ("enable_cuda_graph", "cuda_graph")):
            if option in session.provider_options:
                raise InputError(f"provider option {option!r} has a key of its own in a recipe's session: {key!r}")
    options |= {key: _text(value) for key, value in session.provider_options.items()}
    return {
        "engine": "onnxruntime",
        "provider": target.provider,
        "provider_options": dict(sorted(options.items())),
        "optimization_level": session.optimization_level,
        "io": session.io,
        "intra_op_num_threads": target.threads or physical_cores,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "enable_cpu_mem_arena": True,
        "enable_mem_pattern": True,
        "enable_mem_reuse": True,
        "config": dict(sorted({**CONFIG, **session.config}.items())),
    }


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """Return the hash of `settings`, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class TimedSession:
    """One ONNX Runtime session on the variant in `folder`, its inputs and outputs bound once.

    With `io: device` inputs lie on the provider's device before the first run and outputs stay there, in buffers that
    every run reuses; with `io: host` each run takes numpy arrays and gives new ones, as the study did. `adjust` may
    change the session's options before it is made. Raises WorkError when the session cannot be made, runs on another
    provider than asked for, or wants inputs that `inputs` lacks.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        inputs: Mapping[str, np.ndarray],
        *,
        adjust: Callable[[Any], None] | None = None,
    ) -> None:
        self.session = _open(folder / "model.onnx", settings, adjust)
        self.providers: list[str] = self.session.get_providers()
        self.names: list[str] = [output.name for output in self.session.get_outputs()]
        self._feed = self._wanted(inputs)
        self._results: list[np.ndarray] = []
        self._ran = False
        self._binding = self._bind(settings) if settings["io"] == "device" else None
        self._synchronize = settings["provider"] != CPU

    def run(self) -> None:
        """Execute once; returns when the outputs are complete. Raises WorkError when ONNX Runtime fails."""
        try:
            if self._binding is None:
                self._results = self.session.run(None, self._feed)
            else:
                self.session.run_with_iobinding(self._binding)
                if self._synchronize:
                    self._binding.synchronize_outputs()
            self._ran = True
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise WorkError(f"ONNX Runtime failed while running: {_line(error)}") from error

    def outputs(self) -> dict[str, np.ndarray]:
        """Return the outputs of the last run by name, on the host.

        Raises WorkError before the first run, and for a type that numpy does not have (bfloat16).
        """
        if not self._ran:
            raise WorkError("there are no outputs before the first run")
        try:
            results = self._results if self._binding is None else self._binding.copy_outputs_to_cpu()
        except RuntimeError as error:
            raise WorkError(f"the outputs cannot be read: {_line(error)}") from error
        return dict(zip(self.names, results, strict=True))

    def _wanted(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wanted = [value.name for value in self.session.get_inputs()]
        for name in wanted:
            if name not in inputs:
                raise WorkError(f"the model wants an input {name!r} that the workload does not give")
        return {name: np.ascontiguousarray(inputs[name]) for name in wanted}

    def _bind(self, settings: Mapping[str, Any]) -> Any:
        """Bind the inputs, already on the device, and every output to a buffer of its own."""
        from onnxruntime import OrtValue

        device = "cpu" if settings["provider"] == CPU else "cuda"
        device_id = int(settings["provider_options"].get("device_id", 0))
        binding = self.session.io_binding()
        for name, array in self._feed.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array, device, device_id))
        for output in self.session.get_outputs():
            if not all(isinstance(size, int) for size in output.shape):
                # a shape that the graph does not say: the first run makes the buffer, later ones write into it
                binding.bind_output(output.name, device, device_id)
                continue
            element_type = ELEMENT_TYPES.get(output.type)
            if element_type is None:
                raise WorkError(f"output {output.name!r} is a {output.type}, which cannot be bound")
            buffer = OrtValue.ortvalue_from_shape_and_type(list(output.shape), element_type, device, device_id)
            binding.bind_ortvalue_output(output.name, buffer)
        return binding


def session_options(settings: Mapping[str, Any]) -> Any:
    """Return onnxruntime.SessionOptions that say what `settings` say, with ONNX Runtime's warnings off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = ERROR
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


def _open(model: Path, settings: Mapping[str, Any], adjust: Callable[[Any], None] | None) -> Any:
    """Make the session; raises WorkError unless it runs on the provider that `settings` name."""
    import onnxruntime as ort

    provider = settings["provider"]
    if provider not in ort.get_available_providers():
        raise WorkError(
            f"this build of ONNX Runtime has no {provider}{nearest(provider, ort.get_available_providers())}"
        )
    # a provider that cannot load is reported by a WorkError below; ONNX Runtime's own coloured lines add nothing
    ort.set_default_logger_severity(FATAL if provider != CPU else ERROR)
    if provider == CUDA:
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    options = session_options(settings)
    if adjust is not None:
        adjust(options)
    providers = [(provider, dict(settings["provider_options"])), *([] if provider == CPU else [CPU])]
    try:
        session = ort.InferenceSession(str(model), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise WorkError(f"ONNX Runtime cannot load {model}: {_line(error)}") from error
    session.disable_fallback()
    expected = [CPU] if provider == CPU else [provider, CPU]
    if session.get_providers() != expected:
        raise WorkError(f"ONNX Runtime fell back to {session.get_providers()[0]}: {_why_not(provider)}")
    return session


def _why_not(provider: str) -> str:
    """Say why `provider` did not come up: the library that the loader misses, or that there is no device."""
    import onnxruntime as ort

    if provider == CUDA and sys.platform == "linux":
        library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            if "cannot open shared object file" in str(error):
                missing = str(error).split(":")[0]
                return f"{provider} needs the library {missing}, which is not installed here"
    return f"{provider} found no device that it can use"


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
