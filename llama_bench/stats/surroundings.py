"""What was seen of the machine in an arm's blocks and restarts, and whether its ratio went along with it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from llama_bench.stats.ratios import MAIN, counting, name_arms
from llama_bench.stats.slots import Restart

OF_BLOCK = ("sm_mhz", "power_w", "steal", "cpu_pressure")
"""Columns of `blocks` that are looked at: a block's, and so the same for all arms in it."""

OF_RESTART = ("cpu_mhz", "load_1m", "steal", "cpu_pressure", "memory_pressure", "sm_mhz", "power_w", "temperature_c")
"""Columns of `machines` that are looked at: the moment in which a restart began."""

WORDS_OF_BLOCK, WORDS_OF_RESTART = ("throttle", "foreign"), ("throttle", "busy")
"""Columns of the two that hold words; an empty text says that there was nothing."""

ENOUGH = 6
"""Values below which no correlation is asked for."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that was measured, over an arm's blocks or restarts and over its baseline's; None: not measured.

    `rho` is Spearman's rank correlation with y = ln(arm / baseline) of the same block or restart, `p` its p-value.
    """

    what: str
    of: str
    values: int
    low: float | None
    median: float | None
    high: float | None
    baseline_low: float | None
    baseline_median: float | None
    baseline_high: float | None
    rho: float | None
    p: float | None


@dataclass(frozen=True, slots=True)
class Said:
    """What words stood in how many blocks or restarts of the arm; `values` are those that could be looked at."""

    what: str
    of: str
    values: int
    words: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Process:
    """How the processes of an arm and of its baseline were set up, and where: distinct values, and median memory."""

    what: str
    arm: tuple[str, ...]
    baseline: tuple[str, ...]


def of_blocks(pairs: pl.DataFrame, slots: pl.DataFrame, baseline: str) -> tuple[Seen, ...]:
    """Return what was seen in the blocks of `pairs` (:func:`llama_bench.stats.slots.differences`) and of all blocks."""
    base = counting(slots.lazy(), MAIN).filter(pl.col("recipe") == baseline).collect()
    return tuple(_seen(column, "block", pairs, base, pairs["y"]) for column in OF_BLOCK)


def of_restarts(machines: pl.DataFrame, arm: str, baseline: str, restarts: Sequence[Restart]) -> tuple[Seen, ...]:
    """Return what was seen as the restarts began; `machines` are the cell's rows, arms by their names."""
    y = {one.restart: one.y for one in restarts if one.phase == MAIN}
    mine = machines.filter(pl.col("recipe") == arm, pl.col("restart").is_in(list(y))).sort("restart")
    base = counting(machines.lazy(), MAIN).filter(pl.col("recipe") == baseline).collect()
    values = pl.Series("y", [y[restart] for restart in mine["restart"]], dtype=pl.Float64)
    return tuple(_seen(column, "restart", mine, base, values) for column in OF_RESTART)


def words(rows: pl.DataFrame, columns: Sequence[str], of: str) -> tuple[Said, ...]:
    """Return how often each text stands in `rows`, the most frequent first."""
    found = []
    for column in columns:
        known = rows[column].drop_nulls()
        counted = known.filter(known != "").value_counts(sort=True, name="n")
        found.append(Said(column, of, len(known), tuple((str(text), int(n)) for text, n in counted.iter_rows())))
    return tuple(found)


SET_UP = ("niceness", "threads", "provider", "node", "hostname", "cpu", "gpu")
MEMORY = ("peak_bytes", "device_bytes")


def processes(machines: pl.DataFrame, arm: str, baseline: str) -> tuple[Process, ...]:
    """Return the set-up of the two arms' processes, as far as it is known of any."""
    mine, base = (machines.filter(pl.col("recipe") == name) for name in (arm, baseline))
    found = [Process(column, _distinct(mine[column]), _distinct(base[column])) for column in SET_UP]
    found += [Process(column, _median(mine[column]), _median(base[column])) for column in MEMORY]
    return tuple(one for one in found if one.arm or one.baseline)


def machines_of(machines: pl.LazyFrame, cell: str) -> pl.DataFrame:
    """Return the rows of `machines` of one cell, arms by their names."""
    return name_arms(machines.filter(pl.col("cell") == cell)).sort("restart", "group").collect()


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | None:
    """Return Spearman's rank correlation and its two-sided p-value; None where fewer than ENOUGH, or one is constant.

    Spearman (1904); p from t = ρ√((n − 2) / (1 − ρ²)) with n − 2 degrees of freedom (Kendall 1970, chapter 5).
    """
    from scipy.special import stdtr

    a, b = _ranks(x), _ranks(y)
    n = len(a)
    if n < ENOUGH or not a.std() or not b.std():
        return None
    rho = float(np.corrcoef(a, b)[0, 1])
    if abs(rho) >= 1 - 1e-12:
        return math.copysign(1.0, rho), 0.0
    return rho, 2 * float(stdtr(n - 2, -abs(rho) * math.sqrt((n - 2) / (1 - rho**2))))


def _ranks(values: Sequence[float]) -> npt.NDArray[np.float64]:
    return pl.Series(values, dtype=pl.Float64).rank("average").to_numpy()


def _seen(column: str, of: str, mine: pl.DataFrame, base: pl.DataFrame, y: pl.Series) -> Seen:
    known, both = mine[column].drop_nulls(), pl.DataFrame({"x": mine[column], "y": y}).drop_nulls()
    rho, p = spearman(both["x"].to_list(), both["y"].to_list()) or (None, None)
    return Seen(column, of, len(known), *_range(known), *_range(base[column].drop_nulls()), rho, p)


def _range(values: pl.Series) -> tuple[float | None, float | None, float | None]:
    if values.is_empty():
        return None, None, None
    numbers = values.cast(pl.Float64).to_numpy()
    return float(numbers.min()), float(np.median(numbers)), float(numbers.max())


def _distinct(values: pl.Series) -> tuple[str, ...]:
    return tuple(str(one) for one in values.drop_nulls().unique().sort())


def _median(values: pl.Series) -> tuple[str, ...]:
    known = values.drop_nulls()
    return (str(int(np.median(known.to_numpy()))),) if len(known) else ()
