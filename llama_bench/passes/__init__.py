"""The passes: one module a family. To add a family, write its module and name it in the two tables below."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from llama_bench.errors import InputError, nearest
from llama_bench.passes import onnxoptimizer
from llama_bench.passes.effect import Effect, effect
from llama_bench.passes.info import PassInfo
from llama_bench.sweep import Pass

__all__ = ["APPLY", "PASSES", "Effect", "PassInfo", "apply", "effect", "find"]

PASSES: dict[str, dict[str, PassInfo]] = {
    "onnxoptimizer": onnxoptimizer.PASSES,
}
"""Family → pass name → what it is."""

APPLY: dict[str, Callable[[str, Path, Path], None]] = {
    "onnxoptimizer": onnxoptimizer.apply,
}
"""Family → function (pass name, source folder, destination folder) that writes the destination's model."""


def find(step: Pass) -> PassInfo:
    """Return the table's line for `step`; raises InputError when there is none, or when the pass is refused."""
    if step.family not in PASSES:
        raise InputError(f"unknown pass family {step.family!r}{nearest(step.family, PASSES)}")
    info = PASSES[step.family].get(step.name)
    if info is None:
        raise InputError(f"unknown {step.family} pass {step.name!r}{nearest(step.name, PASSES[step.family])}")
    if info.refused:
        raise InputError(f"{step.label} cannot be used: {info.refused}")
    return info


def apply(step: Pass, source: Path, destination: Path) -> Effect:
    """Apply `step` to the model in the folder `source`, write the result into `destination`, say what it did.

    Both folders hold `model.onnx` and its external data; other files of the source are not copied, and the source is
    never changed. Raises InputError for a pass that the table lacks or refuses, WorkError when the pass fails, when
    weights are missing, or when the result is not a valid model with the same inputs and outputs.
    """
    find(step)
    destination.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    APPLY[step.family](step.name, source, destination)
    return effect(source, destination, time.perf_counter() - started)
