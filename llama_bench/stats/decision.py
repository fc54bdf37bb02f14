"""Why an arm has the verdict it has: the rule that led there, and every number that the rule went by. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from llama_bench.stats import cells
from llama_bench.stats.controls import AATest
from llama_bench.stats.headline import Headline
from llama_bench.stats.judged import Judged
from llama_bench.stats.ratios import LEVEL, Estimate, stein_total, t_quantile
from llama_bench.stats.verdicts import EQUIVALENCE_LEVEL, Q, Verdict, benjamini_hochberg, estimated, family, margin_of

Row = Mapping[str, Any]

Rule: TypeAlias = Literal[
    "baseline", "control", "no-op", "wrong", "no number", "no interval", "machines", "too fast", "A/A", "discovery",
    "margin", "neither",
]  # fmt: skip
"""What led to a verdict. `no number`: unserved, skipped or failed; `no interval`: inconclusive without a ratio that
could be tested; `machines`, `too fast` and `A/A` void; `discovery`: faster or slower; `margin`: equivalent; `neither`:
inconclusive with an interval."""


@dataclass(frozen=True, slots=True)
class Member:
    """An arm of its cell's family, with the p-value it has and the one that its rank allows (Benjamini–Hochberg)."""

    recipe: str
    p: float
    rank: int
    allowed: float
    rejected: bool


@dataclass(frozen=True, slots=True)
class Tested:
    """The numbers of an arm that was compared. `mean` and `sd` are of y = ln(arm / baseline), one a restart.

    `standard_error` has the A/A pairs' `inflation` in it. `width` is how often its interval fits between the estimate
    and no difference: above 1 the interval leaves no difference out.
    """

    speedup: float
    low: float
    high: float
    level: float
    mean: float
    sd: float
    df: int
    restarts: int
    inflation: float
    standard_error: float
    t: float
    p: float
    width: float
    smallest_effect: float
    margin: float
    margin_low: float
    margin_high: float


@dataclass(frozen=True, slots=True)
class More:
    """How many restarts in all would change what is said, None where none would; `wanted` is the sweep's half-width.

    `half_width` is the 95 % one that was reached, as Stein's second stage counts it: without the inflation. `to_differ`
    and `to_equal` take mean and spread as they are.
    """

    half_width: float
    wanted: float | None
    to_wanted: int | None
    to_differ: int | None
    to_equal: int | None


@dataclass(frozen=True, slots=True)
class Pair:
    """A control or a no-op of the cell: the baseline again, and what it seems to gain."""

    recipe: str
    speedup: float
    low: float
    high: float
    restarts: int


@dataclass(frozen=True, slots=True)
class Decision:
    """An arm's verdict, the rule behind it, and its numbers; None for what has no place in this rule.

    `family` are the arms of the cell that were tested together, the smallest p-value first; `pairs` the cell's own A/A
    pairs, `aa` the test over all of the target's.
    """

    rule: Rule
    word: str
    evidence: str
    baseline: str
    pilot: int
    ended_by: str | None
    tested: Tested | None
    more: More | None
    family: tuple[Member, ...]
    pairs: tuple[Pair, ...]
    aa: AATest
    headline: Headline | None


def decide(judged: Judged, cell: Row, name: str) -> Decision:
    """Return why the arm `name` of `cell` (an entry of run.json) has its verdict."""
    known, verdict, test = judged.known, judged.verdicts[cell["id"]][name], judged.tests[cell["target"]]
    arms, pilot = judged.comparisons[cell["id"]], known.sweep.measure.restarts
    estimates, _ = estimated(arms, pilot, test.inflation)
    shown = verdict.speedup is not None and name in estimates
    found = estimates[name] if shown else None
    margin = margin_of(known.sweep.targets[cell["target"]].provider)
    row = cells.table(judged).filter(cell=cell["id"]).to_dicts()[0]
    headline = judged.headlines.get(cell["id"])
    return Decision(
        rule=_rule(judged, cell, name, verdict),
        word=verdict.word,
        evidence=verdict.evidence,
        baseline=cell["baseline"],
        pilot=pilot,
        ended_by=row["ended_by"],
        tested=_tested(found, verdict, margin) if found else None,
        more=_more(found, verdict, margin, known.sweep.measure.half_width, arms[name].y[:pilot]) if found else None,
        family=_family(estimates, family(arms, estimates)) if not test.void else (),
        pairs=tuple(
            _pair(one, estimates[one])
            for one, arm in arms.items()
            if one in estimates and (arm.control or arm.no_op is not None)
        ),
        aa=test,
        headline=headline if headline and headline.recipe == name else None,
    )


