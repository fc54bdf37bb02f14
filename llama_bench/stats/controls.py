"""Do programs that are the same differ? The test over all A/A pairs of a target, and what it does to intervals.

The baseline, its control and the no-ops of a cell are one program in different processes. They differ by chance alone,
or something in the measuring prefers one of them, and then no interval on this target can be believed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_bench.stats.verdicts import SMALLEST_SPREAD

VOID_P = 0.001
"""A target whose A/A pairs differ with a smaller p-value than this has no verdicts."""

SMALLEST_P = 1e-300
"""Smaller p-values become this one: their χ² would be infinite."""

Ratios = Mapping[str, Mapping[int, float]]
"""y of the A/A arms of one cell and group: arm → restart → mean over blocks of ln(arm / baseline)."""


@dataclass(frozen=True, slots=True)
class Stratum:
    """One analysis of variance: `pairs` arms against the baseline over `restarts` restarts, and its p-value as χ²."""

    pairs: int
    restarts: int
    p: float
    chi2: float


@dataclass(frozen=True, slots=True)
class AATest:
    """The strata of a target together: `chi2` is χ² distributed with `pairs` degrees of freedom if nothing is wrong."""

    pairs: int = 0
    chi2: float = 0.0
    p: float = 1.0

    @property
    def inflation(self) -> float:
        """Factor of every standard error of the target: √(χ²/df), at least 1.

        Birge (1932), "The Calculation of Errors by the Method of Least Squares": where results differ by more than
        their errors explain, the errors are widened until they explain it; they are never narrowed.
        """
        return math.sqrt(max(1.0, self.chi2 / self.pairs)) if self.pairs else 1.0

    @property
    def void(self) -> bool:
        """Whether nothing may be said about the target's recipes."""
        return self.p < VOID_P

    def words(self, target: str) -> str:
        """Return the sentence that voids the target's verdicts."""
        return (
            f"the A/A pairs of target {target}, which are the same program, differ by more than chance: "
            f"χ² = {self.chi2:.1f} with {self.pairs} degrees of freedom, p = {self.p:.1g}; "
            "whatever prefers one process here may prefer a recipe"
        )


def aa_test(groups: Iterable[Ratios]) -> AATest:
    """Return the test over the A/A pairs in `groups`: one entry a cell and group of arms timed together.

    Each entry is split into :func:`strata`. Strata share no process, so they are independent: the χ² of each (its
    p-value as a quantile with as many degrees of freedom as it has pairs) add up to a χ² with the sum of the degrees
    of freedom (Fisher 1925; Lancaster 1961, "The combination of probabilities", for unequal degrees of freedom).
    """
    return together([one for group in groups for one in strata(group)])


def together(found: Sequence[Stratum]) -> AATest:
    """Return the one test of independent strata: their χ² and degrees of freedom add up."""
    from scipy.special import chdtrc

    if not found:
        return AATest()
    pairs, chi2 = sum(one.pairs for one in found), math.fsum(one.chi2 for one in found)
    return AATest(pairs, chi2, float(chdtrc(pairs, chi2)))


def strata(y: Ratios) -> list[Stratum]:
    """Return one analysis of variance for each set of arms that was timed together in at least two restarts.

    Arms may have different numbers of restarts: a no-op has the pilot's, the control those of the noisiest arm. Each
    restart counts once, with all the arms that it has; a ratio that is not finite counts as missing. Restarts whose
    ratios are constant say nothing, since no real clock gives them.
    """
    restarts: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for arm in sorted(y):
        for restart, value in y[arm].items():
            if math.isfinite(value):
                restarts[restart][arm] = value
    alike: defaultdict[tuple[str, ...], list[list[float]]] = defaultdict(list)
    for _, values in sorted(restarts.items()):
        alike[tuple(values)].append(list(values.values()))
    found = (_stratum(rows) for _, rows in sorted(alike.items()) if len(rows) > 1)
    return [one for one in found if one is not None]


def _stratum(rows: Sequence[Sequence[float]]) -> Stratum | None:
    """Two-way analysis of variance, arm × restart; `rows` are restarts × arms without the baseline.

    Fisher (1925), "Statistical Methods for Research Workers" (randomised complete blocks): with k pairs, k + 1 arms and
    n restarts, F = MS(arm) / MS(residual) has (k, k(n − 1)) degrees of freedom when the arms have equal means and
    variances, whatever differs between restarts. The baseline's own y is 0: subtracting it moves whole restarts only.
    """
    values = np.column_stack([np.zeros(len(rows)), np.asarray(rows, dtype=float)])
    n, arms = values.shape
    k = arms - 1
    effects: npt.NDArray[np.float64] = values.mean(axis=0) - values.mean()
    residuals = values - values.mean(axis=1, keepdims=True) - effects
    spread = float((residuals**2).sum()) / (k * (n - 1))
    if math.sqrt(spread) < SMALLEST_SPREAD:
        return None
    return stratum(n * float((effects**2).sum()) / k / spread, k, k * (n - 1), n)


def stratum(f: float, pairs: int, residual: int, restarts: int) -> Stratum:
    """Return the stratum of a ratio `f` of mean squares, with `pairs` and `residual` degrees of freedom."""
    from scipy.special import chdtri, fdtrc

    p = max(float(fdtrc(pairs, residual, f)), SMALLEST_P)
    return Stratum(pairs, restarts, p, float(chdtri(pairs, p)))
