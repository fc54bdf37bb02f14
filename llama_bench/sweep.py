"""What a sweep is: models × recipes × workloads × targets, and how to measure. Pure data, no I/O.

The classes here, in `sweep_model` and in `sweep_recipe` are the single place where a sweep's keys, types, defaults and
one-line meanings are written down; the JSON Schema for editors and the documentation are made from them. Reading
YAML with line numbers, includes and error messages is the work of :mod:`llama_bench.sweep_file`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from llama_bench.errors import nearest
from llama_bench.sweep_cells import Choice, matching
from llama_bench.sweep_model import Model, RopeScaling
from llama_bench.sweep_own import AnyModel, OwnInput, OwnModel
from llama_bench.sweep_part import Flag, Name, Part, Positive, Seed, refuse
from llama_bench.sweep_recipe import Pass, Recipe, Session

__all__ = [
    "CONTROL", "KEYS", "STORE_FOLDERS", "AccuracyBounds", "AnyModel", "Choice", "Chosen", "Kind", "Measure", "Model",
    "OwnInput", "OwnModel", "Pass", "Recipe", "RopeScaling", "Session", "Sweep", "Target", "Text", "Workload",
]  # fmt: skip

CONTROL = "control"
"""The arm that is the baseline a second time; no recipe may have its name."""

STORE_FOLDERS = ("artifacts", "weights")
"""Folders that every store has beside its sweeps; no sweep may have their names."""

Kind: TypeAlias = Literal["prefill", "decode", "generate"]


class Workload(Part):
    """What is run and what comes out.

    `prefill` and its `sequence`: all tokens of the prompts in one run. `decode` and its `context`: one step with a KV
    cache that holds so many tokens. `generate`, its `prompt` and `new_tokens`: greedy text generation, one run a text.
    """

    kind: Kind = Field("prefill", description="`prefill`, `decode` or `generate`.")
    batch: Positive = Field(1, description="Sequences a run.")
    sequence: Positive | None = Field(None, description="prefill: tokens a sequence.")
    context: Positive | None = Field(None, description="decode: tokens in the KV cache before the step.")
    prompt: Positive | None = Field(None, description="generate: tokens of each prompt.")
    new_tokens: Positive | None = Field(None, description="generate: tokens to make.")
    outputs: Literal["logits", "last_logits", "hidden"] | None = Field(
        None, description="Logits of all tokens or of the last (head: lm), or hidden states (head: none)."
    )
    kv_out: Flag = Field(True, description="prefill: the keys and values of every layer come out too.")

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Self:
        for key in ("sequence", "context", "prompt", "new_tokens"):
            given, needed = getattr(self, key) is not None, key in KEYS[self.kind]
            if needed and not given:
                raise refuse(f"missing key {key!r}: {self.kind} needs {' and '.join(KEYS[self.kind])}")
            if given and not needed:
                raise refuse(f"{key!r} is not for {self.kind}, which has {' and '.join(KEYS[self.kind])}", key)
        if self.outputs is None:
            object.__setattr__(self, "outputs", "logits" if self.kind == "prefill" else "last_logits")
        if self.kind != "prefill" and self.outputs != "last_logits":
            raise refuse(f"{self.kind} makes the next token, so its outputs are last_logits", "outputs")
        return self

    @property
    def given(self) -> int:
        """Tokens that each sequence is given: the prompt, or the context and the step's own token."""
        return self.sequence or self.prompt or (self.context or 0) + 1

    @property
    def longest(self) -> int:
        """Positions of each sequence that are in use at the end of a run."""
        return self.given + (self.new_tokens or 1) - 1

    @property
    def tokens(self) -> int:
        """Tokens that one run works through, or that it makes (decode: one, generate: all new ones) a sequence."""
        return self.batch * (self.sequence or self.new_tokens or 1)

    @property
    def head(self) -> str:
        """The `head` that a model needs for these outputs."""
        return "none" if self.outputs == "hidden" else "lm"


KEYS: dict[str, tuple[str, ...]] = {
    "prefill": ("sequence",),
    "decode": ("context",),
    "generate": ("prompt", "new_tokens"),
}
"""Kind of workload → the keys that say how long it is."""


class Target(Part):
    """A hardware configuration: the resource tag of the nodes that serve it, the provider, the threads."""

    tag: Name = Field(description="Ray resource of the nodes that serve this target: bench_cpu, bench_gpu, …")
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime's execution provider.")
    threads: Positive | None = Field(None, description="Intra-op threads; the node's physical cores when left out.")

    @property
    def needs_gpu(self) -> bool:
        """Whether a node must have a GPU to serve this target."""
        return self.provider != "CPUExecutionProvider"


