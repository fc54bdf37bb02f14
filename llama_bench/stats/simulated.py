"""Cells with a known truth: how their arms behave, drawn the way real cells are measured, and what is promised of them.

A simulated cell has processes, blocks, slots in random order, drift and spikes. Its truth is known, so the chances that
the method promises can be computed and, in `simulation`, be compared with what the method does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llama_bench.stats.ratios import LEVEL, POWER, Estimate, stein_total, t_quantile
from llama_bench.stats.verdicts import EQUIVALENCE_LEVEL, MARGIN_CPU, Q

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arm:
    """`count` arms of a simulated cell that are alike; logarithms of time, 0.01 is 1 %.

    `spread` is the standard deviation of ln seconds between processes, `effect` the true mean of y. With `seen` the
    effect is instead what a test at 5 % sees with this chance in the pilot's restarts (`Estimate.smallest_effect`).
    """

    name: str
    spread: float = 0.01
    effect: float = 0.0
    seen: float | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Spikes:
    """A share of the slots takes `size` longer (0.3 is 30 %); `baseline` says whether the baseline's do so too."""

    share: float
    size: float
    baseline: bool = True


@dataclass(frozen=True, slots=True)
class Setting:
    """How the cells of one experiment behave and are measured.

    `spread` is the baseline's. `shared` is the standard deviation of what all arms of a block have in common, `trend`
    a drift from one restart to the next, `ramp` one from the first to the last slot of a restart. With `control` the
    cell is a target of its own, whose A/A test widens its intervals or voids it. With `headline` the fastest arm is
    timed again in as many fresh restarts as the pilot has. `at_most` is set where the promise is a bound, not a
    number: the share of wrong statements.
    """

    name: str
    arms: tuple[Arm, ...]
    spread: float = 0.01
    restarts: int = 6
    blocks: int = 4
    slot_spread: float = 0.003
    shared: float = 0.03
    trend: float = 0.0
    ramp: float = 0.0
    spikes: Spikes | None = None
    half_width: float | None = None
    budget: int | None = None
    margin: float = MARGIN_CPU
    equivalence: bool = False
    control: bool = False
    headline: bool = False
    at_most: float | None = None

    @property
    def each(self) -> list[Arm]:
        """Every single arm without baseline and control, in the order of the arrays' last axis."""
        return [arm for arm in self.arms for _ in range(arm.count)]

    @property
    def slots(self) -> int:
        """How many arms a block times: baseline, arms, control."""
        return 1 + len(self.each) + self.control

    def true_sd(self, arm: Arm) -> float:
        """Return the standard deviation of y of one restart.

        Two processes, two slots a block, the slots' distance in a ramp (two of k places drawn without replacement lie
        k(k + 1)/6 places² apart in the mean) and spikes (Bernoulli).
        """
        k = self.slots
        slots = 2 * self.slot_spread**2 + (self.ramp / (self.blocks * k)) ** 2 * k * (k + 1) / 6
        if self.spikes is not None:
            sides = 2 if self.spikes.baseline else 1
            slots += sides * self.spikes.share * (1 - self.spikes.share) * math.log1p(self.spikes.size) ** 2
        return math.sqrt(self.spread**2 + arm.spread**2 + slots / self.blocks)

    def true_effect(self, arm: Arm) -> float:
        """Return the true mean of y."""
        if arm.seen is None:
            return arm.effect
        return math.log1p(self._known(arm).smallest_effect(LEVEL, arm.seen))

    def power(self, arm: Arm, level: float = LEVEL) -> float:
        """Return the promised chance of seeing the arm's effect, with its sign, in a t test at `level`.

        Noncentral t (Cohen 1988, chapter 2). Two stages only add restarts, so it is a lower bound there, and without a
        budget there is another that knows no variance: the standard error ends at or below half-width/t (Stein 1945).
        With a control the average over its inflation, max(1, |z|) for one pair.
        """
        from scipy.special import nctdtr, ndtri, stdtr

        effect, known = abs(self.true_effect(arm)), self._known(arm)
        t = t_quantile(0.5 + level / 2, known.df)
        inflation = np.maximum(1, ndtri(0.5 + (np.arange(2000) + 0.5) / 4000)) if self.control else 1.0
        promised = 1 - float(np.mean(nctdtr(known.df, effect / known.standard_error, t * inflation)))
        if self.half_width is None or self.budget is not None:
            return promised
        in_errors = effect * t_quantile(0.5 + LEVEL / 2, known.df) / self.half_width
        return max(promised, float(stdtr(known.df, in_errors - t)))

    def equivalence_rate(self, arm: Arm) -> float:
        """Return the chance that two one-sided t tests call the arm equivalent (Schuirmann 1987).

        Mean and variance of normal values are independent: the normal probability of the mean's range, averaged over
        4000 equally likely values of the variance (χ²).
        """
        from scipy.special import chdtri, ndtr

        known, effect, bound = self._known(arm), self.true_effect(arm), math.log1p(self.margin)
        tail = (np.arange(4000) + 0.5) / 4000
        widths = t_quantile(0.5 + EQUIVALENCE_LEVEL / 2, known.df) * np.sqrt(chdtri(known.df, tail) / known.df)
        high = (bound - effect) / known.standard_error - widths
        low = (-bound - effect) / known.standard_error + widths
        return float(np.maximum(ndtr(high) - ndtr(low), 0).mean())

    def _known(self, arm: Arm) -> Estimate:
        return Estimate(0.0, self.true_sd(arm), self.restarts - 1, self.restarts)


