"""The times of an arm's runs: warm-up, how they are spread, and whether a slot's first run is like its later ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from llama_bench.stats.ratios import MAIN, counting, name_arms, t_quantile


@dataclass(frozen=True, slots=True)
class First:
    """How much longer a slot's first timed run takes than its later ones: mean of ln(seconds), a t interval.

    The interval is over restarts, at 95 %; without one (a single restart) `low` and `high` are None.
    """

    mean: float
    low: float | None
    high: float | None
    restarts: int


@dataclass(frozen=True, slots=True)
class Shape:
    """An arm's timed runs in seconds (main phase, kept blocks), and what came before them.

    `warmup_runs` are the least, median and most of all restarts; `steady` says of how many of the `restarts` that tell
    the last runs of the warm-up agreed. `deviation` is the standard deviation of ln(seconds) of runs in one slot.
    """

    runs: int
    least_s: float
    median_s: float
    mean_s: float
    p90_s: float
    most_s: float
    deviation: float | None
    warmup_runs: tuple[float, float, float] | None
    steady: int
    restarts: int
    first: First | None


def shape(timings: pl.DataFrame, machines: pl.DataFrame, arm: str) -> Shape | None:
    """Return the shape of an arm's runs from its cell's rows of `timings` (:func:`timings_of`) and of `machines`."""
    mine = timings.filter(pl.col("recipe") == arm)
    seconds = mine["seconds"]
    if mine.is_empty() or not bool((seconds.is_finite() & (seconds > 0)).fill_null(False).all()):
        return None
    logs = mine.with_columns(log=pl.col("seconds").log())
    in_slot = logs.group_by("restart", "group", "block").agg(pl.col("log").var(), n=pl.len()).drop_nulls("log")
    weights = (in_slot["n"] - 1).to_numpy()
    of_arm = machines.filter(pl.col("recipe") == arm)
    warm, steady = of_arm["warmup_runs"].drop_nulls(), of_arm["steady"].drop_nulls()
    return Shape(
        runs=len(mine),
        least_s=float(seconds.to_numpy().min()),
        median_s=float(np.median(seconds.to_numpy())),
        mean_s=float(seconds.to_numpy().mean()),
        p90_s=float(np.quantile(seconds.to_numpy(), 0.9)),
        most_s=float(seconds.to_numpy().max()),
        deviation=math.sqrt(float((in_slot["log"].to_numpy() * weights).sum()) / weights.sum())
        if len(weights)
        else None,
        warmup_runs=(float(warm.to_numpy().min()), float(np.median(warm.to_numpy())), float(warm.to_numpy().max()))
        if len(warm)
        else None,
        steady=int(steady.sum()),
        restarts=len(steady),
        first=first_run(logs),
    )


def first_run(logs: pl.DataFrame) -> First | None:
    """Return what the first run of a slot takes more than the later ones; None where slots have one run.

    `logs` has restart, group, block, run_index and log (ln seconds) of one arm. The replicate is the restart.
    """
    slot = ["restart", "group", "block"]
    parts = logs.group_by(slot).agg(
        first=pl.col("log").filter(pl.col("run_index") == 0).mean(),
        later=pl.col("log").filter(pl.col("run_index") > 0).mean(),
    )
    more = parts.drop_nulls().group_by("restart").agg((pl.col("first") - pl.col("later")).mean().alias("more"))
    return _interval(more.sort("restart")["more"].to_list())


def timings_of(timings: pl.LazyFrame, cell: str, arms: Sequence[str]) -> pl.DataFrame:
    """Return the timings that count of some arms of one cell: restart, group, block, run_index, recipe, seconds."""
    rows = name_arms(counting(timings.filter(pl.col("cell") == cell), MAIN)).filter(pl.col("recipe").is_in(list(arms)))
    return rows.select("restart", "group", "block", "run_index", "recipe", "seconds").collect()


def _interval(values: Sequence[float]) -> First | None:
    if not values:
        return None
    mean, n = float(np.mean(values)), len(values)
    if n < 2:
        return First(mean, None, None, n)
    half = t_quantile(0.975, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return First(mean, mean - half, mean + half, n)
