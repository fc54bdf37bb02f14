"""One row of the tables, explained: everything that a sceptic asks of it, as facts. Pure; words are the report's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import polars as pl

from llama_bench.errors import InputError, nearest
from llama_bench.stats import answers, decision, executed, kernels, order, shape, slots, surroundings
from llama_bench.stats.bound import Bound
from llama_bench.stats.judged import Judged
from llama_bench.stats.ratios import MAIN

Row = Mapping[str, Any]

KEYS = ("target", "model", "workload", "recipe")
"""What names a row, in the order of the tables."""

LEFT_OUT = ("skipped", "unserved")
"""Verdicts of a cell's arms where the run left the whole cell out."""


@dataclass(frozen=True, slots=True)
class Name:
    """Which row it is; `baseline` is what it is compared with, `measured` is False in a cell that was left out."""

    cell: str
    target: str
    model: str
    workload: str
    recipe: str
    baseline: str
    verdict: str
    measured: bool = True

    @property
    def words(self) -> str:
        """The row as `--only` names it."""
        return ",".join(f"{key}={getattr(self, key)}" for key in KEYS)


@dataclass(frozen=True, slots=True)
class Drift:
    """Straight lines through time: of the arm's ratio and of what all arms (or the baseline) share.

    Over the blocks of a restart, and over restarts in their order. What all share cancels in the ratio.
    """

    ratio_by_block: slots.Slope | None
    ratio_by_restart: slots.Slope | None
    shared_by_block: slots.Slope | None
    baseline_by_restart: slots.Slope | None


@dataclass(frozen=True, slots=True)
class Lost:
    """A restart, build or answer of this arm that failed and is a row of `failures`."""

    restart: int | None
    stage: str | None
    kind: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Explained:
    """All facts about a row; None, or empty, is what was not measured or does not apply to its verdict."""

    name: Name
    decision: decision.Decision
    change: executed.Change | None
    restarts: tuple[slots.Restart, ...]
    spread: slots.Spread | None
    outlier: slots.Outlier | None
    lost: tuple[Lost, ...]
    order: order.Order | None
    drift: Drift
    seen: tuple[surroundings.Seen, ...]
    said: tuple[surroundings.Said, ...]
    processes: tuple[surroundings.Process, ...]
    answers: answers.Answers | None
    bound: Bound | None
    ceilings: bool
    gpu: kernels.GpuTime | None
    time_s: float | None
    times: shape.Shape | None
    baseline_times: shape.Shape | None


def names(judged: Judged) -> list[Name]:
    """Return all rows of a run, in the order of the tables."""
    found = []
    for cell in judged.known.cells:
        verdicts = judged.verdicts[cell["id"]]
        measured = any(verdict.word not in LEFT_OUT for verdict in verdicts.values())
        where = cell["id"], cell["target"], cell["model"], cell["workload"]
        found += [Name(*where, name, cell["baseline"], one.word, measured) for name, one in verdicts.items()]
    return found


def matching(rows: list[Name], wanted: Mapping[str, str]) -> list[Name]:
    """Return the rows whose columns (`KEYS`) match the patterns in `wanted`; a name that is there means itself alone.

    Rows of cells that the run left out count only where no others match. Raises InputError for a pattern that matches
    nothing, naming the nearest word, and where no row has all of them.
    """
    found = rows
    for key, pattern in wanted.items():
        words = list(dict.fromkeys(getattr(row, key) for row in rows))
        chosen = {pattern} if pattern in words else set(_matches(pattern, words))
        if not chosen:
            raise InputError(f"no {key} {pattern!r} in these results{nearest(pattern, words)}")
        found = [row for row in found if getattr(row, key) in chosen]
    found = [row for row in found if row.measured] or found
    if not found:
        said = ", ".join(f"{key}={pattern}" for key, pattern in wanted.items())
        raise InputError(f"no row of these results has {said} together")
    return found


