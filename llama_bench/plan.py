"""From a sweep to a plan: artifacts to build (a DAG that shares prefixes) and cells to measure. Pure, no I/O."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from llama_bench.sweep import CONTROL as CONTROL
from llama_bench.sweep import Model, Recipe, Sweep, Target, Workload


@dataclass(frozen=True, slots=True)
class Artifact:
    """One thing to build: an export, one pass applied to its parent, or the reference that arms are checked against.

    `id` hashes everything that shapes the bytes: the spec, the parent's id and the versions of code and libraries;
    where a checkpoint or a text lies is not part of it, its hash is.
    """

    id: str
    kind: Literal["export", "pass", "reference"]
    parent: str | None
    spec: Mapping[str, Any]
    label: str


@dataclass(frozen=True, slots=True)
class Arm:
    """A recipe inside a cell; `control` is the baseline a second time under another name."""

    name: str
    recipe: Recipe
    variant: str
    control: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """model × workload × target; its arms are compared only inside it.

    `id` hashes what is timed and how; the model's name is not part of it. `reference` is the id of the artifact that
    keeps the inputs, torch's outputs for them, and the text to score with torch's logits.
    """

    id: str
    model: Model
    workload_name: str
    workload: Workload
    target_name: str
    target: Target
    arms: tuple[Arm, ...]
    baseline: str
    reference: str

    @property
    def label(self) -> str:
        """The cell in words: `h512-a4-l2/prefill/B`."""
        return f"{self.model.label}/{self.workload_name}/{self.target_name}"

    @property
    def entry(self) -> dict[str, Any]:
        """The cell as run.json keeps it, for those who read results."""
        return {
            "id": self.id,
            "model": self.model.label,
            "hidden_size": self.model.hidden_size,
            "workload": self.workload_name,
            "target": self.target_name,
            "tokens": self.workload.tokens,
            "kind": self.workload.kind,
            "batch": self.workload.batch,
            "given": self.workload.given,
            "arms": [arm.name for arm in self.arms],
            "baseline": self.baseline,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Artifacts by id, parents first, and the cells in the order in which they are measured."""

    sweep: Sweep
    artifacts: Mapping[str, Artifact]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the cells of one model and workload share on every target."""

    model: Model
    workload_name: str
    reference: str
    arms: tuple[Arm, ...]
    identity: str


def make(sweep: Sweep, versions: Mapping[str, str]) -> Plan:
    """Plan `sweep`: every artifact that its cells need, each once, and every cell with its arms.

    `versions` maps a stage (`export`, or a pass family) to what shapes its output besides the spec (library versions,
    a hash of our own code).
    """
    with _nothing_is_garbage():
        return _make(_Planner(sweep, versions))


def _make(planner: _Planner) -> Plan:
    sweep = planner.sweep
    shared = [planner.measured(model, workload_name) for model in sweep.models for workload_name in sweep.workloads]
    measure = digest(sweep.measure.model_dump())
    cells = []
    for target_name, target in sweep.targets.items():
        target_spec = digest({target_name: target.model_dump()})
        for part in shared:
            cells.append(
                Cell(
                    digest("cell", part.identity, target_spec, measure),
                    part.model,
                    part.workload_name,
                    sweep.workloads[part.workload_name],
                    target_name,
                    target,
                    part.arms,
                    sweep.measure.baseline,
                    part.reference,
                )
            )
    return Plan(sweep, planner.artifacts, tuple(cells))


class _Planner:
    """Holds the artifacts found so far and the parts' specs, each written down once for thousands of variants."""

    def __init__(self, sweep: Sweep, versions: Mapping[str, str]) -> None:
        self.sweep = sweep
        self.versions = versions
        self.artifacts: dict[str, Artifact] = {}
        self.workloads = {name: workload.model_dump() for name, workload in sweep.workloads.items()}
        self.recipes = {name: digest(recipe.model_dump()) for name, recipe in sweep.recipes.items()}
        self.children: dict[tuple[str, str], str] = {}  # (parent, pass as it is written) → id

    def measured(self, model: Model, workload_name: str) -> _Measured:
        spec = model.model_dump(exclude={"name"})
        export = self._export(model, spec, workload_name)
        reference = self._reference(model, spec, workload_name)
        where = f"{model.label}/{workload_name}"
        arms = [Arm(name, recipe, self._variant(export, recipe, where)) for name, recipe in self.sweep.recipes.items()]
        base = next(arm for arm in arms if arm.name == self.sweep.measure.baseline)
        identity = {
            "model": _without_places(spec),
            "workload": {workload_name: self.workloads[workload_name]},
            "export": export,
            "reference": reference,
            "arms": {arm.name: [arm.variant, self.recipes[arm.name]] for arm in arms},
        }
        control = Arm(CONTROL, base.recipe, base.variant, control=True)
        return _Measured(model, workload_name, reference, (*arms, control), digest(identity))

    def _export(self, model: Model, model_spec: Mapping[str, Any], workload_name: str) -> str:
        """Return the id of the graph; that of a model with a cache serves workloads of any kind and length."""
        workload = self.sweep.workloads[workload_name]
        if model.cache:
            workload = Workload(kind="prefill", sequence=1, outputs=workload.outputs)
        what = workload.outputs if model.cache else f"{workload.kind} {workload.batch}x{workload.sequence}"
        spec = {"model": model_spec, "workload": workload.model_dump()}
        return self._root("export", spec, f"export {model.label} {what}")

    def _reference(self, model: Model, model_spec: Mapping[str, Any], workload_name: str) -> str:
        text = self.sweep.measure.text
        spec = {"model": model_spec, "workload": self.workloads[workload_name], "text": text and text.model_dump()}
        return self._root("reference", spec, f"reference {model.label} {workload_name}")

    def _root(self, kind: Literal["export", "reference"], spec: Mapping[str, Any], label: str) -> str:
        name = digest(kind, _without_places(spec), self.versions.get(kind, ""))
        return self.artifacts.setdefault(name, Artifact(name, kind, None, spec, label)).id

    def _variant(self, export: str, recipe: Recipe, where: str) -> str:
        """Return the id of the last of `recipe`'s artifacts; those that other recipes already made are shared."""
        parent = export
        for step in recipe.passes:
            key = (parent, step.label)
            if key not in self.children:
                spec = step.model_dump()
                name = digest(parent, _without_places(spec), self.versions.get(step.family, ""))
                self.artifacts[name] = Artifact(name, "pass", parent, spec, f"{step.label} on {where}")
                self.children[key] = name
            parent = self.children[key]
        return parent


@contextmanager
def _nothing_is_garbage() -> Iterator[None]:
    """Do not look for garbage while a plan is made: all of its objects stay, and looking takes as long as making."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


PLACES = ("source", "file")
"""Keys of a sweep that say where something lies; beside each stands the hash of what lies there."""


def _without_places(spec: Any) -> Any:
    """Return `spec` without the keys that say where something lies."""
    if not isinstance(spec, dict):  # what pydantic dumps; asking for any Mapping takes ten times as long
        return spec
    return {key: _without_places(value) for key, value in spec.items() if key not in PLACES}


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits that identify `parts` (what JSON can write, keys in any order; else TypeError)."""
    text = _ENCODER.encode(parts)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