class AccuracyBounds(Part):
    """How far an approximation may be from torch in fp32 before it is `wrong`; null leaves a bound out.

    Exact rewrites have tight bounds of their own (:mod:`llama_bench.bench.accuracy`) that no sweep loosens.
    """

    max_rel: float | None = Field(None, gt=0, description="Largest error of any output, relative to its largest value.")
    min_cosine: float | None = Field(0.99, gt=-1, le=1, description="Cosine between an output and its reference.")
    max_kl: float | None = Field(0.1, gt=0, description="Mean KL divergence of the next-token distribution, in nats.")
    min_top1: float | None = Field(0.9, gt=0, le=1, description="Share of tokens whose most likely successor agrees.")
    max_perplexity_increase: float | None = Field(None, gt=0, description="On text; 0.01 is 1 % above torch in fp32.")


class Text(Part):
    """The text on which every arm with a head answers for its accuracy, in windows through the timed session."""

    file: str | None = Field(None, description="A text file; the help texts that every Python carries when left out.")
    file_sha256: str | None = Field(None, description="Hash of the file; filled in when the sweep is read.")
    tokens: Positive = Field(512, description="Predictions that are scored, at least.")
    window: Positive | None = Field(None, description="Tokens a window; prefill: its sequence; else 128 at most.")
    stride: Positive | None = Field(None, description="Tokens from one window to the next; window − 1 when left out.")


class Measure(Part):
    """How much is measured, and against what."""

    baseline: Name = Field("original", description="The recipe that the others of a cell are compared with.")
    restarts: int = Field(6, ge=2, lt=2**31, strict=True, description="Pilot restarts: fresh processes of every arm.")
    blocks: Positive = Field(4, description="Blocks a restart; each times every arm once in random order.")
    runs: Positive = Field(5, description="Timed runs of an arm in a block.")
    half_width: float | None = Field(
        0.01, gt=0, lt=1, description="Wanted half-width of a speedup's interval (0.01 is 1 %); null: pilot only."
    )
    budget_s: float = Field(7200.0, gt=0, description="Seconds a cell may take; the pilot is measured in any case.")
    confirm: Flag = Field(True, description="A cell's fastest recipe is confirmed on as many fresh restarts again.")
    accuracy: AccuracyBounds = Field(AccuracyBounds(), description="Bounds of approximate recipes.")
    text: Text | None = Field(Text(), description="Text to score arms with a head on; null: none.")
    seed: Seed = Field(0, description="Seed of the order of the arms.")


class Chosen(NamedTuple):
    """A cell of a sweep: what is run where, its recipes in the sweep's order, the baseline, how much is measured."""

    model: AnyModel
    workload: str
    target: str
    recipes: tuple[str, ...]
    baseline: str
    measure: Measure


