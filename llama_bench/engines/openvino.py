"""OpenVINO as a plugin provider of ONNX Runtime (distribution onnxruntime-ep-openvino), on Intel CPUs.

Left to itself it computes fp32 models in bf16 where the CPU can, without a word; here the precision is always said.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.engines import onnxruntime as base
from llama_bench.errors import InputError, WorkError

if TYPE_CHECKING:
    from llama_bench.engines import Task, TimedSession
    from llama_bench.sweep import Session, Target

PROVIDER = "OpenVINOExecutionProvider"

PACKAGE, DISTRIBUTION = "onnxruntime_ep_openvino", "onnxruntime-ep-openvino"

PRECISIONS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""A sweep's word → OpenVINO's INFERENCE_PRECISION_HINT. One that the CPU lacks it replaces by another, silently."""

OWN = {"INFERENCE_PRECISION_HINT": "precision", "INFERENCE_NUM_THREADS": "threads"}
"""Property of OpenVINO → the key of a recipe's session, or of a target, that says it."""


def settings(engine: str, session: Session, target: Target, physical_cores: int) -> dict[str, Any]:
    """Return everything that shapes execution, ready for JSON; provider options are properties of OpenVINO's CPU.

    Raises InputError for targets other than CPUs and for a property that has a key of its own.
    """
    if target.provider != base.CPU:
        raise InputError(f"engine {engine!r} runs on CPU targets, not on one with provider {target.provider}")
    for name, key in OWN.items():
        base.refuse_twice(session, name, key)
    found = base.common(engine, session, target, physical_cores)
    properties = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[session.precision],
        "INFERENCE_NUM_THREADS": str(found["intra_op_num_threads"]),
        "NUM_STREAMS": "1",
        **{name: str(value) for name, value in session.provider_options.items()},
    }
    load_config = json.dumps({"CPU": dict(sorted(properties.items()))})
    return found | {"provider": PROVIDER, "provider_options": {"load_config": load_config}}


def missing(settings: Mapping[str, Any]) -> str | None:
    """Return why this machine cannot run with `settings`: no package, no Intel CPU, no arithmetic of the precision."""
    import onnxruntime as ort

    if find_spec(PACKAGE) is None:
        return f"engine 'openvino' needs the package {DISTRIBUTION}: pip install {DISTRIBUTION}"
    if not hasattr(ort, "register_execution_provider_library"):
        return f"engine 'openvino' needs ONNX Runtime 1.23 or newer, not {ort.__version__}"
    device = _device()
    if device is None:
        return f"{DISTRIBUTION} serves Intel CPUs, and this machine has none"
    able = device.ep_metadata.get("OPTIMIZATION_CAPABILITIES", "").split()
    if settings["precision"].upper() not in able:
        return f"OpenVINO has no {settings['precision']} on this CPU and would compute in another precision"
    return None


def open_session(
    folder: Path, settings: Mapping[str, Any], task: Task, *, adjust: Callable[[Any], None] | None = None
) -> TimedSession:
    """Load the variant in `folder` and make it ready to run. Raises WorkError."""
    import onnxruntime as ort

    why = missing(settings)
    if why is not None:
        raise WorkError(why)
    ort.set_default_logger_severity(base.FATAL)  # its own coloured lines add nothing to the WorkError
    options = base.session_options(settings)
    options.add_provider_for_devices([_device()], dict(settings["provider_options"]))
    if adjust is not None:
        adjust(options)
    session = base.make(folder / "model.onnx", options, settings)
    if session.get_providers()[0] != PROVIDER:
        raise WorkError(f"ONNX Runtime fell back to {session.get_providers()[0]}: {PROVIDER} did not come up")
    return base.timed(session, settings, task)


def _device() -> Any:
    """Return OpenVINO's CPU device, None where it finds no CPU that it serves."""
    import onnxruntime as ort

    _register()
    devices = (device for device in ort.get_ep_devices() if device.ep_name == PROVIDER)
    return next((device for device in devices if device.ep_metadata.get("ov_device") == "CPU"), None)


@functools.cache
def _register() -> None:
    """Load the plugin into this process; ONNX Runtime refuses the same one twice."""
    import onnxruntime as ort

    ort.register_execution_provider_library(DISTRIBUTION, import_module(PACKAGE).get_library_path())
