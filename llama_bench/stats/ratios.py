"""Ratios between arms, their intervals, and how many restarts a wanted half-width takes.

The replicate is the restart: a fresh process of every arm. What happens inside one (blocks, slots, runs) is averaged
before anything is compared, because a t interval over restart means keeps its promise on identical programs and
intervals that pool blocks or runs do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from llama_bench.sweep import CONTROL

MAIN, CONFIRM = "main", "confirm"
"""Phases of a cell: the restarts that estimates come from, and the fresh ones that confirm its fastest recipe."""

LEVEL = 0.95
"""Level of intervals that no choice among several arms stands behind: times, controls, no-ops."""

POWER = 0.8
"""Chance with which the smallest effect that an inconclusive arm reports would have been seen."""

DIGITS = 12
"""Significant digits of times: more than any clock has, fewer than the order of a sum changes."""

IN_ORDER = pl.QueryOptFlags(check_order_observe=False)
"""Keep the order of groups and of their rows: polars deems it of no matter to a mean, but sums in another order differ
in the last digit, and two reports of one run should not differ at all."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the restarts say about the mean of y, the logarithm of arm / baseline.

    `sd` and `df` are the pilot's (Stein 1945), `mean` is over all `restarts`. `inflation`, at least 1, is how much more
    the target's A/A pairs differ than their spread explains (:mod:`llama_bench.stats.controls`).
    Of two runs' means (:mod:`llama_bench.stats.changes`) `df` is no whole number.
    """

    mean: float
    sd: float
    df: float
    restarts: int
    inflation: float = 1.0

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`, times the inflation (Birge 1932)."""
        return self.inflation * self.sd / math.sqrt(self.restarts)

    @property
    def speedup(self) -> float:
        """Time of the baseline / time of the arm: exp(−mean y), the ratio of geometric means."""
        return math.exp(-self.mean)

    def interval(self, level: float = LEVEL) -> Interval:
        """Return the t interval of mean y: mean ± t(df)·standard error (Student 1908; second stage: Stein 1945)."""
        half = t_quantile(0.5 + level / 2, self.df) * self.standard_error
        return self.mean - half, self.mean + half

    def speedup_interval(self, level: float = LEVEL) -> Interval:
        """Return the interval of the speedup: the ends of y's interval through exp(−y), lower end first."""
        low, high = self.interval(level)
        return math.exp(-high), math.exp(-low)

    def p_value(self) -> float:
        """Return the two-sided p-value of "the arm is as fast as the baseline" (Student's t, the pilot's df)."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.df, -abs(self.mean) / self.standard_error))

    def smallest_effect(self, level: float = LEVEL, power: float = POWER) -> float:
        """Return the smallest change (0.014 is 1.4 %) that a test at `level` sees with chance `power`.

        From the noncentral t distribution: the noncentrality δ with P(t > t₍level₎) = power, times the standard
        error (Cohen 1988, chapter 2); the far tail, below 1e-6 there, is left out.
        """
        from scipy.special import nctdtrinc

        shift = float(nctdtrinc(self.df, 1 - power, t_quantile(0.5 + level / 2, self.df)))
        return math.expm1(shift * self.standard_error)


def t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t distribution (scipy.special.stdtrit)."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def estimate(y: Sequence[float], pilot: int, inflation: float = 1.0) -> Estimate:
    """Return the mean of all of `y` with the variance and degrees of freedom of its first `pilot` values.

    Stein (1945), "A two-sample test for a linear hypothesis whose power is independent of the variance": an interval
    whose length was reached by adding replicates keeps its level only with the first stage's variance.

    Raises:
        ValueError: fewer than two values, or one that is not finite.
    """
    values = np.asarray(y, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError("an interval needs at least two finite values")
    first = values[: max(pilot, 2)]
    return Estimate(float(values.mean()), float(first.std(ddof=1)), len(first) - 1, len(values), inflation)


def stein_total(pilot: Sequence[float], half_width: float, level: float = LEVEL) -> int:
    """Return how many restarts in all give mean y a half-width of at most `half_width` (0.01 is 1 % of the ratio).

    Stein (1945): n = max(n₀, ⌈t²(n₀ − 1)·s²/h²⌉) from the variance s² of the n₀ values of `pilot`. Where the pilot
    says nothing about the spread (fewer than two values, or one that is not finite) it is the pilot's own number:
    more restarts would not mend it.
    """
    values = np.asarray(pilot, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        return len(values)
    t = t_quantile(0.5 + level / 2, len(values) - 1)
    needed = float(values.var(ddof=1)) * (t / half_width) ** 2
    # a hair below the ceiling, so that rounding in the last digit does not ask for one more
    return max(len(values), math.ceil(needed * (1 - 1e-12)))


def saved(speedup: float) -> float:
    """Return the share of the baseline's time that is saved: 1 − arm / baseline (the study's "Speedup" column)."""
    return 1 - 1 / speedup


def name_arms(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Give the baseline's second run its own name in `recipe`, so that `recipe` alone tells arms apart."""
    return rows.with_columns(
        pl.when(pl.col("control").fill_null(False)).then(pl.lit(CONTROL)).otherwise(pl.col("recipe")).alias("recipe")
    )