def _rule(judged: Judged, cell: Row, name: str, verdict: Verdict) -> Rule:
    """The rule behind a verdict: most are named by its word."""
    simple: dict[str, Rule] = {
        "baseline": "baseline", "control": "control", "no-op": "no-op", "wrong": "wrong", "unserved": "no number",
        "skipped": "no number", "failed": "no number", "faster": "discovery", "slower": "discovery",
        "equivalent": "margin",
    }  # fmt: skip
    if verdict.word in simple:
        return simple[verdict.word]
    if verdict.word == "inconclusive":
        return "no interval" if verdict.speedup is None else "neither"
    if judged.known.problem(cell, name) is None:
        return "A/A"
    return "machines" if cell["id"] in judged.known.machines else "too fast"


def _tested(found: Estimate, verdict: Verdict, margin: float) -> Tested:
    level = verdict.level or LEVEL
    low, high = verdict.interval or found.speedup_interval(level)
    inside = found.speedup_interval(EQUIVALENCE_LEVEL)
    t = found.mean / found.standard_error
    return Tested(
        speedup=found.speedup,
        low=low,
        high=high,
        level=level,
        mean=found.mean,
        sd=found.sd,
        df=round(found.df),
        restarts=found.restarts,
        inflation=found.inflation,
        standard_error=found.standard_error,
        t=t,
        p=found.p_value(),
        width=abs(t) / t_quantile(0.5 + level / 2, found.df),
        smallest_effect=found.smallest_effect(level),
        margin=margin,
        margin_low=inside[0],
        margin_high=inside[1],
    )


def _more(found: Estimate, verdict: Verdict, margin: float, wanted: float | None, pilot: tuple[float, ...]) -> More:
    """Restarts that would change the verdict, n = (t · inflation · sd / distance)², as Stein (1945) has it."""
    reach = t_quantile(0.5 + LEVEL / 2, found.df) * found.sd / math.sqrt(found.restarts)
    return More(
        half_width=reach,
        wanted=wanted,
        to_wanted=None if wanted is None else stein_total(pilot, wanted),
        to_differ=_restarts(found, verdict.level or LEVEL, abs(found.mean)),
        to_equal=_restarts(found, EQUIVALENCE_LEVEL, math.log1p(margin) - abs(found.mean)),
    )


def _restarts(found: Estimate, level: float, distance: float) -> int | None:
    """Restarts after which the interval at `level` reaches no further than `distance` from the mean."""
    if distance <= 0:
        return None
    one = t_quantile(0.5 + level / 2, found.df) * found.inflation * found.sd
    return max(round(found.df) + 1, math.ceil((one / distance) ** 2))


def _family(estimates: Mapping[str, Estimate], names: list[str], q: float = Q) -> tuple[Member, ...]:
    """The arms in ascending order of p, each with what its rank allows: rank · q / m."""
    p = {name: estimates[name].p_value() for name in names}
    order = sorted(names, key=p.__getitem__)
    rejected = benjamini_hochberg([p[name] for name in order], q).tolist()
    ranked = enumerate(zip(order, rejected, strict=True), 1)
    return tuple(Member(name, p[name], rank, rank * q / len(order), differs) for rank, (name, differs) in ranked)


def _pair(name: str, found: Estimate) -> Pair:
    low, high = found.speedup_interval(LEVEL)
    return Pair(name, found.speedup, low, high, found.restarts)