class Sweep(Part):
    """A whole sweep file after includes and defaults: every model spelled out."""

    name: Name = Field(description="Names the folder of its results in the store.")
    models: tuple[AnyModel, ...] = Field(min_length=1, description="Llamas by their sizes, or ONNX files.")
    recipes: dict[Name, Recipe] = Field(min_length=1, description="What is tried, by name; each an arm of every cell.")
    workloads: dict[Name, Workload] = Field(min_length=1, description="What is run, by name.")
    targets: dict[Name, Target] = Field(min_length=1, description="Hardware configurations, by name.")
    measure: Measure = Field(Measure(), description="How much is measured, and against what.")
    cells: tuple[Choice, ...] = Field(
        (), description="Which cells there are, in the order in which they are measured; all of them when left out."
    )

    def chosen(self) -> list[Chosen]:
        """Return the cells that the entries of `cells` name, in their order; without entries all, target by target."""
        if not self.cells:
            every, base = tuple(self.recipes), self.measure.baseline
            places = (
                (model, name, target) for target in self.targets for model in self.models for name in self.workloads
            )
            return [Chosen(*place, every, base, self.measure) for place in places]
        found: dict[tuple[str, str, str], Chosen] = {}
        models = {model.label: model for model in self.models}
        for choice in self.cells:
            base = choice.baseline or self.measure.baseline
            picked = {base, *matching(self.recipes, *choice.recipes)}
            recipes = tuple(name for name in self.recipes if name in picked)
            own = {key: value for key in ("blocks", "runs") if (value := getattr(choice, key)) is not None}
            measure = self.measure.model_copy(update=own) if own else self.measure
            named = itertools.product(
                matching(self.targets, choice.target),
                matching(models, choice.model),
                matching(self.workloads, choice.workload),
            )
            for target, label, workload in named:
                cell = Chosen(models[label], workload, target, recipes, base, measure)
                found.setdefault((target, label, workload), cell)
        return list(found.values())

    def baselines(self) -> set[str]:
        """Return the recipes that something is compared with."""
        return {choice.baseline or self.measure.baseline for choice in self.cells} or {self.measure.baseline}

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.name in STORE_FOLDERS:
            raise refuse(f"{self.name!r} is a folder of the store; give the sweep another name", "name")
        if CONTROL in self.recipes:
            raise refuse(
                f"{CONTROL!r} names the baseline's second arm; give the recipe another name", "recipes", CONTROL
            )
        baseline = self.measure.baseline
        if baseline not in self.recipes:
            why = f"the baseline {baseline!r} is not a recipe of this sweep{nearest(baseline, self.recipes)}"
            raise refuse(why, "measure", "baseline")
        self._models_differ()
        self._cells_are_here()
        if not self.cells:
            self._workloads_fit(self.models, self.workloads)
        for cell in self.chosen() if self.cells else ():
            self._workloads_fit([cell.model], {cell.workload: self.workloads[cell.workload]})
        return self

    def _cells_are_here(self) -> None:
        """Refuse an entry of `cells` with a pattern that nothing matches, or a baseline that is no recipe."""
        labels = [model.label for model in self.models]
        for i, choice in enumerate(self.cells):
            patterns = (("model", choice.model, labels), ("workload", choice.workload, self.workloads))
            for key, pattern, names in (*patterns, ("target", choice.target, self.targets)):
                if not matching(names, pattern):
                    raise refuse(f"no {key} matches {pattern!r}{nearest(pattern, names)}", "cells", i, key)
            for k, pattern in enumerate(choice.recipes):
                if not matching(self.recipes, pattern):
                    raise refuse(
                        f"no recipe matches {pattern!r}{nearest(pattern, self.recipes)}", "cells", i, "recipes", k
                    )
            if choice.baseline is not None and choice.baseline not in self.recipes:
                why = f"the baseline {choice.baseline!r} is not a recipe of this sweep"
                raise refuse(f"{why}{nearest(choice.baseline, self.recipes)}", "cells", i, "baseline")

    def _models_differ(self) -> None:
        labels: dict[str, int] = {}
        specs: dict[str, int] = {}
        for i, model in enumerate(self.models):
            first = labels.setdefault(model.label, i)
            if first != i:
                why = f"the models {first} and {i} (counted from 0) are both called {model.label!r}; give one a name"
                raise refuse(why, "models", i)
            first = specs.setdefault(model.model_dump_json(exclude={"name"}), i)
            if first != i:
                why = f"the models {self.models[first].label!r} and {model.label!r} differ in nothing but their names"
                raise refuse(why, "models", i)

    def _workloads_fit(self, models: Sequence[AnyModel], workloads: Mapping[str, Workload]) -> None:
        """Refuse a workload that one of `models`, each of which is run with each of them, cannot be run with."""
        own = next((model for model in models if isinstance(model, OwnModel)), None)
        llamas = [model for model in models if isinstance(model, Model)]
        for name, workload in workloads.items():
            if own is not None and workload.kind != "prefill":
                why = f"{workload.kind} goes through a KV cache step by step, and model {own.label} is an ONNX file"
                raise refuse(f"{why} that is run once: kind: prefill", "workloads", name, "kind")
        if not llamas:
            return
        shortest = min(llamas, key=lambda model: model.max_position_embeddings)
        heads = {model.head: model for model in reversed(llamas)}  # the first model of each kind is named
        for name, workload in workloads.items():
            if workload.longest > shortest.max_position_embeddings:
                what, key = f"{workload.kind} of {workload.longest} tokens", KEYS[workload.kind][-1]
                what = f"sequence {workload.longest}" if key == "sequence" else what
                why = f"{what} is longer than max_position_embeddings {shortest.max_position_embeddings}"
                raise refuse(f"{why} of model {shortest.label}", "workloads", name, key)
            uncached = next((model for model in llamas if not model.cache), None)
            if workload.kind != "prefill" and uncached is not None:
                why = f"{workload.kind} needs models with cache: true, and model {uncached.label} has none"
                raise refuse(why, "workloads", name, "kind")
            for head, model in heads.items():
                if head != workload.head:
                    why = (
                        f"outputs {workload.outputs!r} needs models with head: {workload.head}, "
                        f"and model {model.label} has head: {head}"
                    )
                    raise refuse(why, "workloads", name, "outputs")
