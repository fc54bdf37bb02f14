"""From a sweep to a plan: artifacts to build (a DAG that shares prefixes) and cells to measure. Pure, no I/O."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llama_bench.sweep import CONTROL as CONTROL
from llama_bench.sweep import AnyModel, OwnModel, Recipe, Sweep, Target, Workload
from llama_bench.sweep_own import DERIVED

TORCH, ITSELF = "torch in fp32", "the file itself, not optimised"
"""What the arms of a cell are checked against, in words: of a Llama, and of an own model."""


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
    keeps the inputs, torch's outputs for them (of an own model, the file's), and the text to score with torch's logits.
    """

    id: str
    model: AnyModel
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
            "reference": ITSELF if isinstance(self.model, OwnModel) else TORCH,
            "hidden_size": None if isinstance(self.model, OwnModel) else self.model.hidden_size,
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

    model: AnyModel
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
    shared = [part for model in sweep.models for part in planner.measured(model)]
    measure = digest(sweep.measure.model_dump())
    cells = []
    for target_name, target in sweep.targets.items():
        target_spec = digest({target_name: target.model_dump()})
        for part in shared:
            cells.append(
                Cell(
                    _hash(_strings("cell", part.identity, target_spec, measure)),
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


class _Written(NamedTuple):
    """A part of the sweep as artifacts keep it, and the JSON of it that ids are made of.

    To write JSON is most of the work of a plan, so a part is written once for all the ids that it goes into.
    """

    spec: Any
    json: str


class _Planner:
    """Holds the artifacts found so far and the parts' specs, each written down once for thousands of variants."""

    def __init__(self, sweep: Sweep, versions: Mapping[str, str]) -> None:
        self.sweep = sweep
        self.versions = {stage: _json(version) for stage, version in versions.items()}
        self.artifacts: dict[str, Artifact] = {}
        self.text = _written(sweep.measure.text and sweep.measure.text.model_dump())
        self.workloads = {name: _written(workload.model_dump()) for name, workload in sweep.workloads.items()}
        self.graphs = {
            (name, cache): _graph(workload, cache)
            for name, workload in sweep.workloads.items()
            for cache in (False, True)
        }
        self.recipes = {name: _recipe(recipe) for name, recipe in sweep.recipes.items()}
        self.children: dict[tuple[str, str], str] = {}  # (parent, pass as it is written) → id

    def measured(self, model: AnyModel) -> list[_Measured]:
        """Plan the artifacts of `model`, and what is measured with each workload."""
        spec = (_own_written if isinstance(model, OwnModel) else _written)(model.model_dump(exclude={"name"}))
        return [self._measured(model, spec, workload_name) for workload_name in self.sweep.workloads]

    def _measured(self, model: AnyModel, spec: _Written, workload_name: str) -> _Measured:
        label, workload = model.label, self.workloads[workload_name]
        if isinstance(model, OwnModel):
            what, exported, text, stage = "as it is", _written(ANY.model_dump()), _written(None), "own "
        else:
            (what, exported), text, stage = self.graphs[workload_name, model.cache], self.text, ""
        export = self._root("export", f"export {label} {what}", stage, model=spec, workload=exported)
        reference = self._root(
            "reference", f"reference {label} {workload_name}", stage, model=spec, workload=workload, text=text
        )
        where = f"{label}/{workload_name}"
        arms = [
            Arm(name, recipe, self._variant(export, self.recipes[name].steps, where))
            for name, recipe in self.sweep.recipes.items()
        ]
        base = next(arm for arm in arms if arm.name == self.sweep.measure.baseline)
        identity = {
            "model": spec.json,
            "workload": _object({workload_name: workload.json}),
            "export": f'"{export}"',
            "reference": f'"{reference}"',
            "arms": _object({arm.name: _strings(arm.variant, self.recipes[arm.name].id) for arm in arms}),
        }
        control = Arm(CONTROL, base.recipe, base.variant, control=True)
        return _Measured(model, workload_name, reference, (*arms, control), _hash(_array(_object(identity))))

    def _root(self, kind: Literal["export", "reference"], label: str, stage: str, **parts: _Written) -> str:
        written = _object({key: part.json for key, part in parts.items()})
        name = _hash(_array(f'"{kind}"', written, self.versions.get(stage + kind, '""')))
        if name not in self.artifacts:
            self.artifacts[name] = Artifact(name, kind, None, {key: part.spec for key, part in parts.items()}, label)
        return name

    def _variant(self, export: str, steps: tuple[_Step, ...], where: str) -> str:
        """Return the id of the last of a recipe's artifacts; those that other recipes already made are shared."""
        parent = export
        for step in steps:
            key = (parent, step.label)
            if key not in self.children:
                name = _hash(_array(f'"{parent}"', step.json, self.versions.get(step.family, '""')))
                self.artifacts[name] = Artifact(name, "pass", parent, step.spec, f"{step.label} on {where}")
                self.children[key] = name
            parent = self.children[key]
        return parent


class _Step(NamedTuple):
    """A pass of a recipe: how YAML has it, its family, its spec, and the JSON of that."""

    label: str
    family: str
    spec: Mapping[str, Any]
    json: str


class _Recipe(NamedTuple):
    id: str
    steps: tuple[_Step, ...]


def _recipe(recipe: Recipe) -> _Recipe:
    spec = recipe.model_dump()
    steps = zip(recipe.passes, spec["passes"], strict=True)
    return _Recipe(digest(spec), tuple([_Step(step.label, step.family, *_written(said)) for step, said in steps]))


ANY = Workload(kind="prefill", sequence=1)
"""What stands for all workloads where a graph serves them all."""


def _graph(workload: Workload, cache: bool) -> tuple[str, _Written]:
    """Return what an export for `workload` is called, and its workload; with a cache it serves any kind and length."""
    if cache:
        workload = Workload(kind="prefill", sequence=1, outputs=workload.outputs)
    what = str(workload.outputs) if cache else f"{workload.kind} {workload.batch}x{workload.sequence}"
    return what, _written(workload.model_dump())


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


def _written(spec: Any) -> _Written:
    return _Written(spec, _json(_without_places(spec) if isinstance(spec, dict) else spec))


def _own_written(spec: dict[str, Any]) -> _Written:
    """Return an own model as it is written: its hash stands for the file and for all that follows from it.

    Its inputs may have any names, those of PLACES too.
    """
    return _Written(spec, _json({key: value for key, value in spec.items() if key not in ("onnx", *DERIVED)}))


def _without_places(spec: dict[str, Any]) -> dict[str, Any]:
    """Return `spec` without the keys that say where something lies."""
    return {
        key: _without_places(value) if isinstance(value, dict) else value
        for key, value in spec.items()
        if key not in PLACES
    }


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits that identify `parts` (what JSON can write, keys in any order; else TypeError)."""
    return _hash(_json(parts))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
"""What digests are made of. Below are its arrays and objects from members that are already written."""


def _array(*items: str) -> str:
    return f"[{','.join(items)}]"


def _object(members: Mapping[str, str]) -> str:
    """Return an object; nothing in its keys needs escaping."""
    return "{" + ",".join([f'"{key}":{members[key]}' for key in sorted(members)]) + "}"


def _strings(*items: str) -> str:
    """Return an array of strings; nothing in them needs escaping."""
    return '["' + '","'.join(items) + '"]'
