"""Verdicts: what the ratios of a cell allow to be said, with one false-discovery rate for all its arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_bench.stats.ratios import LEVEL, Estimate, Interval, estimate

Q = 0.05
"""Wanted false-discovery rate among the arms of a cell that are called faster or slower."""

EQUIVALENCE_LEVEL = 0.90
"""Two one-sided tests at 5 % are the 90 % interval (Schuirmann 1987)."""

MARGIN_CPU, MARGIN_GPU = 0.02, 0.01
"""Differences that count as none; a GPU's times repeat better."""

SMALLEST_SPREAD = 1e-9
"""Restarts whose ratios agree closer than this (a nanosecond in a second) were not measured by any real clock."""


FROM_RATIOS = ("faster", "slower", "equivalent", "inconclusive")
"""Verdicts that ratios alone decide."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """An arm against its baseline, before its verdict: y of each restart, and what is known besides.

    `problem` is a verdict and its reason that stand whatever the ratios are (failed, void); `wrong` and `no_op` are
    evidence sentences, None where the arm is right and does something.
    """

    y: tuple[float, ...]
    control: bool = False
    no_op: str | None = None
    wrong: str | None = None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict, its evidence in words, and the numbers that may be printed beside it (None: no honest number)."""

    word: str
    evidence: str
    speedup: float | None = None
    interval: Interval | None = None
    level: float | None = None
    smallest_effect: float | None = None


def margin_of(provider: str) -> float:
    """Return the difference that counts as none on a target with this execution provider."""
    return MARGIN_CPU if provider == "CPUExecutionProvider" else MARGIN_GPU


def benjamini_hochberg(p: Sequence[float], q: float = Q) -> npt.NDArray[np.bool_]:
    """Return which hypotheses are rejected at false-discovery rate `q`, in the order of `p`.

    Benjamini & Hochberg (1995), "Controlling the False Discovery Rate": with the p-values in ascending order, reject
    those up to the largest k with p₍k₎ ≤ k·q/m.
    """
    values = np.asarray(p, dtype=float)
    m = len(values)
    order = np.argsort(values, kind="stable")
    below = np.flatnonzero(values[order] <= np.arange(1, m + 1) * q / m)
    rejected = np.zeros(m, dtype=bool)
    if len(below):
        rejected[order[: below[-1] + 1]] = True
    return rejected


def fcr_level(rejected: int, family: int, q: float = Q) -> float:
    """Return the level of the intervals that agree with `rejected` rejections among `family` hypotheses.

    Benjamini & Yekutieli (2005), "False Discovery Rate-Adjusted Multiple Confidence Intervals for Selected
    Parameters": 1 − R·q/m keeps the false coverage rate of the selected at q; with max(R, 1) an interval excludes
    "no difference" exactly when Benjamini-Hochberg rejects.
    """
    return 1 - max(rejected, 1) * q / max(family, 1)


def equivalent(arm: Estimate, margin: float) -> bool:
    """Return whether the 90 % interval lies inside ±`margin`: the two one-sided tests of Schuirmann (1987).

    The bounds are 1/(1 + margin) and 1 + margin, so that swapping the arms changes nothing.
    """
    low, high = arm.interval(EQUIVALENCE_LEVEL)
    bound = math.log1p(margin)
    return -bound < low and high < bound


def unusable(y: Sequence[float]) -> tuple[str, str] | None:
    """Return the verdict and reason for ratios that allow no interval, None for those that do."""
    broken = sum(not math.isfinite(value) for value in y)
    if broken:
        return "failed", f"the ratio of {broken} of {len(y)} restarts is not a finite number"
    if not y:
        return "inconclusive", "no restart timed both this arm and the baseline"
    if len(y) == 1:
        return "inconclusive", "one restart only: nothing is known of the spread between restarts"
    if np.std(y, ddof=1) < SMALLEST_SPREAD:
        return "inconclusive", f"all {len(y)} restarts gave exactly the same ratio: no real clock does"
    return None


