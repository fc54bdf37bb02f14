"""What the arms of an own model answer to: the original file itself, on the CPU, with nothing optimised."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from llama_bench.errors import WorkError
from llama_bench.model.reference import INPUTS, OUTPUTS
from llama_bench.own.inputs import Array, make_inputs
from llama_bench.own.take import unchanged
from llama_bench.sweep import Workload
from llama_bench.sweep_own import OwnModel


def make(model: OwnModel, workload: Workload, folder: Path) -> dict[str, Any]:
    """Write `inputs.safetensors` and `reference.safetensors` into `folder`, and return the facts.

    There is no torch for somebody's graph, so what arms are checked against is the file in ONNX Runtime on the CPU at
    optimisation level disable: the arithmetic as it is written, in the types of the file. The facts are ready for
    JSON: `how` it was made, and `seconds`. Raises WorkError when ONNX Runtime cannot run it.
    """
    import onnxruntime
    from safetensors.numpy import save_file

    started = time.perf_counter()
    path, *_ = unchanged(model)
    given = make_inputs(model, workload)
    found = _run(model, path, given)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(given, folder / INPUTS)
    save_file(found, folder / OUTPUTS)
    how = f"{path.name} itself in ONNX Runtime {onnxruntime.__version__} on the CPU, optimisation level disable"
    return {"how": how, "seconds": time.perf_counter() - started}


def _run(model: OwnModel, path: Path, given: dict[str, Array]) -> dict[str, Array]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        results = session.run(names, given)
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        said = " ".join(str(error).split())
        raise WorkError(f"model {model.label}: {path.name} does not run in ONNX Runtime: {said[:300]}") from error
    for name, result in zip(names, results, strict=True):
        if not isinstance(result, np.ndarray):
            raise WorkError(f"model {model.label}: output {name!r} is no tensor, so no arm's can be compared with it")
    return {name: np.ascontiguousarray(result) for name, result in zip(names, results, strict=True)}