def counting(rows: pl.LazyFrame, phase: str = MAIN) -> pl.LazyFrame:
    """Leave the rows of `blocks` or `timings` that statistics of `phase` are made of: those of blocks that were kept.

    Where a row does not say, its block was kept and its phase is the main one.
    """
    here = pl.col("phase") == phase
    # no fill_null: polars would make two more columns of a hundred million rows
    wanted = {
        "kept": pl.col("kept").ne_missing(False),
        "phase": here | pl.col("phase").is_null() if phase == MAIN else here,
    }
    present = set(rows.collect_schema().names())
    if "phase" not in present and phase != MAIN:
        return rows.clear()
    return rows.filter(*(found for column, found in wanted.items() if column in present))


def group_ratios(blocks: pl.LazyFrame, baselines: Mapping[str, str], phase: str = MAIN) -> pl.DataFrame:
    """Return y of every arm, restart and group: columns cell, recipe, restart, group, y, sorted by them.

    y = mean over blocks of (ln seconds of the arm − ln seconds of the baseline) in one restart and group; both sides
    of a difference come from the same block, so drift between blocks cancels, and a block in which one of the two has
    no slot is left out. `baselines` names the baseline of each cell. A value that is missing or not finite makes its
    y NaN or infinite.
    """
    cells = pl.LazyFrame(
        {"cell": list(baselines), "recipe": list(baselines.values())}, schema=dict.fromkeys(_ARM, pl.String)
    )
    arms = name_arms(counting(blocks, phase)).with_columns(pl.col("log_seconds").fill_null(float("nan")))
    slot = ["cell", "restart", "group", "block"]
    base = arms.join(cells, on=_ARM, how="semi").select(*slot, base="log_seconds")
    return (
        arms.join(cells, on=_ARM, how="anti", maintain_order="left")
        .join(base, on=slot, maintain_order="left")
        .with_columns(y=pl.col("log_seconds") - pl.col("base"))
        .group_by(*_ARM, "restart", "group", maintain_order=True)
        .agg(pl.col("y").mean())
        .sort(*_ARM, "restart", "group")
        .collect(optimizations=IN_ORDER)
    )


def over_groups(ratios: pl.DataFrame) -> pl.DataFrame:
    """Return one y an arm and restart from :func:`group_ratios`: columns cell, recipe, restart, y, sorted by them.

    An arm timed in several groups of one restart gives the mean over its groups.
    """
    means = ratios.group_by(*_ARM, "restart", maintain_order=True).agg(pl.col("y").mean())
    return means.sort(*_ARM, "restart")


def restart_ratios(blocks: pl.LazyFrame, baselines: Mapping[str, str], phase: str = MAIN) -> pl.DataFrame:
    """Return y of every arm and restart of `phase`: :func:`over_groups` of :func:`group_ratios`."""
    return over_groups(group_ratios(blocks, baselines, phase))


def slot_counts(blocks: pl.LazyFrame, phase: str = MAIN) -> pl.DataFrame:
    """Return one row an arm: cell, recipe, restarts, slots, missing, groups, last; sorted.

    `slots` are those of kept blocks, `missing` counts those that another arm of the same restart and group has more,
    `groups` lists the arm's groups, `last` is the highest number of its restarts.
    """
    replicate = ["cell", "restart", "group"]
    return (
        name_arms(counting(blocks, phase))
        .group_by(*replicate, "recipe")
        .agg(slots=pl.len().cast(pl.Int64))
        .with_columns(missing=pl.col("slots").max().over(replicate) - pl.col("slots"))
        .group_by(*_ARM)
        .agg(
            pl.col("restart").n_unique().alias("restarts"),
            pl.col("slots", "missing").sum(),
            groups=pl.col("group").unique().sort(),
            last=pl.col("restart").max(),
        )
        .sort(*_ARM)
        .collect()
    )


_ARM = ["cell", "recipe"]
