"""Rank correlations, and what words stood in how many blocks."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from llama_bench.stats.surroundings import processes, spearman, words


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_correlation_is_spearmans_with_ties_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, 30).astype(float)
    y = x + rng.normal(0, 4, 30)
    found, truth = spearman(x.tolist(), y.tolist()), stats.spearmanr(x, y)
    assert found == pytest.approx((truth.statistic, truth.pvalue))


def test_too_few_values_and_constant_ones_have_no_correlation() -> None:
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) is None
    assert spearman([1.0] * 9, list(range(9))) is None
    assert spearman(list(range(9)), list(range(9))) == (1.0, 0.0)


def test_an_empty_text_was_looked_at_and_null_was_not() -> None:
    rows = pl.DataFrame({"throttle": ["power cap", "", None, "power cap", "idle"]})
    [found] = words(rows, ["throttle"], "block")
    assert (found.values, found.words) == (4, (("power cap", 2), ("idle", 1)))


def test_processes_are_told_by_what_differs_and_memory_is_a_median() -> None:
    blank = dict.fromkeys(("provider", "node", "hostname", "cpu", "gpu", "device_bytes"))
    rows = [
        {**blank, "recipe": recipe, "niceness": 0, "threads": threads, "peak_bytes": peak}
        for recipe, threads, peak in (("fast", 2, 30), ("fast", 2, 10), ("fast", 2, 20), ("original", 4, 90))
    ]
    found = {one.what: (one.arm, one.baseline) for one in processes(pl.DataFrame(rows), "fast", "original")}
    assert found == {"niceness": (("0",), ("0",)), "threads": (("2",), ("4",)), "peak_bytes": (("20",), ("90",))}
