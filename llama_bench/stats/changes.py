"""Changes between two runs: differences of means over restarts that share nothing, and what may be said of them.

Inside a run, arms are compared in the same restarts. Between runs nothing is shared, so a change is a difference of two
independent means with variances of their own (Welch 1947). Positive is slower: a change of 0.1 takes 10 % longer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from llama_bench.stats.controls import AATest, Stratum, stratum, together
from llama_bench.stats.ratios import Estimate, Interval, estimate
from llama_bench.stats.verdicts import (
    EQUIVALENCE_LEVEL,
    SMALLEST_SPREAD,
    Q,
    benjamini_hochberg,
    equivalent,
    fcr_level,
    unusable,
)

K = TypeVar("K", bound=Hashable)

Restarts = Mapping[int, float]
"""Restart → a mean of ln(seconds), or a difference of such means."""

Arms = Mapping[str, Restarts]
"""Arm → its restarts, of one cell in one run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a change allows to be said: a verdict, its evidence, and the change with its interval as shares of time."""

    word: str
    evidence: str
    change: float
    interval: Interval
    level: float


def summary(values: Restarts, pilot: int, inflation: float = 1.0) -> Estimate | tuple[str, str]:
    """Return mean and spread over restarts, or the verdict and reason where they allow no interval.

    As for ratios, the variance is that of the first `pilot` restarts (Stein 1945): how many came after them was decided
    by what the first ones showed.
    """
    y = [value for _, value in sorted(values.items())]
    problem = unusable(y) or unusable(y[: max(pilot, 2)])
    return problem or estimate(y, pilot, inflation)


def difference(b: Estimate, a: Estimate, inflation: float = 1.0) -> Estimate:
    """Return the estimate of (mean of `b`) − (mean of `a`) for independent means whose variances differ.

    Welch (1947), "The generalization of 'Student's' problem when several different population variances are involved",
    with the degrees of freedom of Satterthwaite (1946): (Σv)² / Σ(v²/df), v the squared standard errors. Each side has
    the inflation of its own run; `inflation` is what the programs that are the same show between the two runs
    (:func:`aa_between`), and the wider of the two counts.
    """
    v = np.array([a.standard_error**2, b.standard_error**2])
    df = float(v.sum() ** 2 / (v**2 / (a.df, b.df)).sum())
    bare = inflation**2 * (a.sd**2 / a.restarts + b.sd**2 / b.restarts)
    return Estimate(b.mean - a.mean, math.sqrt(max(float(v.sum()), bare)), df, 1)


def average(found: Sequence[Estimate]) -> Estimate:
    """Return the estimate of the mean of independent estimates, such as the drifts of a target's cells.

    The degrees of freedom are Satterthwaite's (1946). Where the estimates differ by more than their own errors explain,
    the errors are widened until they explain it (Birge 1932).
    """
    n = len(found)
    v = np.array([(one.standard_error / n) ** 2 for one in found])
    df = float(v.sum() ** 2 / (v**2 / [one.df for one in found]).sum())
    means = np.array([one.mean for one in found])
    seen = float(means.var(ddof=1)) / n if n > 1 else 0.0
    return Estimate(float(means.mean()), math.sqrt(max(float(v.sum()), seen)), df, 1)


def beside(arm: Restarts, others: Sequence[Restarts]) -> dict[int, float]:
    """Return `arm` − (mean of `others`) restart by restart: what the others did in the same restarts is taken off.

    Restarts in which one of the others is missing are left out, since a mean of fewer arms is another mean.
    """
    return {
        restart: value - math.fsum(other[restart] for other in others) / len(others)
        for restart, value in arm.items()
        if all(restart in other for other in others)
    }


def aa_between(cells: Iterable[tuple[Arms, Arms]]) -> AATest:
    """Return the A/A test between two runs: did programs that are the same in both change alike?

    Each entry has one cell's restarts of those arms in run A and in run B. What the machine did to all of them is no
    matter, only that it did the same to all: the interaction arm × run, and strata as in
    :mod:`llama_bench.stats.controls`.
    """
    return together([one for a, b in cells for one in _strata(a, b)])


def _strata(a: Arms, b: Arms) -> list[Stratum]:
    """One analysis of variance for each set of arms that has restarts in both runs; they share no process."""
    of_a, of_b = _by_arms(a), _by_arms(b)
    found = (_interaction(np.asarray(of_a[arms]), np.asarray(of_b[arms])) for arms in sorted(of_a.keys() & of_b.keys()))
    return [one for one in found if one is not None]


def _by_arms(arms: Arms) -> dict[tuple[str, ...], list[list[float]]]:
    """Set of arms → one row a restart that has just these."""
    restarts: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for arm in sorted(arms):
        for restart, value in arms[arm].items():
            if math.isfinite(value):
                restarts[restart][arm] = value
    found: defaultdict[tuple[str, ...], list[list[float]]] = defaultdict(list)
    for _, values in sorted(restarts.items()):
        found[tuple(values)].append(list(values.values()))
    return found


def _interaction(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> Stratum | None:
    """Split-plot analysis of variance (Fisher 1925): restarts × arms of two runs, the interaction arm × run.

    Taking each restart's mean off takes off whatever hit the whole restart, the run's own shift with it. With k + 1
    arms and n restarts in a run, F = MS(arm × run) / MS(residual) has (k, k(n_A + n_B − 2)) degrees of freedom.
    """
    k, n_a, n_b = a.shape[1] - 1, len(a), len(b)
    residual = k * (n_a + n_b - 2)
    if residual < 1:
        return None
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (a, b))
    effects = b.mean(axis=0) - a.mean(axis=0)
    spread = sum(float(((rows - rows.mean(axis=0)) ** 2).sum()) for rows in (a, b)) / residual
    if math.sqrt(spread) < SMALLEST_SPREAD:
        return None
    f = n_a * n_b / (n_a + n_b) * float((effects**2).sum()) / k / spread
    return stratum(f, k, residual, n_a + n_b)


def judge(changes: Mapping[K, Estimate], margins: Mapping[K, float], q: float = Q) -> dict[K, Finding]:
    """Return what may be said of each change, with one false-discovery rate over all of them.

    Benjamini & Hochberg (1995) at `q` decides what is faster or slower, the intervals are at the level that agrees with
    it (Benjamini & Yekutieli 2005), and `equivalent` is the 90 % interval inside ± its margin (Schuirmann 1987), all as
    inside a run (:mod:`llama_bench.stats.verdicts`).
    """
    names = list(changes)
    rejected = benjamini_hochberg([changes[name].p_value() for name in names], q).tolist()
    level = fcr_level(sum(rejected), len(names), q)
    return {
        name: _finding(changes[name], margins[name], told, level) for name, told in zip(names, rejected, strict=True)
    }


def shares(found: Estimate, level: float) -> tuple[float, Interval]:
    """Return a change and its interval as shares of time: 0.1 takes 10 % longer."""
    low, high = found.interval(level)
    return math.expm1(found.mean), (math.expm1(low), math.expm1(high))


def _finding(found: Estimate, margin: float, told: bool, level: float) -> Finding:
    change, interval = shares(found, level)
    inside = equivalent(found, margin)
    if told:
        note = f"a change, but inside the ±{margin:.0%} that count as none" if inside else ""
        return Finding("slower" if change > 0 else "faster", note, change, interval, level)
    if inside:
        low, high = shares(found, EQUIVALENCE_LEVEL)[1]
        note = f"90 % interval [{low:+.1%}, {high:+.1%}] is inside ±{margin:.0%}"
        return Finding("equivalent", note, change, interval, level)
    smallest = found.smallest_effect(level)
    note = f"smallest change that would have been seen with 80 % power: {smallest:.1%}"
    return Finding("inconclusive", note, change, interval, level)
