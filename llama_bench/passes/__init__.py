"""The passes: one module a family. To add a family, write its module and name it in the two tables below."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from llama_bench.errors import InputError, nearest
from llama_bench.passes import (
    distill,
    fuse,
    onnxoptimizer,
    onnxruntime_offline,
    onnxscript_pass,
    precision,
    prune,
    quantize,
    transformers_pass,
)
from llama_bench.passes.effect import Effect, effect
from llama_bench.passes.info import PassInfo, State, Work
from llama_bench.sweep import AnyModel, OwnModel, Pass, Workload
from llama_bench.sweep_part import Part

__all__ = ["APPLY", "PASSES", "Effect", "PassInfo", "Work", "apply", "effect", "find", "misfit"]

PASSES: dict[str, dict[str, PassInfo]] = {
    "prune": prune.PASSES,
    "distill": distill.PASSES,
    "onnxoptimizer": onnxoptimizer.PASSES,
    "onnxruntime": onnxruntime_offline.PASSES,
    "onnxscript": onnxscript_pass.PASSES,
    "transformers": transformers_pass.PASSES,
    "fuse": fuse.PASSES,
    "precision": precision.PASSES,
    "quantize": quantize.PASSES,
}
"""Family → pass name → what it is. The first of a family is its default: `{quantize: {bits: 4}}` names none."""

APPLY: dict[str, Callable[[Work], None]] = {
    "prune": prune.work,
    "distill": distill.work,
    "onnxoptimizer": onnxoptimizer.work,
    "onnxruntime": onnxruntime_offline.work,
    "onnxscript": onnxscript_pass.work,
    "transformers": transformers_pass.work,
    "fuse": fuse.work,
    "precision": precision.work,
    "quantize": quantize.work,
}
"""Family → function that does one piece of work: it writes the destination's model."""


STATES: dict[State, str] = {
    "optimised": "as ONNX Runtime optimised it ({onnxruntime: all})",
    "fused": "fused ({fuse: all})",
    "attention": "with GroupQueryAttention ({fuse: all} or {fuse: attention})",
    "half": "in half precision ({precision: fp16})",
    "quantised": "quantised ({quantize: {bits: 4}})",
}
"""State of a model → in words, with the pass that leaves it."""


def find(step: Pass) -> PassInfo:
    """Return the table's line for `step`; raises InputError when there is none, or when the pass is refused."""
    if step.family not in PASSES:
        raise InputError(f"unknown pass family {step.family!r}{nearest(step.family, PASSES)}")
    info = PASSES[step.family].get(name_of(step))
    if info is None:
        raise InputError(f"unknown {step.family} pass {step.name!r}{nearest(step.name, PASSES[step.family])}")
    if info.refused:
        raise InputError(f"{step.label} cannot be used: {info.refused}")
    return info


def name_of(step: Pass) -> str:
    """Return the pass's name, the family's default where `step` gives none."""
    return step.name or next(iter(PASSES[step.family]))


def options_of(step: Pass) -> Part:
    """Return the checked options of `step`. Raises InputError that names the first wrong one, and the nearest key."""
    info = find(step)
    try:
        return info.options.model_validate(step.options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            words = list(info.options.model_fields)
            known = nearest(key, words) if words else "; it has no options"
            raise InputError(f"{step.label}: unknown option {key!r}{known}") from None
        context = first.get("ctx", {})
        why = str(context.get("why") or context.get("error") or first["msg"])
        raise InputError(f"{step.label}: {key + ': ' if key else ''}{why[0].lower() + why[1:]}") from None


def misfit(steps: Sequence[Pass], model: AnyModel) -> tuple[int, str] | None:
    """Return the first of `steps` that cannot be applied to `model` where it stands, and why; None when all can.

    All that a plan can know: unknown names and options, order, and what does not fit the model's sizes.
    """
    states: dict[str, str] = {}  # state → the pass that left it
    for i, step in enumerate(steps):
        try:
            info, options = find(step), options_of(step)
        except InputError as error:
            return i, str(error)
        if info.level == "checkpoint" and any(find(before).level == "graph" for before in steps[:i]):
            return i, f"{step.label} changes the checkpoint and exports again, so it must come before passes on graphs"
        if clash := next((states[state] for state in info.not_after if state in states), None):
            return i, f"{step.label} cannot follow {clash}"
        if absent := next((state for state in info.needs if state not in states), None):
            return i, f"{step.label} needs a pass before it that leaves the model {STATES[absent]}"
        if why := _needs_llama(info, options) if isinstance(model, OwnModel) else info.fits(options, model):
            return i, f"{step.label} does not fit model {model.label}: {why}"
        states |= dict.fromkeys(info.leaves, step.label)
    return None


def _needs_llama(info: PassInfo, options: Part) -> str | None:
    """Return why a pass is for a Llama made here and for no other graph, None when it takes any."""
    why = "it changes a Llama's weights and exports it again" if info.level == "checkpoint" else info.llama(options)
    return why and f"it needs a Llama made here, and this is an ONNX file of its own: {why}"


def apply(step: Pass, source: Path, destination: Path, model: AnyModel, workload: Workload, state: Path) -> Effect:
    """Apply `step` to the model in the folder `source`, write the result into `destination`, say what it did.

    Both folders hold `model.onnx` and its external data; other files of the source are not copied, and the source is
    never changed. `model` is that of the sweep, `workload` one that the graph serves, `state` see :class:`Work`.
    Raises InputError for a pass or an option that the table lacks or refuses, WorkError when the pass fails, when
    weights are missing, or when the result is not a valid model with the inputs and outputs that it must have.
    """
    find(step)
    work = Work(name_of(step), options_of(step), source, destination, model, workload, state)
    destination.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    APPLY[step.family](work)
    return effect(source, destination, time.perf_counter() - started)
