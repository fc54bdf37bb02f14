"""The search for the fastest recipe, stage by stage. Every stage is a run like any other, so it is resumed like one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llama_bench import tuning
from llama_bench.cluster import driver
from llama_bench.cluster.events import Event, OnEvent
from llama_bench.errors import WorkError
from llama_bench.passes import misfit
from llama_bench.stats import views
from llama_bench.store import Store
from llama_bench.sweep import Measure
from llama_bench.tuning import Choice, Saving, Scored, Search


@dataclass(slots=True)
class Outcome:
    """How a search ended: the runs of its stages, what each found, the winner and the best single choice.

    `winner` is None when nothing acceptable is faster than the original. `confirmed` has what the fresh restarts say
    of the winner and of the best single choice.
    """

    runs: dict[str, str] = field(default_factory=dict)
    scored: dict[str, list[Scored]] = field(default_factory=dict)
    winner: str | None = None
    single: str | None = None
    confirmed: dict[str, Scored] = field(default_factory=dict)
    variant: str | None = None
    saving: Saving | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def beats_single(self) -> bool:
        """Whether the winner is faster than the best single choice outside both intervals, on fresh restarts."""
        pair = [self.confirmed.get(name or "") for name in (self.winner, self.single)]
        return self.winner != self.single and all(pair) and tuning.beats(*pair)  # type: ignore[arg-type]


def tune(
    search: Search,
    store: Store,
    *,
    on_event: OnEvent = lambda event: None,
    stages: Mapping[str, Measure] = tuning.STAGES,
    axes: Mapping[str, Mapping[str, Any]] = tuning.AXES,
) -> Outcome:
    """Search the space for `search`, going on where an earlier call stopped. Raises WorkError when nothing is measured.

    `stages` say how much is measured in each, `axes` what is tried.
    """
    outcome = Outcome()
    everything = tuning.space(search.model, misfit, axes)
    most = search.most_increase

    def measured(title: str, names: list[str]) -> list[Scored]:
        recipes = {name: tuning.recipe(everything[name], axes) for name in names}
        on_event(Event("note", "tune", detail=f"{title}: {len(names)} of {len(everything)} recipes"))
        result = driver.run(search.stage(title, recipes, stages[title]), store, on_event=on_event)
        if result.unserved:
            raise WorkError(f"target {search.target[0]}: {result.unserved[search.target[0]]}")
        outcome.runs[title] = result.run
        outcome.failures += [failure for failure in result.failures if failure not in outcome.failures]
        outcome.scored[title] = read(store, result.run, everything)
        return outcome.scored[title]

    screened = measured("screen", tuning.screen(everything))
    combined = measured("combine", tuning.combine(everything, screened, most))
    last = tuning.finalists(combined, everything, most)
    if last:
        final = measured("final", last)
        outcome.winner = tuning.winner(final, most)
        outcome.single = tuning.best_single(everything, final, most)
    if outcome.winner is not None:
        names = list(dict.fromkeys(name for name in (outcome.winner, outcome.single) if name))
        outcome.confirmed = {one.recipe: one for one in measured("confirm", names)}
        outcome.variant = _variant(store, outcome.runs["final"], outcome.winner)
    outcome.saving = _saving(store, outcome, everything)
    return outcome


def read(store: Store, run: str, everything: Mapping[str, Choice]) -> list[Scored]:
    """Return what `run` found for each recipe of the space."""
    frames = views.load(store.url(run))
    rows = frames.speedups.collect().to_dicts()
    text = frames.accuracy.filter(pl.col("output") == "text").collect().to_dicts()
    increases = {row["recipe"]: row["perplexity"] / row["reference_perplexity"] - 1 for row in text}
    classes = {row["recipe"]: row["class"] for row in frames.variants.collect().to_dicts()}
    return [
        Scored(
            recipe=row["recipe"],
            speedup=row["speedup"],
            low=row["low"],
            high=row["high"],
            verdict=row["verdict"],
            perplexity_increase=increases.get(row["recipe"]),
            exact=classes.get(row["recipe"]) == "exact",
        )
        for row in rows
        if row["recipe"] in everything
    ]


def _variant(store: Store, run: str, recipe: str) -> str:
    rows = views.load(store.url(run)).variants.filter(pl.col("recipe") == recipe).collect()
    return str(rows["variant"][0])


def _saving(store: Store, outcome: Outcome, everything: Mapping[str, Choice]) -> Saving:
    """Add up what the stages took, and estimate what measuring every recipe like a finalist would have."""
    spent = {title: _wall_s(store, run) for title, run in outcome.runs.items()}
    tried = {one.recipe for scored in outcome.scored.values() for one in scored}
    longest = "final" if "final" in spent else "combine"
    arms = len(outcome.scored[longest]) + 2  # the original and its control
    return tuning.saving(len(tried), len(everything), sum(spent.values()), spent[longest], arms)


def _wall_s(store: Store, run: str) -> float:
    pieces = views.load(store.url(run)).pieces.select(pl.col("wall_s").sum()).collect()
    return float(pieces["wall_s"][0] or 0.0)