def judge(
    arms: Mapping[str, Comparison],
    *,
    pilot: int,
    margin: float,
    q: float = Q,
    inflation: float = 1.0,
    void: str | None = None,
) -> dict[str, Verdict]:
    """Return the verdict on each arm of one cell.

    The family is the cell's arms without control and no-ops; arms without a usable interval are not tested and not
    counted. Faster and slower are decided by :func:`benjamini_hochberg` at `q`, the printed intervals are at
    :func:`fcr_level`; control and no-ops, which nothing was chosen by, have 95 % intervals. `pilot` is the number
    of pilot restarts (Stein's first stage), `margin` what counts as no difference. `inflation` widens every interval
    and weakens every test by the factor that the target's A/A pairs ask for. `void` is the sentence about A/A pairs
    that differ: what hangs on a ratio is then void, without a number.
    """
    estimates, problems = estimated(arms, pilot, inflation)
    verdicts = {name: _without_number(arms[name], problem) for name, problem in problems.items()}
    p = {name: estimates[name].p_value() for name in family(arms, estimates)}
    rejected = dict(zip(p, benjamini_hochberg(list(p.values()), q).tolist(), strict=True))
    level = fcr_level(sum(rejected.values()), len(rejected), q)
    for name, found in estimates.items():
        if name in rejected:
            verdicts[name] = _compared(arms[name], found, rejected[name], level, margin)
        else:
            word = "control" if arms[name].control else "no-op"
            evidence = arms[name].wrong or arms[name].no_op or "the baseline a second time (A/A)"
            verdicts[name] = _numbers("wrong" if arms[name].wrong else word, evidence, found, LEVEL)
    return {name: _voided(verdicts[name], void) for name in arms}


def estimated(
    arms: Mapping[str, Comparison], pilot: int, inflation: float = 1.0
) -> tuple[dict[str, Estimate], dict[str, tuple[str, str]]]:
    """Return the estimate of each arm that allows one; of the others the verdict and reason why there is none."""
    estimates: dict[str, Estimate] = {}
    problems: dict[str, tuple[str, str]] = {}
    for name, arm in arms.items():
        problem = arm.problem or unusable(arm.y) or _short_pilot(arm.y, pilot)
        if problem is None:
            estimates[name] = estimate(arm.y, pilot, inflation)
        else:
            problems[name] = problem
    return estimates, problems


def family(arms: Mapping[str, Comparison], estimates: Mapping[str, Estimate]) -> list[str]:
    """Return the arms that are tested together: those with an estimate that are neither control nor no-op."""
    return [name for name in estimates if not arms[name].control and arms[name].no_op is None]


def _voided(verdict: Verdict, void: str | None) -> Verdict:
    """What was read off a ratio falls with the target's A/A pairs; what was seen otherwise stays."""
    return verdict if void is None or verdict.word not in FROM_RATIOS else Verdict("void", void)


def _short_pilot(y: Sequence[float], pilot: int) -> tuple[str, str] | None:
    """Later restarts may differ where the pilot's did not; its variance is what the interval is made of."""
    return unusable(y[: max(pilot, 2)])


def _without_number(arm: Comparison, problem: tuple[str, str]) -> Verdict:
    """An arm without interval: what went wrong, but a wrong answer or a no-op is known without any timing.

    On two machines a no-op is not known: ONNX Runtime may make another graph of the same model on each.
    """
    word, reason = problem
    stands = {"inconclusive": {"wrong": arm.wrong, "no-op": arm.no_op}, "void": {"wrong": arm.wrong}}
    for known, evidence in stands.get(word, {}).items():
        if evidence is not None:
            return Verdict(known, f"{evidence}; no ratio: {reason}")
    return Verdict(word, reason)


def _compared(arm: Comparison, found: Estimate, rejected: bool, level: float, margin: float) -> Verdict:
    """The verdict on a member of the family."""
    low, high = found.speedup_interval(EQUIVALENCE_LEVEL)
    inside = equivalent(found, margin)
    if arm.wrong is not None:
        return _numbers("wrong", arm.wrong, found, level)
    if rejected:
        word = "faster" if found.mean < 0 else "slower"
        note = f"a difference, but inside the ±{margin:.0%} that count as none" if inside else ""
        return _numbers(word, note, found, level)
    if inside:
        return _numbers("equivalent", f"90 % interval [{low:.4f}, {high:.4f}] is inside ±{margin:.0%}", found, level)
    smallest = found.smallest_effect(level)
    evidence = f"smallest effect that would have been seen with 80 % power: {smallest:.1%}"
    return _numbers("inconclusive", evidence, found, level, smallest)


def _numbers(word: str, evidence: str, found: Estimate, level: float, smallest_effect: float | None = None) -> Verdict:
    return Verdict(word, evidence, found.speedup, found.speedup_interval(level), level, smallest_effect)
