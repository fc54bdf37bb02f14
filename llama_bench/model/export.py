"""Export to ONNX through either of torch's exporters, and the check that what came out is the same model."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llama_bench.errors import WorkError
from llama_bench.model import inputs as model_inputs
from llama_bench.model.weights import weight_bytes
from llama_bench.sweep import Model, Workload
from llama_bench.sweep_model import TORCHSCRIPT_MAX_OPSET

if TYPE_CHECKING:
    from llama_bench.model.llama import Llama

Array: TypeAlias = np.ndarray[Any, Any]
Named: TypeAlias = Mapping[str, Array]

# Opsets that each exporter of torch 2.13 can write. Asked for less, dynamo writes 18 without a word.
OPSETS = {"torchscript": range(13, TORCHSCRIPT_MAX_OPSET + 1), "dynamo": range(18, 26)}
# Largest difference from torch that still counts as the same model, relative to max(1, largest value of the output):
# reordered fp32 sums come to about 1e-6, a wrong graph to 1e-2 and more.
TOLERANCE = 1e-4

CHECKED = ((1, 0, 7), (2, 5, 1), (2, 3, 4))
"""Sequences, cached and new tokens at which the graph of a cached model is checked: a prefill, a step, and between."""


def export(model: Model, workload: Workload, folder: Path, weights: Named | None = None) -> dict[str, Any]:
    """Export `model` for `workload` into the empty `folder`, check it, and return the facts.

    Writes `model.onnx` and the weights inside or beside it (where they end up is the exporter's choice; dynamo's lie
    beside it). The weights are the model's own, or those given by their Hugging Face names. A graph is checked against
    torch at the timed shape, that of a cached model at CHECKED. The facts are ready for JSON: `check` (see `compare`;
    the largest of all checks), `nodes` of the main graph, `seconds`, `exporter`, `opset`.

    Raises WorkError when the exporter cannot do it, when ONNX Runtime's outputs differ from torch's or when `weights`
    do not fit the model, InputError when the workload asks for what the model does not have.
    """
    from llama_bench.model import streamed

    started = time.perf_counter()
    model_inputs.check(model, workload)
    check_opset(model)
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    network = streamed.build(model, workload, weights)
    write(network, model, workload, path)
    cases = expectations(network, model, workload)
    del network
    gc.collect()  # the weights are about to be loaded a second time
    nodes, opset = count(path)
    if opset != model.opset:
        raise WorkError(f"model {model.label}: exporter {model.exporter} wrote opset {opset}, not {model.opset}")
    return {
        "check": check(folder, model, cases),
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
    """Write `network` to `path`, static or, of a cached model, of any batch, length and past.

    Raises WorkError with the exporter's own reason.
    """
    try:
        with quiet():
            if model.exporter == "dynamo":
                from llama_bench.model import dynamo

                dynamo.write(model, workload, path, tensors(network))
            else:
                torchscript(network, model, workload, path)
    except WorkError:
        raise
    except Exception as error:  # the exporters raise whatever their parts raise
        reason = str(error).strip().splitlines() or [""]
        raise WorkError(
            f"model {model.label}: exporter {model.exporter} failed at opset {model.opset}: "
            f"{type(error).__name__}: {reason[0][:300]}"
        ) from error


def tensors(network: Llama) -> Iterator[tuple[str, Array]]:
    """Yield what the network computes with, by name: its parameters one at a time, then its buffers."""
    yield from network.tensors()
    yield from ((name, buffer.numpy()) for name, buffer in network.named_buffers())


def torchscript(network: Llama, model: Model, workload: Workload, path: Path) -> None:
    """Write `network` to `path` by the exporter that traces it."""
    import torch

    from llama_bench.model import llama

    given = model_inputs.make_inputs(model, workload)
    torch.onnx.export(
        network,
        tuple(llama.arguments(model, given, [])),
        str(path),  # above 2 GB the exporter takes a Path for an open file and gives up
        dynamo=False,
        do_constant_folding=model.constant_folding,
        input_names=model_inputs.input_names(model),
        output_names=model_inputs.output_names(model, workload),
        opset_version=model.opset,
        verbose=False,
    )


def expectations(network: Llama, model: Model, workload: Workload) -> list[tuple[Named, Named]]:
    """Return what the graph is to be given and what torch makes of it, by name, once for each shape to check.

    A causal model makes the same of a token whatever comes after it, so one run of torch without a cache answers for
    every split into cached and new tokens.
    """
    from llama_bench.model import llama

    if not model.cache:
        return [(model_inputs.make_inputs(model, workload), llama.run(network, model, workload))]
    batch, count = max(b for b, _, _ in CHECKED), max(past + new for _, past, new in CHECKED)
    ids = model_inputs.token_ids(model, batch, count)
    given = {"input_ids": ids, "position_ids": model_inputs.positions(batch, 0, count)}
    everything = network.returning("logits") if workload.outputs == "last_logits" else network
    first, *kept = llama.run(everything, model, workload, given).values()
    pasts, names = model_inputs.cache_names(model, "past"), model_inputs.output_names(model, workload)
    cases: list[tuple[Named, Named]] = []
    for b, past, new in CHECKED:
        step = {"input_ids": ids[:b, past : past + new], "position_ids": model_inputs.positions(b, past, new)}
        cache = [np.ascontiguousarray(tensor[:b, :, :past]) for tensor in kept]
        made = first[:b, past : past + new][:, -1 if workload.outputs == "last_logits" else 0 :]
        expected = [made, *(tensor[:b, :, : past + new] for tensor in kept)]
        cases.append((step | dict(zip(pasts, cache, strict=True)), dict(zip(names, expected, strict=True))))
    return cases


def check(folder: Path, model: Model, cases: Sequence[tuple[Named, Named]]) -> dict[str, dict[str, float]]:
    """Run `folder/model.onnx` in ONNX Runtime on the CPU and `compare` it with what is expected, case by case.

    Returns the largest difference of all cases by output.
    """
    import onnxruntime

    from llama_bench.model import streamed

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if weight_bytes(model) > streamed.RESIDENT_BYTES:  # leave the weights in their file, mapped into memory
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_pattern = False  # it plans one block for all weights, which no machine of 24 GB has
    worst: dict[str, dict[str, float]] = {}
    try:
        session = onnxruntime.InferenceSession(
            folder / "model.onnx", sess_options=options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        results = [session.run(names, given) for given, _ in cases]
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise WorkError(
            f"model {model.label}: the export does not run in ONNX Runtime: {str(error).splitlines()[0][:300]}"
        ) from error
    for (_, expected), result in zip(cases, results, strict=True):
        for name, found in compare(model.label, expected, dict(zip(names, result, strict=True))).items():
            before = worst.setdefault(name, found)
            worst[name] = {what: max(before[what], found[what]) for what in found}
    return worst


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
