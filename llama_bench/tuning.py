"""The search for the fastest recipe within a bound on accuracy: its space, its stages, what it chooses. Pure, no I/O.

The space is a few axes with a few choices each. Everything in it is far too much to measure well, and most of it is
not worth it: a *screen* times every choice alone with few restarts, *combine* joins the best choices of each axis,
*final* measures the fastest of these longer, *confirm* times the winner and the best single choice on fresh restarts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from llama_bench.sweep import AccuracyBounds, Measure, Model, Pass, Recipe, Sweep, Target, Text, Workload

Choice = Mapping[str, str]
"""Axis → the choice made on it; an axis that is not named is left as the original has it."""

Misfit = Callable[[Sequence[Pass], Model], tuple[int, str] | None]

AXES: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "graph": {
        "fuse": ({"fuse": "all"},),
        "onnxscript": ({"onnxscript": "optimize_for_ort"},),
    },
    "cache": {
        "kv8": ({"quantize": {"name": "kv_cache", "bits": 8}},),
    },
    "numbers": {
        "fp16": ({"precision": "fp16"},),
        "int8": ({"quantize": "dynamic"},),
        "int8-smooth": ({"quantize": {"name": "dynamic", "smooth": 0.5}},),
        "w8-b32": ({"quantize": {"bits": 8, "block_size": 32}},),
        "int4-b32": ({"quantize": {"bits": 4, "block_size": 32}},),
        "int4-b64": ({"quantize": {"bits": 4, "block_size": 64}},),
        "int4-b32-k": ({"quantize": {"bits": 4, "block_size": 32, "method": "k_quant"}},),
        "int4-b32-gptq": ({"quantize": {"bits": 4, "block_size": 32, "method": "gptq"}},),
        "int4-b32-offsets": ({"quantize": {"bits": 4, "block_size": 32, "method": "offsets", "head_bits": 8}},),
    },
}
"""Axis → choice → its passes; the axes are in the order in which their passes are applied."""

ORIGINAL = "original"

_LONG = Measure(restarts=6, blocks=3, runs=5, half_width=0.01, budget_s=300, confirm=False, text=Text(tokens=1024))

STAGES: dict[str, Measure] = {
    "screen": Measure(restarts=2, blocks=2, runs=3, half_width=None, confirm=False, text=Text(tokens=256)),
    "combine": Measure(restarts=3, blocks=2, runs=5, half_width=None, confirm=False, text=Text(tokens=512)),
    "final": _LONG,
    "confirm": _LONG.model_copy(update={"text": None, "seed": 1}),  # what it says of a text is known by then
}
"""Stage → how much is measured in it; each is a run of its own, so that a confirmation has restarts of its own."""

SLACK: dict[str, float] = {"screen": 2.0, "combine": 2.0, "final": 1.0, "confirm": 1.0}
"""Stage → how many times the bound on perplexity is still taken: a few hundred tokens do not tell it to a percent."""

BEST_OF_AXIS = 2  # choices of an axis that are combined
FINALISTS = 3
UNACCEPTABLE = frozenset({"wrong", "failed", "skipped", "unserved", "void"})


@dataclass(frozen=True, slots=True)
class Scored:
    """What a stage found for a recipe: its speedup and interval, its verdict, and by how much perplexity rose.

    `perplexity_increase` is a share (0.01 is 1 %), None where no text was scored; `exact` recipes need none.
    """

    recipe: str
    speedup: float | None
    low: float | None
    high: float | None
    verdict: str
    perplexity_increase: float | None
    exact: bool = False


def space(model: Model, misfit: Misfit, axes: Mapping[str, Mapping[str, Any]] = AXES) -> dict[str, Choice]:
    """Return every combination of choices that can be applied to `model`, by its name, the original not among them."""
    options = [(axis, [None, *choices]) for axis, choices in axes.items()]
    found: dict[str, Choice] = {}
    for picked in product(*(choices for _, choices in options)):
        choice = {axis: one for (axis, _), one in zip(options, picked, strict=True) if one is not None}
        if choice and misfit(recipe(choice, axes).passes, model) is None:
            found[name(choice)] = choice
    return found


def name(choice: Choice) -> str:
    """Return the recipe's name: its choices, joined."""
    return "+".join(choice.values())


def recipe(choice: Choice, axes: Mapping[str, Mapping[str, Any]] = AXES) -> Recipe:
    """Return the recipe of a combination: the passes of its choices in the order of the axes."""
    passes = [step for axis, choices in axes.items() if axis in choice for step in choices[choice[axis]]]
    return Recipe.model_validate({"passes": passes})


def screen(everything: Mapping[str, Choice]) -> list[str]:
    """Return the recipes of the first stage: every choice alone, or the smallest combination that it can be in."""
    smallest: dict[tuple[str, str], str] = {}
    for found, choice in sorted(everything.items(), key=lambda item: len(item[1])):
        for part in choice.items():
            smallest.setdefault(part, found)
    return list(dict.fromkeys(smallest.values()))


