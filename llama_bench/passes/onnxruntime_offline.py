"""ONNX Runtime's own graph optimisation, done once and saved: what each session would do, and ablations of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from llama_bench.errors import InputError, WorkError
from llama_bench.passes.files import EMBED_BYTES, WEIGHTS
from llama_bench.passes.info import PassInfo, Work
from llama_bench.passes.optimizers import check_optimizers
from llama_bench.sweep_part import Part

if TYPE_CHECKING:
    from onnx import ModelProto


class Offline(Part):
    """Options of every level."""

    disabled: tuple[str, ...] = Field((), description="Optimisers and rules of ONNX Runtime that are left out.")

    @field_validator("disabled")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return check_optimizers(names)
        except InputError as error:
            raise ValueError(f"unknown optimiser: {error}") from None


_OPTIMISED: dict[str, Any] = {"options": Offline, "leaves": ("optimised",)}

PASSES: dict[str, PassInfo] = {
    "all": PassInfo("Everything ONNX Runtime does to a graph for its CPU provider.", **_OPTIMISED),
    "basic": PassInfo("ONNX Runtime's rewrites that keep to ONNX's own operators, for any provider.", options=Offline),
    "extended": PassInfo("The basic ones, and fusions into operators of the CPU provider.", **_OPTIMISED),
    "layout": PassInfo("The extended ones, and changes of layout for the CPU provider.", **_OPTIMISED),
}
"""The levels of ONNX Runtime's graph optimisation but for none."""

CHILD = Path(__file__).with_name("onnxruntime_offline_child.py")

TIMEOUT_S = 3600.0


def work(given: Work) -> None:
    """Do one piece of work of this family; a graph that ONNX Runtime leaves as it is is given back byte for byte.

    Raises WorkError when weights are missing, or when ONNX Runtime cannot load the model on its CPU provider.
    """
    import onnx

    from llama_bench import graph
    from llama_bench.passes import files

    origin = given.source / graph.MODEL
    before = graph.load(origin)
    graph.external_tensors(before, given.source)  # weights that are missing are named better here than there
    with files.result(f"onnxruntime pass {given.name}", given.source, given.destination) as folder:
        made = folder / graph.MODEL
        _run(given.name, origin, made, given.options.disabled)
        after = graph.load(made)
        if sum(graph.tensor_bytes(tensor) for tensor in graph.tensors(after)) <= EMBED_BYTES:
            after = graph.load(made, weights=True)
            (folder / WEIGHTS).unlink(missing_ok=True)
        _drop_unread_domains(after)
        onnx.save_model(after, str(made))


def _drop_unread_domains(model: ModelProto) -> None:
    """ONNX Runtime lists every domain that it knows; those that no node is of say nothing of this model."""
    from llama_bench import graph

    read = {node.domain for node in graph.nodes(model)}
    kept = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in read]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _run(name: str, origin: Path, made: Path, disabled: tuple[str, ...]) -> None:
    """Let ONNX Runtime optimise and save in a process of its own; raises WorkError with what it said."""
    settings = {"level": name, "weights": WEIGHTS, "disabled": disabled}
    # -P: this folder's modules must not come first on the child's path
    command = [sys.executable, "-P", str(CHILD), str(origin), str(made), json.dumps(settings)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise WorkError(f"onnxruntime pass {name}: not finished after {TIMEOUT_S:.0f} s") from error
    if done.returncode < 0:
        raise WorkError(f"onnxruntime pass {name}: crashed with {signal.Signals(-done.returncode).name}")
    if done.returncode:
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise WorkError(f"onnxruntime pass {name}: {said.strip()[:400]}")
