"""Differences between an arm and its baseline, slot by slot: the restarts' ratios, their spread, drift. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from llama_bench.stats.ratios import CONFIRM, MAIN, counting, name_arms, t_quantile

OUTLIER_P = 0.01
"""A restart is called an outlier where its distance has a smaller chance than this among equal ones."""

LEAST_DF = 3
"""Degrees of freedom below which a slope's interval says nothing."""

BLOCK = ["restart", "group", "block"]


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart of an arm: y = ln(arm / baseline) over its blocks, how many were kept and dropped, and by what."""

    restart: int
    phase: str
    y: float
    blocks: int
    dropped: int
    flagged: int
    disturbed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outlier:
    """A restart further from the others than chance explains, and y's mean without it. It counts all the same."""

    restart: int
    p: float
    mean_without: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the spread of y comes from: standard deviations of one block's ratio within a restart and between restarts.

    `between` is beyond what blocks alone would give (0 where they explain all); `share` is its part of the variance of
    a restart's mean; `p` of the F test that there is nothing between.
    """

    within: float
    between: float
    share: float
    p: float


@dataclass(frozen=True, slots=True)
class Slope:
    """A straight line: `slope` in ln seconds a step with its 95 % interval and two-sided p-value, over `n` values."""

    slope: float
    low: float
    high: float
    p: float
    n: int


def of_cell(blocks: pl.LazyFrame, cell: str) -> pl.DataFrame:
    """Return the slots of one cell from the dataset `blocks`, arms by their names, sorted as they were timed."""
    return name_arms(blocks.filter(pl.col("cell") == cell)).sort("restart", "group", "block", "position").collect()


def differences(slots: pl.DataFrame, arm: str, baseline: str, phase: str = MAIN) -> pl.DataFrame:
    """Return one row a block that counts and has both: restart, group, block, y and the block's own columns.

    `slots` are those of :func:`of_cell`. y = ln seconds of the arm − ln seconds of the baseline.
    """
    kept = counting(slots.lazy(), phase).collect()
    mine = kept.filter(pl.col("recipe") == arm)
    base = kept.filter(pl.col("recipe") == baseline).select(*BLOCK, base="log_seconds", base_position="position")
    joined = mine.join(base, on=BLOCK, maintain_order="left")
    return joined.with_columns(y=pl.col("log_seconds") - pl.col("base")).filter(pl.col("y").is_finite())


def restarts(slots: pl.DataFrame, arm: str, baseline: str) -> tuple[Restart, ...]:
    """Return the arm's restarts in both phases, in their order."""
    found = []
    for phase in (MAIN, CONFIRM):
        pairs = differences(slots, arm, baseline, phase)
        for (restart,), blocks in pairs.group_by("restart", maintain_order=True):
            all_of_it = slots.filter(recipe=arm, restart=restart)
            dropped = all_of_it.filter(pl.col("kept").eq(False))
            said = all_of_it["disturbed"].drop_nulls().unique(maintain_order=True)
            by_group = blocks.group_by("group", maintain_order=True).agg(pl.col("y").mean())
            found.append(
                Restart(
                    restart=int(str(restart)),
                    phase=phase,
                    y=float(by_group["y"].to_numpy().mean()),
                    blocks=len(blocks),
                    dropped=len(dropped),
                    flagged=int((all_of_it["kept"].ne_missing(False) & all_of_it["disturbed"].is_not_null()).sum()),
                    disturbed=tuple(said),
                )
            )
    return tuple(found)


def outlier(y: Sequence[float]) -> tuple[int, float] | None:
    """Return the place of the value furthest from the mean, and its p-value, where that is below OUTLIER_P.

    Grubbs (1950), "Sample Criteria for Testing Outlying Observations", two-sided: G = max |y − mean| / s; the p-value
    is Bonferroni's bound n · P(|t(n − 2)| ≥ √(n(n − 2)G² / ((n − 1)² − nG²))), at most 1. None of fewer than three.
    """
    from scipy.special import stdtr

    values = np.asarray(y, dtype=float)
    n = len(values)
    if n < 3 or not np.isfinite(values).all() or (s := float(values.std(ddof=1))) == 0:
        return None
    apart = np.abs(values - values.mean()) / s
    at = int(apart.argmax())
    g2 = float(apart[at]) ** 2
    left = (n - 1) ** 2 - n * g2
    p = 0.0 if left <= 0 else min(1.0, n * 2 * float(stdtr(n - 2, -math.sqrt(n * (n - 2) * g2 / left))))
    return (at, p) if p < OUTLIER_P else None