def combine(everything: Mapping[str, Choice], screened: Sequence[Scored], most_increase: float) -> list[str]:
    """Return the recipes of the second stage: all combinations of the best choices of each axis, and the best alone.

    `most_increase` is the search's bound, taken with the slack of the screen. A choice is as good as the fastest
    acceptable recipe of the screen that has it; those that made nothing faster are left out, and at most
    :data:`BEST_OF_AXIS` of an axis are taken.
    """
    most_increase *= SLACK["screen"]
    fit = {one.recipe: one.speedup or 0.0 for one in screened if acceptable(one, most_increase)}
    worth: dict[tuple[str, str], float] = {}
    for found, speedup in fit.items():
        for part in everything[found].items():
            worth[part] = max(worth.get(part, 0.0), speedup)
    best: set[tuple[str, str]] = set()
    for axis in {axis for axis, _ in worth}:
        ranked = sorted((part for part in worth if part[0] == axis), key=lambda part: -worth[part])
        best |= {part for part in ranked[:BEST_OF_AXIS] if worth[part] > 1.0}
    chosen = [found for found, choice in everything.items() if set(choice.items()) <= best]
    single = best_single(everything, screened, most_increase)
    return list(dict.fromkeys([*chosen, *([single] if single else [])]))


def finalists(scored: Sequence[Scored], everything: Mapping[str, Choice], most_increase: float) -> list[str]:
    """Return the recipes of the third stage: the fastest acceptable ones of the second, and its best single choice.

    Those within the slack may turn out to be outside the bound on a longer text, so the fastest recipe and the fastest
    single choice that are within it without slack go along.
    """
    loose = most_increase * SLACK["combine"]
    fit = [one.recipe for one in _fastest_first(scored, loose)][:FINALISTS]
    safe = (winner(scored, most_increase), *(best_single(everything, scored, most) for most in (loose, most_increase)))
    return list(dict.fromkeys([*fit, *(name for name in safe if name)]))


def best_single(everything: Mapping[str, Choice], scored: Sequence[Scored], most_increase: float) -> str | None:
    """Return the fastest acceptable recipe that is one choice alone, None where none is faster than the original."""
    singles = [one for one in scored if len(everything[one.recipe]) == 1]
    return next((one.recipe for one in _fastest_first(singles, most_increase)), None)


def winner(scored: Sequence[Scored], most_increase: float) -> str | None:
    """Return the fastest acceptable recipe, None where none is faster than the original."""
    return next((one.recipe for one in _fastest_first(scored, most_increase)), None)


def _fastest_first(scored: Sequence[Scored], most_increase: float) -> list[Scored]:
    """Return what is acceptable and, as far as is known, faster than the original."""
    fit = [one for one in scored if acceptable(one, most_increase) and (one.speedup or 0.0) > 1.0]
    return sorted(fit, key=lambda one: -(one.speedup or 0.0))


def acceptable(one: Scored, most_increase: float) -> bool:
    """Whether a recipe has a number, a right answer, and a perplexity within the bound (exact ones need none)."""
    if one.verdict in UNACCEPTABLE or one.speedup is None or not math.isfinite(one.speedup):
        return False
    return one.exact or (one.perplexity_increase is not None and one.perplexity_increase <= most_increase)


def beats(one: Scored, other: Scored) -> bool:
    """Whether `one` is faster than `other` outside both intervals."""
    return one.low is not None and other.high is not None and one.low > other.high


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched: a model, a workload and a target by their names, and the bound on perplexity.

    `text_file` replaces the default text: the keys `file` and `file_sha256` of a sweep's `measure: text`.
    """

    model: Model
    workload: tuple[str, Workload]
    target: tuple[str, Target]
    most_increase: float
    text_file: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """Names the search's runs: `tune-SmolLM2-decode-cpu`."""
        return f"tune-{self.model.label}-{self.workload[0]}-{self.target[0]}"

    def stage(self, title: str, recipes: Mapping[str, Recipe], measure: Measure) -> Sweep:
        """Return the sweep of a stage; `recipes` are those besides the original."""
        most = self.most_increase * SLACK[title]
        bounds = AccuracyBounds(min_cosine=None, max_kl=None, min_top1=None, max_perplexity_increase=most)
        text = measure.text and measure.text.model_copy(update=dict(self.text_file or {}))
        return Sweep(
            name=f"{self.name}-{list(STAGES).index(title) + 1}-{title}",
            models=(self.model,),
            recipes={ORIGINAL: Recipe(), **recipes},
            workloads=dict([self.workload]),
            targets=dict([self.target]),
            measure=measure.model_copy(update={"accuracy": bounds, "text": text}),
        )


@dataclass(frozen=True, slots=True)
class Saving:
    """What the search cost, and what measuring every recipe of the space as long as the finalists would have cost."""

    measured: int
    possible: int
    spent_s: float
    everything_s: float

    @property
    def share(self) -> float:
        """The share of the time of trying everything that was saved; negative when the search cost more."""
        return 1 - self.spent_s / self.everything_s if self.everything_s else 0.0


def saving(measured: int, possible: int, spent_s: float, final_s: float, final_arms: int) -> Saving:
    """Estimate the saving: every recipe would take the mean seconds of an arm of the stage `final`."""
    return Saving(measured, possible, spent_s, possible * final_s / max(1, final_arms))
