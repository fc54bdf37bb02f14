"""How right an arm's answers are, metric by metric: the worst of all restarts, its bound and the margin to it. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.bench import accuracy, text
from llama_bench.stats.accuracy import increase
from llama_bench.stats.ratios import name_arms

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One metric of one output, at its worst over `restarts`; `bound` None: recorded, and never judged.

    `margin` is how many times further off it might be: bound / worst, or for what is bounded from below (1 − bound) /
    (1 − worst). Below 1 it is outside; None without a bound, infinite where nothing is lost.
    """

    output: str
    metric: str
    worst: float
    bound: float | None
    least: bool
    margin: float | None
    restarts: int


@dataclass(frozen=True, slots=True)
class Text:
    """What an arm generated: tokens that agree with torch's from the first one on, of how many, in how many texts."""

    sequences: int
    tokens: int
    agreed: int


@dataclass(frozen=True, slots=True)
class Answers:
    """An arm's answers. `violated` are the sentences about bounds that it is outside of, each once.

    `within` says whether all that was judged was inside; None where nothing was judged.
    """

    kind: str | None
    found: tuple[Answer, ...]
    within: bool | None
    violated: tuple[str, ...]
    text: Text | None
    nonfinite: int


LIMITS = {text.TEXT: text.LIMITS}
"""Output → its limits, where they are not those of :data:`llama_bench.bench.accuracy.LIMITS`."""


def answers(rows: Sequence[Row], generations: pl.DataFrame) -> Answers | None:
    """Return what `rows` (an arm's of the dataset `accuracy`) and its `generations` say; None where it never answered.

    Outputs that are keys and values are taken together as `present.*`.
    """
    if not rows:
        return None
    outputs: dict[str, list[Row]] = {}
    for row in rows:
        cached = str(row["output"]).startswith(accuracy.CACHE)
        outputs.setdefault(f"{accuracy.CACHE}*" if cached else str(row["output"]), []).append(row)
    made = generations.to_dicts()
    judged = [row["within_bound"] for row in rows if row["within_bound"] is not None]
    return Answers(
        kind=rows[0]["class"],
        found=tuple(one for output, of_it in outputs.items() for one in _of_output(output, of_it)),
        within=all(judged) if judged else None,
        violated=tuple(dict.fromkeys(str(row["violated"]) for row in rows if row["violated"])),
        text=Text(len(made), sum(len(row["tokens"] or ()) for row in made), sum(row["agreed"] or 0 for row in made))
        if made
        else None,
        nonfinite=sum(row["nonfinite"] or 0 for row in rows),
    )


def generated(generations: pl.LazyFrame, cell: str, arm: str) -> pl.DataFrame:
    """Return the arm's rows of the dataset `generations`."""
    return name_arms(generations.filter(pl.col("cell") == cell)).filter(pl.col("recipe") == arm).collect()


def _of_output(output: str, rows: Sequence[Row]) -> Iterator[Answer]:
    for words, value, bound, _ in LIMITS.get(output, accuracy.LIMITS):
        least = bound.startswith("min_")
        known = [(found, row) for row in rows if (found := _value(row, value)) is not None]
        if not known:
            continue
        worst, row = (min if least else max)(known, key=lambda one: one[0])
        allowed = _bound(row, bound)
        yield Answer(
            output=output,
            metric=words,
            worst=worst,
            bound=allowed,
            least=least,
            margin=None if allowed is None else _margin(worst, allowed, least),
            restarts=len({row["restart"] for _, row in known}),
        )


def _value(row: Row, value: str) -> float | None:
    return increase(row) if value == "increase" else row.get(value)


def _bound(row: Row, bound: str) -> float | None:
    """The bound of a metric; rows of schema version 1 have that of the relative error alone.

    Tokens that must be torch's, all of them, must agree at every position.
    """
    if row.get("bounds"):
        bounds = json.loads(row["bounds"])
        if row["output"] == accuracy.TOKENS:
            return 1.0 if bounds.get("same_tokens") else None
        found: float | None = bounds.get(bound)
        return found
    return row.get("bound") if bound == "max_rel" else None


def _margin(worst: float, bound: float, least: bool) -> float:
    lost, allowed = (1 - worst, 1 - bound) if least else (worst, bound)
    return math.inf if lost <= 0 else allowed / lost
