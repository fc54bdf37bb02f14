"""The headline: a cell's fastest recipe, and whether fresh restarts, which it was not chosen by, confirm it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_bench.stats.ratios import Estimate, estimate
from llama_bench.stats.verdicts import Comparison, Verdict, judge, unusable
from llama_bench.sweep import CONTROL

ALPHA = 0.05
"""Chance that any headline of a target is confirmed although its recipe is not faster."""

CONFIRM_LEVEL = 0.90
"""Level of the printed interval: its lower end is the 95 % bound that a one-sided test at 5 % goes by."""


@dataclass(frozen=True, slots=True)
class Headline:
    """A cell's fastest recipe on fresh restarts. Without usable ratios there is no number, and `p` is 1."""

    recipe: str
    restarts: int
    confirmed: bool
    p: float = 1.0
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    @property
    def word(self) -> str:
        return "confirmed" if self.confirmed else "not confirmed"

    @property
    def sentence(self) -> str:
        """What the fresh restarts say, in words."""
        if self.speedup is None:
            return f"not confirmed: {self.reason}"
        number = f"{self.speedup:.3f}× [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.word} on {self.restarts} fresh restarts: {number}{self.reason and f'; {self.reason}'}"


def best(
    ratios: Mapping[str, Sequence[float]], *, pilot: int, margin: float, excluded: Collection[str] = ()
) -> str | None:
    """Return the arm with the verdict `faster` and the largest speedup, None where no arm is faster.

    `ratios` is arm → y of each restart of the main phase; `pilot` and `margin` are those of
    :func:`llama_bench.stats.verdicts.judge`. The control and the arms in `excluded` (no-ops, wrong ones) are left out.
    """
    compared = {name: Comparison(tuple(y)) for name, y in ratios.items() if name != CONTROL and name not in excluded}
    return fastest(judge(compared, pilot=pilot, margin=margin))


def fastest(verdicts: Mapping[str, Verdict]) -> str | None:
    """Return the arm with the verdict `faster` and the largest speedup, None where no arm is faster."""
    speedups = {name: found.speedup or 0.0 for name, found in verdicts.items() if found.word == "faster"}
    return max(speedups, key=speedups.__getitem__, default=None)


def holm(p: Sequence[float], alpha: float = ALPHA) -> npt.NDArray[np.bool_]:
    """Return which hypotheses are rejected with a family-wise error rate of `alpha`, in the order of `p`.

    Holm (1979), "A Simple Sequentially Rejective Multiple Test Procedure": with the p-values in ascending order, reject
    while p₍k₎ ≤ alpha / (m − k + 1), and nothing from the first one that is larger.
    """
    values = np.asarray(p, dtype=float)
    m = len(values)
    order = np.argsort(values, kind="stable")
    failing = np.flatnonzero(values[order] > alpha / (m - np.arange(m)))
    rejected = np.zeros(m, dtype=bool)
    rejected[order[: failing[0] if len(failing) else m]] = True
    return rejected


def one_sided_p(found: Estimate) -> float:
    """Return the p-value of "the arm is not faster than the baseline" (Student's t, lower tail of mean y)."""
    from scipy.special import stdtr

    return float(stdtr(found.df, found.mean / found.standard_error))


def headlines(
    fresh: Mapping[str, tuple[str, Sequence[float]]],
    *,
    inflation: float = 1.0,
    standing: Collection[str] | None = None,
) -> dict[str, Headline]:
    """Return cell → its headline, for the cells of one target that have fresh restarts.

    `fresh` is cell → its chosen recipe and that recipe's y of each fresh restart. They alone are used, so that having
    been chosen as the largest does not bias the estimate. The cells are one family (:func:`holm`); one whose fresh
    restarts allow no test counts with p = 1. `inflation` is that of the target's A/A pairs. `standing` names the cells
    whose chosen recipe is still `faster` in the main phase (all of them when left out): a recipe that is not, because
    of A/A pairs that were not known when it was chosen, is not confirmed.
    """
    estimates = {cell: _estimate(y, inflation) for cell, (_, y) in fresh.items()}
    p = {cell: one_sided_p(found) if isinstance(found, Estimate) else 1.0 for cell, found in estimates.items()}
    rejected = dict(zip(p, holm(list(p.values())).tolist(), strict=True))
    found = {}
    for cell, (recipe, y) in fresh.items():
        stands = standing is None or cell in standing
        found[cell] = _headline(recipe, len(y), estimates[cell], p[cell], rejected[cell], stands)
    return found


def _estimate(y: Sequence[float], inflation: float) -> Estimate | str:
    """The estimate of the fresh restarts, all of them its pilot, or why there is none."""
    problem = unusable(y)
    return problem[1] if problem else estimate(y, len(y), inflation)


def _headline(recipe: str, restarts: int, found: Estimate | str, p: float, rejected: bool, stands: bool) -> Headline:
    if isinstance(found, str):
        return Headline(recipe, restarts, False, reason=found)
    low, high = found.speedup_interval(CONFIRM_LEVEL)
    reason = ""
    if not stands:
        reason = "its main restarts do not call it faster"
    elif low > 1 and not rejected:
        reason = f"p = {p:.2g} is too large for one of several cells of its target (Holm)"
    return Headline(recipe, restarts, rejected and stands, p, found.speedup, low, high, reason)