def explain(judged: Judged, datasets: Mapping[str, pl.LazyFrame], name: Name) -> Explained:
    """Return the facts about one of :func:`names`; `datasets` are those that `judged` was made of."""
    cell = next(one for one in judged.known.cells if one["id"] == name.cell)
    known, key, recipe, base = judged.known, (name.cell, name.recipe), name.recipe, name.baseline
    why = decision.decide(judged, cell, recipe)
    of_cell = slots.of_cell(datasets["blocks"], name.cell)
    machines = surroundings.machines_of(datasets["machines"], name.cell)
    timings = shape.timings_of(datasets["timings"], name.cell, [recipe, base])
    compared = recipe != base and why.rule not in ("machines", "too fast", "no number", "A/A")
    pairs = slots.differences(of_cell, recipe, base) if compared else of_cell.clear().with_columns(y=pl.lit(0.0))
    restarts = slots.restarts(of_cell, recipe, base) if compared else ()
    main = [one for one in restarts if one.phase == MAIN]
    counted = slots.own_blocks(of_cell, recipe)
    return Explained(
        name=name,
        decision=why,
        change=executed.change(known.variants.get(key), known.variants.get((name.cell, base))),
        restarts=restarts,
        spread=slots.spread(pairs),
        outlier=_outlier(main),
        lost=tuple(_lost(judged, name)),
        order=order.order(of_cell, recipe, base) if compared else None,
        drift=_drift(of_cell, pairs, main, base),
        seen=(
            *surroundings.of_blocks(pairs if compared else counted, of_cell, base),
            *surroundings.of_restarts(machines, recipe, base, restarts),
        ),
        said=(
            *surroundings.words(counted, surroundings.WORDS_OF_BLOCK, "block"),
            *surroundings.words(machines.filter(pl.col("recipe") == recipe), surroundings.WORDS_OF_RESTART, "restart"),
        ),
        processes=surroundings.processes(machines, recipe, base),
        answers=answers.answers(
            known.accuracy.get(key, []), answers.generated(datasets["generations"], name.cell, recipe)
        ),
        bound=known.bounds.get(key),
        ceilings=not datasets["ceilings"].head(1).collect().is_empty(),
        gpu=kernels.of_arm(judged, datasets, cell, recipe),
        time_s=known.times.get(key, {}).get("time_s"),
        times=shape.shape(timings, machines, recipe),
        baseline_times=shape.shape(timings, machines, base) if recipe != base else None,
    )


def _matches(pattern: str, words: list[str]) -> Iterator[str]:
    for one in pattern.split("|"):
        yield from (word for word in words if fnmatchcase(word, one.strip()))


def _outlier(main: list[slots.Restart]) -> slots.Outlier | None:
    y = [one.y for one in main]
    found = slots.outlier(y)
    if found is None:
        return None
    at, p = found
    return slots.Outlier(main[at].restart, p, float(np.mean(y[:at] + y[at + 1 :])))


def _lost(judged: Judged, name: Name) -> Iterator[Lost]:
    """The failures that name this arm in this cell, or its artifact, and those of the cell that name no arm."""
    variant = judged.known.variants.get((name.cell, name.recipe), {}).get("variant")
    for row in judged.known.failures:
        here = row["cell"] == name.cell and row["recipe"] in (None, name.recipe)
        if here or (variant is not None and row["artifact"] == variant):
            message = " ".join(str(row["message"] or row["kind"] or "no message").split())
            yield Lost(row["restart"], row["stage"], row["kind"], message)


def _drift(of_cell: pl.DataFrame, pairs: pl.DataFrame, main: list[slots.Restart], base: str) -> Drift:
    shared, baseline = slots.shared(of_cell), slots.baseline_restarts(of_cell, base)
    replicate = [f"{restart}/{group}" for restart, group in zip(pairs["restart"], pairs["group"], strict=True)]
    return Drift(
        ratio_by_block=slots.slope(pairs["block"].to_list(), pairs["y"].to_list(), replicate),
        ratio_by_restart=slots.slope(range(len(main)), [one.y for one in main]),
        shared_by_block=slots.slope(shared["block"].to_list(), shared["log"].to_list(), shared["of"].to_list()),
        baseline_by_restart=slots.slope(range(len(baseline)), baseline),
    )
