"""From a sweep to a plan: artifacts to build (a DAG that shares prefixes) and cells to measure. Pure, no I/O."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llama_bench.ids import (
    Written,
    as_json,
    digest,
    hashed,
    json_array,
    json_object,
    json_strings,
    own_written,
    written,
)
from llama_bench.sweep import CONTROL as CONTROL
from llama_bench.sweep import AnyModel, Chosen, Measure, OwnModel, Recipe, Sweep, Target, Workload

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
    measure: Measure

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
            "blocks": self.measure.blocks,
            "runs": self.measure.runs,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Artifacts by id, parents first, and the cells in the order in which they are measured."""

    sweep: Sweep
    artifacts: Mapping[str, Artifact]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the cells of one model and workload with the same recipes share on every target."""

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
    usual = digest(sweep.measure.model_dump())
    targets = {name: digest({name: target.model_dump()}) for name, target in sweep.targets.items()}
    cells = []
    for chosen in sweep.chosen():
        part = planner.measured(chosen)
        measure = usual if chosen.measure is sweep.measure else digest(chosen.measure.model_dump())
        cells.append(
            Cell(
                hashed(json_strings("cell", part.identity, targets[chosen.target], measure)),
                chosen.model,
                chosen.workload,
                sweep.workloads[chosen.workload],
                chosen.target,
                sweep.targets[chosen.target],
                part.arms,
                chosen.baseline,
                part.reference,
                chosen.measure,
            )
        )
    return Plan(sweep, planner.artifacts, tuple(cells))


class _Planner:
    """Holds the artifacts found so far and the parts' specs, each written down once for thousands of variants."""

    def __init__(self, sweep: Sweep, versions: Mapping[str, str]) -> None:
        self.sweep = sweep
        self.versions = {stage: as_json(version) for stage, version in versions.items()}
        self.artifacts: dict[str, Artifact] = {}
        self.text = written(sweep.measure.text and sweep.measure.text.model_dump())
        self.workloads = {name: written(workload.model_dump()) for name, workload in sweep.workloads.items()}
        self.graphs = {
            (name, cache): _graph(workload, cache)
            for name, workload in sweep.workloads.items()
            for cache in (False, True)
        }
        self.recipes = {name: _recipe(recipe) for name, recipe in sweep.recipes.items()}
        self.children: dict[tuple[str, str], str] = {}  # (parent, pass as it is written) → id
        self.models: dict[str, Written] = {}  # label → spec
        self.shared: dict[tuple[str, str, tuple[str, ...], str], _Measured] = {}

    def measured(self, chosen: Chosen) -> _Measured:
        """Plan what a cell measures, and its artifacts; cells that differ in their targets alone share it."""
        key = (chosen.model.label, chosen.workload, chosen.recipes, chosen.baseline)
        if key not in self.shared:
            self.shared[key] = self._measured(chosen.model, chosen.workload, chosen.recipes, chosen.baseline)
        return self.shared[key]

    def _spec(self, model: AnyModel) -> Written:
        if model.label not in self.models:
            write = own_written if isinstance(model, OwnModel) else written
            self.models[model.label] = write(model.model_dump(exclude={"name"}))
        return self.models[model.label]

    def _measured(self, model: AnyModel, workload_name: str, recipes: tuple[str, ...], baseline: str) -> _Measured:
        label, spec, workload = model.label, self._spec(model), self.workloads[workload_name]
        if isinstance(model, OwnModel):
            what, exported, text, stage = "as it is", written(ANY.model_dump()), written(None), "own "
        else:
            (what, exported), text, stage = self.graphs[workload_name, model.cache], self.text, ""
        export = self._root("export", f"export {label} {what}", stage, model=spec, workload=exported)
        reference = self._root(
            "reference", f"reference {label} {workload_name}", stage, model=spec, workload=workload, text=text
        )
        where = f"{label}/{workload_name}"
        arms = [
            Arm(name, self.sweep.recipes[name], self._variant(export, self.recipes[name].steps, where))
            for name in recipes
        ]
        base = next(arm for arm in arms if arm.name == baseline)
        identity = {
            "model": spec.json,
            "workload": json_object({workload_name: workload.json}),
            "export": f'"{export}"',
            "reference": f'"{reference}"',
            "arms": json_object({arm.name: json_strings(arm.variant, self.recipes[arm.name].id) for arm in arms}),
        }
        if baseline != self.sweep.measure.baseline:  # else it is among what `measure` says
            identity["baseline"] = f'"{baseline}"'
        control = Arm(CONTROL, base.recipe, base.variant, control=True)
        return _Measured(reference, (*arms, control), hashed(json_array(json_object(identity))))

    def _root(self, kind: Literal["export", "reference"], label: str, stage: str, **parts: Written) -> str:
        said = json_object({key: part.json for key, part in parts.items()})
        name = hashed(json_array(f'"{kind}"', said, self.versions.get(stage + kind, '""')))
        if name not in self.artifacts:
            self.artifacts[name] = Artifact(name, kind, None, {key: part.spec for key, part in parts.items()}, label)
        return name

    def _variant(self, export: str, steps: tuple[_Step, ...], where: str) -> str:
        """Return the id of the last of a recipe's artifacts; those that other recipes already made are shared."""
        parent = export
        for step in steps:
            key = (parent, step.label)
            if key not in self.children:
                name = hashed(json_array(f'"{parent}"', step.json, self.versions.get(step.family, '""')))
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
    return _Recipe(digest(spec), tuple([_Step(step.label, step.family, *written(said)) for step, said in steps]))


ANY = Workload(kind="prefill", sequence=1)
"""What stands for all workloads where a graph serves them all."""


def _graph(workload: Workload, cache: bool) -> tuple[str, Written]:
    """Return what an export for `workload` is called, and its workload; with a cache it serves any kind and length."""
    if cache:
        workload = Workload(kind="prefill", sequence=1, outputs=workload.outputs)
    what = str(workload.outputs) if cache else f"{workload.kind} {workload.batch}x{workload.sequence}"
    return what, written(workload.model_dump())


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
