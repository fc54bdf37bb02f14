"""How one decides that two programs differ in speed: our procedure, the study's, and three common ones.

Each sees the same timed runs of one comparison; tests and intervals are at 5 % and 95 %, for one comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_bench.stats.ratios import LEVEL, Estimate, t_quantile

Array = npt.NDArray[np.float64]

ALPHA = 1 - LEVEL


@dataclass(frozen=True, slots=True)
class Samples:
    """What a procedure may look at, of one comparison.

    `baseline` and `arm` hold the seconds of every timed run, an array a process, in the order of the restarts;
    `estimate` is made from the restarts' ratios; `margin` is the difference that counts as none on this hardware.
    """

    baseline: tuple[Array, ...]
    arm: tuple[Array, ...]
    estimate: Estimate
    margin: float


@dataclass(frozen=True, slots=True)
class Procedure:
    """How it decides, in words, and the decision: 1 claims that the arm is slower, −1 that it is faster, 0 neither."""

    how: str
    claim: Callable[[Samples], int]


def t_over_restarts(samples: Samples) -> int:
    """Ours: Student's t test on the restarts' mean log ratios, with the pilot's variance (Stein 1945)."""
    return _sign(samples.estimate.mean) if samples.estimate.p_value() < ALPHA else 0


def means_differ(samples: Samples) -> int:
    """The study's: the means of all runs of one process each, no test, a claim from `margin` on.

    The study gave whatever the means showed as a speedup, to a hundredth of a percent; taken by the letter it claims
    a difference in every comparison. The margin, which counts as none elsewhere too (2 % on a CPU), is a kind reading.
    """
    ratio = float(samples.arm[0].mean() / samples.baseline[0].mean())
    return _sign(ratio - 1) if abs(ratio - 1) >= samples.margin else 0


def u_test(samples: Samples) -> int:
    """Mann & Whitney's U test (1947), two-sided at 5 %, on the runs of one process each, as if independent."""
    from scipy.stats import mannwhitneyu

    found = mannwhitneyu(samples.arm[0], samples.baseline[0], alternative="two-sided")
    half = len(samples.arm[0]) * len(samples.baseline[0]) / 2
    return _sign(float(found.statistic) - half) if found.pvalue < ALPHA else 0


def pooled_t(samples: Samples) -> int:
    """Welch's t test (1947), two-sided at 5 %, on all runs of all processes, as if every run were independent."""
    from scipy.stats import ttest_ind

    found = ttest_ind(np.concatenate(samples.arm), np.concatenate(samples.baseline), equal_var=False)
    return _sign(float(found.statistic)) if found.pvalue < ALPHA else 0


def intervals_apart(samples: Samples) -> int:
    """A claim when the 95 % t intervals of the means of one process each do not overlap.

    On independent runs it would be stricter than a test (Schenker & Gentleman 2001); runs of a process are not.
    """
    (low, high), (base_low, base_high) = _t_interval(samples.arm[0]), _t_interval(samples.baseline[0])
    return 1 if low > base_high else -1 if high < base_low else 0


PROCEDURES: dict[str, Procedure] = {
    "llama_bench": Procedure("t test over the mean log ratios of the restarts", t_over_restarts),
    "the study": Procedure("one process each; the means of all runs differ by {margin} or more", means_differ),
    "U test": Procedure("one process each; Mann-Whitney U test on their runs, p < 5 %", u_test),
    "pooled t": Procedure("Welch's t test on the runs of all processes together, p < 5 %", pooled_t),
    "intervals apart": Procedure("one process each; the 95 % intervals of the mean do not overlap", intervals_apart),
}
"""Name → procedure. All see the same runs; the first is ours. One process each: the first restart's."""

OURS = next(iter(PROCEDURES))


@dataclass(frozen=True, slots=True)
class Share:
    """`k` of `n`."""

    k: int
    n: int

    @property
    def rate(self) -> float | None:
        """k / n; None of nothing."""
        return self.k / self.n if self.n else None

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the exact binomial interval (Clopper & Pearson 1934: quantiles of the beta distribution)."""
        from scipy.special import betaincinv

        tail, k, n = (1 - level) / 2, self.k, self.n
        low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
        high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
        return low, high


def _t_interval(seconds: Array) -> tuple[float, float]:
    """The 95 % t interval of the mean of the runs of one process, in seconds (Student 1908)."""
    half = t_quantile(0.5 + LEVEL / 2, len(seconds) - 1) * float(seconds.std(ddof=1)) / math.sqrt(len(seconds))
    return float(seconds.mean()) - half, float(seconds.mean()) + half


def _sign(value: float) -> int:
    return int(value > 0) - int(value < 0)