def spread(pairs: pl.DataFrame) -> Spread | None:
    """Return the variance components of block ratios (:func:`differences`); None without two blocks in some restart.

    One-way analysis of variance with random effects (Searle, Casella & McCulloch 1992, "Variance Components", chapter
    3): between = (MS between − MS within) / n₀, no less than 0, where n₀ = (N − Σn²/N) / (r − 1).
    """
    from scipy.special import fdtrc

    groups = [block["y"].to_numpy() for _, block in pairs.group_by("restart", "group", maintain_order=True)]
    sizes = np.array([len(values) for values in groups])
    total, r = int(sizes.sum()), len(groups)
    if r < 2 or total <= r:
        return None
    means = np.array([values.mean() for values in groups])
    within = sum(float(((values - values.mean()) ** 2).sum()) for values in groups) / (total - r)
    grand = float((sizes * means).sum()) / total
    between_ms = float((sizes * (means - grand) ** 2).sum()) / (r - 1)
    n0 = (total - float((sizes**2).sum()) / total) / (r - 1)
    between = max(0.0, (between_ms - within) / n0)
    if within == 0:
        return None
    share = between / (between + within / n0)
    return Spread(math.sqrt(within), math.sqrt(between), share, float(fdtrc(r - 1, total - r, between_ms / within)))


def slope(x: Sequence[float], y: Sequence[float], within: Sequence[object] | None = None) -> Slope | None:
    """Return the least-squares slope of `y` over `x`, both centred in each group of `within` (one group if left out).

    Its t interval has as many degrees of freedom as there are values less groups less one. None where x does not vary
    inside a group, or fewer than LEAST_DF are left.
    """
    from scipy.special import stdtr

    frame = pl.DataFrame({"x": list(map(float, x)), "y": list(map(float, y))})
    frame = frame.with_columns(
        g=pl.Series([str(one) for one in within] if within is not None else ["all"] * len(frame))
    )
    centred = frame.with_columns(pl.col("x", "y") - pl.col("x", "y").mean().over("g"))
    xs, ys = centred["x"].to_numpy(), centred["y"].to_numpy()
    df, sxx = len(frame) - frame["g"].n_unique() - 1, float((xs**2).sum())
    if df < LEAST_DF or sxx == 0:
        return None
    b = float((xs * ys).sum()) / sxx
    error = math.sqrt(float(((ys - b * xs) ** 2).sum()) / df / sxx)
    half = t_quantile(0.975, df) * error
    p = 2 * float(stdtr(df, -abs(b) / error)) if error else float(b == 0)
    return Slope(b, b - half, b + half, p, len(frame))


def own_blocks(slots: pl.DataFrame, arm: str, phase: str = MAIN) -> pl.DataFrame:
    """Return the arm's slots that count, whether the baseline is there or not; y is null."""
    kept = counting(slots.lazy(), phase).filter(pl.col("recipe") == arm).collect()
    return kept.with_columns(y=pl.lit(None, dtype=pl.Float64))


def shared(slots: pl.DataFrame) -> pl.DataFrame:
    """Return one row a block that counts: block, log (mean ln seconds of all arms) and of (its restart and group)."""
    kept = counting(slots.lazy(), MAIN).filter(pl.col("log_seconds").is_finite()).collect()
    means = kept.group_by(BLOCK, maintain_order=True).agg(log=pl.col("log_seconds").mean())
    return means.with_columns(of=pl.format("{}/{}", "restart", "group"))


def baseline_restarts(slots: pl.DataFrame, baseline: str) -> list[float]:
    """Return the baseline's mean of ln seconds in each restart of the main phase, in their order."""
    kept = counting(slots.lazy(), MAIN).filter(pl.col("recipe") == baseline, pl.col("log_seconds").is_finite())
    return kept.group_by("restart").agg(pl.col("log_seconds").mean()).sort("restart").collect()["log_seconds"].to_list()
