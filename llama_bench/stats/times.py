"""The times of every arm, from raw timings: a cell at a time, since a run may have a hundred million of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import polars as pl

from llama_bench.stats.ratios import DIGITS, LEVEL, MAIN, counting, name_arms, t_quantile

TIMES = ("mean_s", "median_s", "p90_s", "time_s", "time_low_s", "time_high_s")

_ARM = ["cell", "recipe"]


def arm_times(timings: pl.LazyFrame | Sequence[pl.LazyFrame], phase: str = MAIN) -> pl.DataFrame:
    """Return one row an arm: its restarts, runs and unusable runs, and its times in seconds.

    All timings of a cell are in one of the frames; the frames are looked at one after the other, as many at a time as
    there are cores. mean_s, median_s and p90_s (linear between neighbours) are over all timed runs of blocks that were
    kept. `time_s` is the geometric mean: exp of the mean over restarts of the mean of ln(seconds); time_low_s and
    time_high_s are the ends of its 95 % t interval over restarts (null for one restart). `unusable` counts runs whose
    seconds are missing, not finite or not positive; an arm with such a run has no times, rather than times of the runs
    that happened to work. `constant` says that all of several runs took exactly the same time.
    """
    frames = [timings] if isinstance(timings, pl.LazyFrame) else timings
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(partial(_over_restarts, phase=phase), frames or [_nothing()]))
    table = pl.concat(found).sort(_ARM)
    restarts = table["restarts"].to_list()
    t = pl.Series("t", [t_quantile(0.5 + LEVEL / 2, n - 1) if n > 1 else None for n in restarts], dtype=pl.Float64)
    half = pl.col("t") * pl.col("sd") / pl.col("restarts").sqrt()
    table = table.with_columns(t).with_columns(
        time_s=pl.col("mean").exp(), time_low_s=(pl.col("mean") - half).exp(), time_high_s=(pl.col("mean") + half).exp()
    )
    return table.select(
        *_ARM,
        "restarts",
        "runs",
        "unusable",
        "constant",
        # how polars splits a sum between threads is not fixed, and with it the last bit: a report would change
        *(pl.when(pl.col("unusable") == 0).then(pl.col(c).round_sig_figs(DIGITS)).alias(c) for c in TIMES),
    )


def _over_restarts(timings: pl.LazyFrame, phase: str) -> pl.DataFrame:
    """Return one row an arm of one frame, from one pass over its rows."""
    seconds, runs = pl.col("seconds"), pl.col("seconds").explode()
    usable = (seconds.is_finite() & (seconds > 0)).fill_null(False)
    each = (
        counting(timings, phase)
        .group_by(*_ARM, "control", "restart", maintain_order=True)
        .agg(seconds, mean=seconds.log().mean(), unusable=(~usable).sum(), runs=pl.len())
    )
    # arms are named when they are few: a name for each run would take as long as all else
    return (
        name_arms(each)
        .collect()
        .group_by(*_ARM, maintain_order=True)
        .agg(
            runs=pl.col("runs").sum(),
            unusable=pl.col("unusable").sum(),
            constant=(pl.col("runs").sum() > 1) & (runs.min() == runs.max()),
            mean_s=runs.mean(),
            median_s=runs.median(),
            p90_s=runs.quantile(0.9, "linear"),
            restarts=pl.len(),
            mean=pl.col("mean").mean(),
            sd=pl.col("mean").std(),
        )
    )


def _nothing() -> pl.LazyFrame:
    columns = {
        "cell": pl.String,
        "recipe": pl.String,
        "control": pl.Boolean,
        "restart": pl.Int64,
        "seconds": pl.Float64,
    }
    return pl.LazyFrame(schema=columns)
