"""Export to ONNX through either of torch's exporters, and the check that what came out is the same model."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.errors import WorkError
from llama_bench.model import inputs as model_inputs
from llama_bench.sweep import TORCHSCRIPT_MAX_OPSET, Model, Workload

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

    from llama_bench.model.llama import Llama

# Opsets that each exporter of torch 2.13 can write. Asked for less, dynamo writes 18 without a word.
OPSETS = {"torchscript": range(13, TORCHSCRIPT_MAX_OPSET + 1), "dynamo": range(18, 26)}
# Largest difference from torch that still counts as the same model, relative to max(1, largest value of the output):
# reordered fp32 sums come to about 1e-6, a wrong graph to 1e-2 and more.
TOLERANCE = 1e-4


def export(model: Model, workload: Workload, folder: Path) -> dict[str, Any]:
    """Export `model` for `workload` into the empty `folder`, check it, and return the facts.

    Writes `model.onnx`, the weights inside or beside it (where they end up is the exporter's choice; above 2 GB always
    beside it), and `reference.safetensors`: torch's fp32 outputs by name for `make_inputs(model, workload)`. The facts
    are ready for JSON: `check` (see `compare`), `nodes` of the main graph, `seconds`, `exporter`, `opset`.

    Raises WorkError when the exporter cannot do it or when ONNX Runtime's outputs differ from torch's, InputError when
    the workload asks for what the model does not have.
    """
    from safetensors.numpy import save_file

    from llama_bench.model import llama

    started = time.perf_counter()
    model_inputs.check(model, workload)
    check_opset(model)
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    network = llama.build(model, workload)
    expected = llama.run(network, model, workload)
    write(network, model, workload, path)
    del network
    gc.collect()  # the weights are about to be loaded a second time
    save_file(expected, folder / "reference.safetensors")
    shutil.copymode(path, folder / "reference.safetensors")  # safetensors lets nobody but the owner read its files
    nodes, opset = count(path)
    if opset != model.opset:
        raise WorkError(f"model {model.label}: exporter {model.exporter} wrote opset {opset}, not {model.opset}")
    return {
        "check": check(folder, model, workload, expected),
        "nodes": nodes,
        "seconds": time.perf_counter() - started,
        "exporter": model.exporter,
        "opset": opset,
    }


def check_opset(model: Model) -> None:
    """Raise WorkError when the exporter cannot write the model's opset."""
    able = OPSETS[model.exporter]
    if model.opset not in able:
        other = next((name for name, opsets in OPSETS.items() if model.opset in opsets), None)
        hint = f"; exporter {other} can" if other else ""
        raise WorkError(
            f"model {model.label}: exporter {model.exporter} writes opsets {able[0]} to {able[-1]}, "
            f"not {model.opset}{hint}"
        )


def write(network: Llama, model: Model, workload: Workload, path: Path) -> None:
    """Write `network` to `path` with static shapes. Raises WorkError with the exporter's own reason."""
    import torch

    given = model_inputs.make_inputs(model, workload)
    names = model_inputs.input_names(model)
    arguments = tuple(torch.from_numpy(given[name]) for name in names)
    options: dict[str, Any] = {
        "input_names": names,
        "output_names": model_inputs.output_names(model, workload),
        "opset_version": model.opset,
        "verbose": False,
    }
    try:
        with quiet():
            if model.exporter == "dynamo":
                program = torch.onnx.export(network, arguments, dynamo=True, optimize=model.constant_folding, **options)
                assert program is not None
                forget_origin(program)
                program.save(path, external_data=True)
            else:
                # A str, because above 2 GB the exporter takes a Path for an open file and gives up.
                torch.onnx.export(
                    network, arguments, str(path), dynamo=False, do_constant_folding=model.constant_folding, **options
                )
    except Exception as error:  # the exporters raise whatever their parts raise
        reason = str(error).strip().splitlines() or [""]
        raise WorkError(
            f"model {model.label}: exporter {model.exporter} failed at opset {model.opset}: "
            f"{type(error).__name__}: {reason[0][:300]}"
        ) from error


def forget_origin(program: ONNXProgram) -> None:
    """Drop dynamo's notes on where a node comes from, but for its module (`namespace`).

    Stack traces hold the paths of this machine: the same export would have other bytes on another one.
    """
    graph = program.model.graph
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        kept = node.metadata_props.get("namespace")
        node.metadata_props.clear()
        if kept is not None:
            node.metadata_props["namespace"] = kept
        for value in node.outputs:
            value.metadata_props.clear()


def check(
    folder: Path, model: Model, workload: Workload, expected: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, dict[str, float]]:
    """Run `folder/model.onnx` in ONNX Runtime on the CPU at the timed shape, and `compare` it with `expected`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", sess_options=options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        results = session.run(names, model_inputs.make_inputs(model, workload))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise WorkError(
            f"model {model.label}: the export does not run in ONNX Runtime: {str(error).splitlines()[0][:300]}"
        ) from error
    return compare(model.label, expected, dict(zip(names, results, strict=True)))


def compare(
    label: str, expected: Mapping[str, np.ndarray[Any, Any]], found: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, dict[str, float]]:
    """Return by output the largest absolute difference, also relative to the largest expected value.

    Raises WorkError, naming the output and the difference, when one exceeds TOLERANCE · max(1, largest expected
    value), is not finite, or when names or shapes differ.
    """
    if list(found) != list(expected):
        raise WorkError(f"model {label}: the export's outputs are {', '.join(found)}, not {', '.join(expected)}")
    differences: dict[str, dict[str, float]] = {}
    for name, wanted in expected.items():
        got = found[name]
        if got.shape != wanted.shape:
            raise WorkError(f"model {label}: output {name} has shape {list(got.shape)}, not {list(wanted.shape)}")
        largest = float(np.max(np.abs(wanted)))
        difference = float(np.max(np.abs(got - wanted)))
        if not difference <= TOLERANCE * max(1.0, largest):  # "not": NaN compares false
            raise WorkError(
                f"model {label}: the export differs from torch: output {name} by {difference:.3g} "
                f"(largest value {largest:.3g}, allowed {TOLERANCE * max(1.0, largest):.3g})"
            )
        differences[name] = {"max_abs": difference, "max_rel": difference / largest if largest else difference}
    return differences


def count(path: Path) -> tuple[int, int]:
    """Return the number of nodes in the main graph and its ONNX opset; weights outside the file are not loaded."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    return len(proto.graph.node), next(used.version for used in proto.opset_import if not used.domain)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' progress, deprecation and tracing notes off the terminal; errors are still raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
