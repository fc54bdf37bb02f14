"""Restarts, their spread, outliers and drift, on data of which the truth is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from llama_bench.stats.slots import Slope, differences, outlier, restarts, shared, slope, spread


def pairs(within: float, between: float, *, count: int = 400, blocks: int = 4, seed: int = 1) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    y = rng.normal(0, between, (count, 1)) + rng.normal(0, within, (count, blocks))
    rows = [(r, 0, b, float(y[r, b])) for r in range(count) for b in range(blocks)]
    return pl.DataFrame(rows, schema=["restart", "group", "block", "y"], orient="row")


@pytest.mark.parametrize(("within", "between"), [(0.02, 0.01), (0.01, 0.03)])
def test_the_spread_within_restarts_is_told_from_that_between_them(within: float, between: float) -> None:
    found = spread(pairs(within, between))
    assert found is not None
    assert found.within == pytest.approx(within, rel=0.1)
    assert found.between == pytest.approx(between, rel=0.2)
    assert found.share == pytest.approx(between**2 / (between**2 + within**2 / 4), rel=0.2)
    assert found.p < 1e-6


def test_where_blocks_explain_all_nothing_is_between() -> None:
    found = spread(pairs(0.02, 0.0))
    assert found is not None
    assert found.between < 0.005
    assert found.p > 0.01
    values = [block["y"].to_numpy() for _, block in pairs(0.02, 0.0).group_by("restart", maintain_order=True)]
    assert found.p == pytest.approx(stats.f_oneway(*values).pvalue)


def test_one_block_a_restart_tells_no_components() -> None:
    assert spread(pairs(0.02, 0.01, blocks=1)) is None


def test_a_restart_far_from_the_others_is_an_outlier_and_usual_ones_are_not() -> None:
    assert outlier([0.01, 0.012, 0.009, 0.011, 0.2, 0.01]) is not None
    assert (outlier([0.01, 0.012, 0.009, 0.011, 0.2, 0.01]) or (0, 0))[0] == 4
    assert outlier([0.01, 0.02]) is None
    assert outlier([0.01, 0.01, 0.01]) is None
    rng = np.random.default_rng(3)
    named = sum(outlier(rng.normal(0, 1, 8).tolist()) is not None for _ in range(2000))
    assert named / 2000 < 0.02  # at most 1 % of normal samples, and a little chance


def test_a_slope_is_that_of_least_squares_with_its_interval() -> None:
    rng = np.random.default_rng(5)
    x = np.arange(20.0)
    y = 0.01 * x + rng.normal(0, 0.02, 20)
    found, truth = slope(x.tolist(), y.tolist()), stats.linregress(x, y)
    assert found is not None
    assert (found.slope, found.p) == pytest.approx((truth.slope, truth.pvalue))
    half = stats.t.ppf(0.975, 18) * truth.stderr
    assert (found.low, found.high) == pytest.approx((truth.slope - half, truth.slope + half))


def drifting(by: float, seed: int = 7) -> Slope | None:
    """Blocks of restarts whose levels differ much, and that drift by `by` a block."""
    rng = np.random.default_rng(seed)
    rows = [(r, b, 3.0 * r + by * b + rng.normal(0, 0.01)) for r in range(6) for b in range(4)]
    return slope([b for _, b, _ in rows], [y for _, _, y in rows], [r for r, _, _ in rows])


def test_drift_inside_restarts_is_found_whatever_their_levels_are_and_none_where_there_is_none() -> None:
    found = drifting(0.02)
    assert found is not None
    assert found.low < 0.02 < found.high
    assert found.p < 1e-6
    p = [one.p for seed in range(100) if (one := drifting(0.0, seed))]
    assert np.mean(np.array(p) < 0.05) < 0.12
    assert len(p) == 100


def test_a_slope_of_too_little_is_none() -> None:
    assert slope([0, 1, 2], [1.0, 2.0, 4.0]) is None
    assert slope([1] * 9, list(range(9))) is None
    assert slope([], []) is None


def rows(**changes: object) -> pl.DataFrame:
    """Two restarts of two blocks; the last is a fresh one, and its second block was dropped."""
    found = []
    for restart, phase in ((0, "main"), (1, "confirm")):
        for block in range(2):
            for position, (arm, log) in enumerate((("original", 0.0), ("fused", -0.1 * (1 + block)))):
                place = {"restart": restart, "group": 0, "block": block, "position": position, "phase": phase}
                kept = not (restart == 1 and block == 1)
                said = None if kept else "the hypervisor took 9 %"
                found.append({**place, "recipe": arm, "log_seconds": log, "kept": kept, "disturbed": said, **changes})
    return pl.DataFrame(found, schema_overrides={"disturbed": pl.String})


def test_restarts_have_their_mean_and_say_what_was_dropped_and_why() -> None:
    main, fresh = restarts(rows(), "fused", "original")
    assert (main.restart, main.phase, main.blocks, main.dropped, main.flagged) == (0, "main", 2, 0, 0)
    assert main.y == pytest.approx(-0.15)
    assert (fresh.restart, fresh.phase, fresh.blocks, fresh.dropped) == (1, "confirm", 1, 1)
    assert fresh.y == pytest.approx(-0.1)
    assert fresh.disturbed == ("the hypervisor took 9 %",)


def test_a_disturbed_block_that_was_kept_is_flagged() -> None:
    main, _ = restarts(rows(kept=True, disturbed="steal"), "fused", "original")
    assert (main.flagged, main.dropped) == (2, 0)


def test_differences_are_made_in_the_same_block_alone() -> None:
    lacking = rows().filter(~((pl.col("recipe") == "original") & (pl.col("block") == 0)))
    assert differences(lacking, "fused", "original")["y"].to_list() == pytest.approx([-0.2])
    assert shared(rows())["log"].to_list() == pytest.approx([-0.05, -0.1])
