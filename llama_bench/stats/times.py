"""The times of every arm, from raw timings: a cell at a time, since a run may have a hundred million of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from llama_bench.stats.ratios import DIGITS, LEVEL, MAIN, t_quantile
from llama_bench.sweep import CONTROL

TIMES = ("mean_s", "median_s", "p90_s", "time_s", "time_low_s", "time_high_s")

_AT_A_TIME = 2 * (os.cpu_count() or 1)
"""Frames: while some wait for Python's lock or for polars, others keep the cores busy."""

_ARM = ["cell", "recipe"]

_SAID = (*_ARM, "control", "restart", "kept", "phase")
"""What rows say of their slot; not every frame has all of it."""

_FOUND = {
    **dict.fromkeys(_ARM, pl.String),
    **dict.fromkeys(("restarts", "runs", "unusable"), pl.UInt32),
    "constant": pl.Boolean,
    **dict.fromkeys(("mean_s", "median_s", "p90_s", "mean", "sd"), pl.Float64),
}


def arm_times(timings: pl.LazyFrame | Sequence[pl.LazyFrame], phase: str = MAIN) -> pl.DataFrame:
    """Return one row an arm: its restarts, runs and unusable runs, and its times in seconds.

    All timings of a cell are in one of the frames; the frames are looked at one after the other, a few at a time.
    mean_s, median_s and p90_s (linear between neighbours) are over all timed runs of blocks that were kept (those that
    :func:`llama_bench.stats.ratios.counting` leaves). `time_s` is the geometric mean: exp of the mean over restarts of
    the mean of ln(seconds); time_low_s and time_high_s are the ends of its 95 % t interval over restarts (null for one
    restart). `unusable` counts runs whose seconds are missing, not finite or not positive; an arm with such a run has
    no times, rather than times of the runs that happened to work. `constant` says that all of several runs took exactly
    the same time.
    """
    frames = [timings] if isinstance(timings, pl.LazyFrame) else timings
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found = list(chain.from_iterable(pool.map(partial(_arms, phase=phase), frames)))
    table = pl.DataFrame(found, _FOUND).sort(_ARM)
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
        # the last bits are those of the order of a sum, which the next version of a library may change
        *(pl.when(pl.col("unusable") == 0).then(pl.col(c).round_sig_figs(DIGITS)).alias(c) for c in TIMES),
    )


def _arms(timings: pl.LazyFrame, phase: str) -> list[dict[str, Any]]:
    """Return one row an arm of one frame, from one pass over its rows."""
    present = timings.collect_schema()
    rows = timings.select(*(column for column in _SAID if column in present), "seconds").collect()
    seconds = rows.drop_in_place("seconds").to_numpy()  # what is missing becomes nan
    # Rows of a slot stand together and slots are few: to group them takes a fraction of what it takes to group rows.
    slots = rows.to_struct().rle().struct.unnest()
    count = slots["len"].to_numpy().astype(np.int64)
    first = count.cumsum() - count
    found = []
    for (cell, recipe), restarts in _slots_by_arm(slots["value"].struct.unnest(), phase).items():
        of_arm = np.concatenate(restarts)
        runs = np.array([count[of_restart].sum() for of_restart in restarts])
        found.append({"cell": cell, "recipe": recipe, **_times(seconds[_numbers(first[of_arm], count[of_arm])], runs)})
    return found


def _slots_by_arm(slots: pl.DataFrame, phase: str) -> dict[tuple[str, str], list[NDArray[np.uint32]]]:
    """Return for each cell and arm the numbers of its slots in each restart; only slots that count."""
    arms: dict[tuple[str, str], dict[int, list[NDArray[np.uint32]]]] = {}
    alike = slots.with_row_index("slot").group_by(slots.columns, maintain_order=True).agg("slot")
    numbers = alike.drop_in_place("slot")
    # in python, not polars: these are few, and another query would take as long as all else here
    for said, slot in zip(alike.iter_rows(named=True), numbers, strict=True):
        if said.get("kept") is not False and (said.get("phase") or MAIN) == phase:
            restarts = arms.setdefault((said["cell"], CONTROL if said["control"] else said["recipe"]), {})
            restarts.setdefault(said["restart"], []).append(slot.to_numpy())
    return {arm: [np.concatenate(parts) for parts in restarts.values()] for arm, restarts in arms.items()}


def _numbers(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return first, first + 1, … `count` times for each of many, one after another."""
    end = count.cumsum()
    return np.arange(count.sum()) + np.repeat(first - (end - count), count)


def _times(seconds: NDArray[np.float64], counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return what the runs of an arm say; its first restart has the first `counts[0]` of them, and so on."""
    runs, usable = pl.Series(seconds), np.isfinite(seconds) & (seconds > 0)
    with np.errstate(divide="ignore", invalid="ignore"):  # of runs that take the arm's times away
        means = np.add.reduceat(np.log(seconds), counts.cumsum() - counts) / counts
        sd = means.std(ddof=1) if len(means) > 1 else None
    return {
        "restarts": len(counts),
        "runs": len(seconds),
        "unusable": np.count_nonzero(~usable),
        "constant": len(seconds) > 1 and runs.min() == runs.max(),
        "mean_s": runs.mean(),
        "median_s": runs.median(),
        "p90_s": runs.quantile(0.9, "linear"),
        "mean": means.mean(),
        "sd": sd,
    }