PAIR = (Arm("same"), Arm("changed", seen=POWER))

# fmt: off
SETTINGS: tuple[Setting, ...] = (
    Setting("equal variances", PAIR),
    Setting("one arm three times noisier", (Arm("quiet"), Arm("noisy", 0.03), Arm("quiet, changed", seen=POWER),
                                            Arm("noisy, changed", 0.03, seen=POWER))),
    Setting("drift", PAIR, trend=0.05, ramp=0.08),
    # Both sides of a difference spike alike: y has long tails but no skew, which makes t tests err less, not more
    # (Benjamini 1983, "Is the t test really conservative when the parent distribution is long-tailed?").
    Setting("spikes in all arms", PAIR, spikes=Spikes(0.05, 0.3), at_most=Q),
    # Only one side spikes: y has skewness 1.5 and excess kurtosis 2.4. Six restarts cannot see a rare event that some
    # cells do not contain at all; Hall's expansion (1992, section 2.6) gives 13.4 % instead of 5 %, and is no bound.
    Setting("spikes in one arm only", (Arm("same"),), spikes=Spikes(0.05, 0.3, baseline=False), at_most=0.15),
    Setting("three restarts", PAIR, restarts=3),
    # One A/A pair that happens to differ widens the intervals by up to 3.3, one that agrees never narrows them.
    Setting("with a control of its own", PAIR, control=True, at_most=Q),
    Setting("eight arms, none changed", (Arm("same", count=8),)),
    Setting("eight arms, three changed", (Arm("same", count=5), Arm("changed", seen=POWER, count=3))),
    Setting("two stages", (Arm("quiet", 0.005), Arm("noisy", 0.015), Arm("changed", effect=-0.015)), half_width=0.01),
    Setting("two stages, at most 12 restarts",
            (Arm("quiet", 0.005), Arm("noisy", 0.015), Arm("changed", effect=-0.015)), half_width=0.01, budget=12),
    Setting("equivalence within 2 %", (Arm("same", 0.008), Arm("2 % slower", 0.008, math.log1p(MARGIN_CPU)),
                                       Arm("2 % faster", 0.008, -math.log1p(MARGIN_CPU))), 0.008, equivalence=True),
    Setting("the fastest of eight, confirmed", (Arm("changed", effect=-0.01, count=8),), headline=True),
)
# fmt: on
"""Every setting, once. Spreads of 1 % between processes are what a busy machine shows."""


def log_seconds(setting: Setting, cells: int, restarts: int, rng: np.random.Generator, first: int = 0) -> Array:
    """Draw ln seconds of every slot: cells × restarts × blocks × arms, the baseline first, a control last.

    `first` is the number of the first of these restarts, from which a trend goes on. Spikes have their mean taken
    off, so that an arm's true mean of y is its effect whoever spikes.
    """
    shape = (cells, restarts, setting.blocks, setting.slots)
    base = Arm("baseline", setting.spread)
    arms = [base, *setting.each, base][: setting.slots]
    effects = np.array([setting.true_effect(arm) for arm in arms])
    spreads = np.array([arm.spread for arm in arms])
    values = effects + spreads * rng.standard_normal((cells, restarts, 1, shape[-1]))
    values = values + setting.slot_spread * rng.standard_normal(shape)
    values += setting.shared * rng.standard_normal((*shape[:3], 1))
    if setting.trend or setting.ramp:
        position = rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        slot = np.arange(setting.blocks)[:, None] * shape[-1] + position
        values += setting.ramp * slot / (setting.blocks * shape[-1])
        values += setting.trend * (first + np.arange(restarts))[:, None, None]
    if setting.spikes is not None:
        spike = math.log1p(setting.spikes.size) * ((rng.random(shape) < setting.spikes.share) - setting.spikes.share)
        if not setting.spikes.baseline:
            spike[..., 0] = 0.0
        values += spike
    return values


def ratios(values: Array) -> Array:
    """Return y (cells × restarts × arms) from :func:`log_seconds`, as `restart_ratios` does from rows.

    y = mean over blocks of (ln seconds of the arm − ln seconds of the baseline).
    """
    y: Array = (values[..., 1:] - values[..., :1]).mean(axis=2)
    return y


def measure(setting: Setting, cells: int, rng: np.random.Generator) -> Iterator[Array]:
    """Draw cells and measure them to their end: y (restarts × arms) of each, NaN where an arm has no part.

    With a half-width every arm's own pilot says how many restarts it gets, at most the budget, as in a real cell; the
    control is there in all of them. Cells that stop together are drawn together, so they come in that order.
    """
    pilots = ratios(log_seconds(setting, cells, setting.restarts, rng))
    if setting.half_width is None:
        yield from pilots
        return
    limit = math.inf if setting.budget is None else setting.budget
    arms = len(setting.each)  # a control asks for nothing
    asked = [[stein_total(y, setting.half_width) for y in pilot.T.tolist()[:arms]] for pilot in pilots]
    totals = np.maximum(setting.restarts, np.minimum(asked, limit)).astype(int)
    longest = totals.max(axis=1)
    for total in np.unique(longest):
        stopping = longest == total
        mine = pilots[stopping]
        more = ratios(log_seconds(setting, len(mine), int(total) - setting.restarts, rng, setting.restarts))
        y = np.concatenate([mine, more], axis=1)
        left = np.arange(total)[None, :, None] >= totals[stopping][:, None, :]
        y[..., :arms][left] = np.nan
        yield from y
