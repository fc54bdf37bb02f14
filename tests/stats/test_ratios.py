from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_bench.stats.ratios import (
    CONFIRM,
    Estimate,
    counting,
    estimate,
    group_ratios,
    restart_ratios,
    saved,
    slot_counts,
    stein_total,
)

BASELINES = {"c": "original"}


def blocks(values: dict[str, list[list[float]]], *, control: str | None = None) -> pl.LazyFrame:
    """Rows of the dataset from arm → restarts → ln seconds of each block."""
    rows = [
        {"cell": "c", "restart": r, "group": 0, "block": b, "recipe": arm, "control": arm == control, "log_seconds": v}
        for arm, restarts in values.items()
        for r, restart in enumerate(restarts)
        for b, v in enumerate(restart)
    ]
    return pl.LazyFrame(rows)


def ys(rows: pl.LazyFrame, arm: str, baseline: str = "original") -> list[float]:
    found: list[float] = restart_ratios(rows, {"c": baseline}).filter(pl.col("recipe") == arm)["y"].to_list()
    return found


def test_a_known_ratio_is_recovered_whatever_drifts_between_blocks() -> None:
    drift = [[0.0, 0.3], [-0.2, 0.1], [5.0, 4.0]]
    faster = [[value + math.log(0.8) for value in restart] for restart in drift]
    y = ys(blocks({"original": drift, "fast": faster}), "fast")
    assert len(y) == 3
    assert estimate(y, pilot=3).speedup == pytest.approx(1.25, rel=1e-12)
    assert saved(estimate(y, pilot=3).speedup) == pytest.approx(0.2, rel=1e-12)


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.lists(st.floats(-5, 5), min_size=2, max_size=2), min_size=2, max_size=5))
def test_swapping_two_arms_flips_the_sign_and_turns_the_interval_over(noise: list[list[float]]) -> None:
    rows = blocks({"original": [[0.0, 0.0]] * len(noise), "other": noise})
    there, back = ys(rows, "other"), ys(rows, "original", baseline="other")
    assert there == [-value for value in back]
    low, high = estimate(there, pilot=2).speedup_interval()
    low_back, high_back = estimate(back, pilot=2).speedup_interval()
    assert low == pytest.approx(1 / high_back)
    assert high == pytest.approx(1 / low_back)


@settings(deadline=None)  # the first call imports scipy
@given(st.floats(1e-6, 1e6))
def test_another_unit_of_time_changes_no_ratio(scale: float) -> None:
    values = {"original": [[0.1, 0.2], [0.3, 0.1]], "other": [[0.2, 0.2], [0.1, 0.4]]}
    scaled = {arm: [[v + math.log(scale) for v in r] for r in restarts] for arm, restarts in values.items()}
    assert ys(blocks(scaled), "other") == pytest.approx(ys(blocks(values), "other"), abs=1e-12)


def test_only_blocks_and_groups_of_one_restart_are_compared() -> None:
    rows = pl.LazyFrame(
        [
            {"cell": "c", "restart": 0, "group": g, "block": 0, "recipe": arm, "control": control, "log_seconds": value}
            for g, arm, control, value in [
                (0, "original", False, 1.0),
                (0, "a", False, 1.5),
                (0, "original", True, 1.1),
                (1, "original", False, 3.0),
                (1, "b", False, 3.25),
                (1, "original", True, 3.3),
            ]
        ]
    )
    found = {row["recipe"]: row["y"] for row in restart_ratios(rows, BASELINES).to_dicts()}
    assert found == pytest.approx({"a": 0.5, "b": 0.25, "control": 0.2})


def test_a_block_without_a_value_spoils_its_restart_visibly() -> None:
    rows = blocks({"original": [[1.0, 1.0]], "other": [[1.0, float("nan")]]})
    missing = rows.with_columns(pl.col("log_seconds").fill_nan(None))
    assert math.isnan(ys(rows, "other")[0])
    assert math.isnan(ys(missing, "other")[0])


def test_a_block_in_which_an_arm_has_no_slot_is_left_out_for_that_arm_alone() -> None:
    rows = blocks({"original": [[0.0, 5.0]], "other": [[0.25, 9.0]], "whole": [[0.5, 5.5]]})
    rows = rows.filter(~((pl.col("recipe") == "other") & (pl.col("block") == 1)))
    assert ys(rows, "other") == [0.25]
    assert ys(rows, "whole") == [0.5]
    without = rows.filter(~((pl.col("recipe") == "original") & (pl.col("block") == 0)))
    assert ys(without, "other") == []
    assert ys(without, "whole") == [0.5]


def test_only_kept_rows_of_the_wanted_phase_count_and_null_is_kept_and_main() -> None:
    rows = blocks({"original": [[0.0, 0.0]] * 3, "other": [[0.25, 9.0], [0.5, 0.5], [7.0, 7.0]]}).with_columns(
        kept=pl.when(pl.col("restart") == 0).then(pl.col("block") == 0),
        phase=pl.when(pl.col("restart") == 2).then(pl.lit("confirm")),
    )
    assert ys(rows, "other") == [0.25, 0.5]
    assert restart_ratios(rows, BASELINES, CONFIRM)["y"].to_list() == [7.0]


def test_rows_without_the_columns_are_all_kept_and_main() -> None:
    rows = blocks({"original": [[0.0]], "other": [[0.25]]})
    assert counting(rows).collect().height == 2
    assert counting(rows, CONFIRM).collect().height == 0
    nulls = rows.with_columns(kept=pl.lit(None), phase=pl.lit(None))
    assert counting(nulls).collect().height == 2


def test_a_group_has_its_own_ratios() -> None:
    rows = pl.concat(
        blocks({"original": [[0.0]], "a": [[0.5]]}, control=None).with_columns(group=pl.lit(group, pl.Int64))
        for group in (0, 1)
    ).with_columns(pl.col("log_seconds") * (1 + pl.col("group")))
    assert group_ratios(rows, BASELINES).select("group", "y").rows() == [(0, 0.5), (1, 1.0)]
    assert ys(rows, "a") == [0.75]


def test_slots_are_counted_against_the_fullest_arm_of_their_restart() -> None:
    rows = blocks({"original": [[0.0, 0.0], [0.0, 0.0]], "a": [[0.5, 0.5], [0.5, 0.5]], "b": [[0.1, 0.1]]})
    rows = rows.filter(~((pl.col("recipe") == "a") & (pl.col("block") == 1) & (pl.col("restart") == 1)))
    counts = {row["recipe"]: row for row in slot_counts(rows).to_dicts()}
    assert [counts[name]["slots"] for name in ("original", "a", "b")] == [4, 3, 2]
    assert [counts[name]["missing"] for name in ("original", "a", "b")] == [0, 1, 0]
    assert [counts[name]["restarts"] for name in ("original", "a", "b")] == [2, 2, 1]
    assert (counts["a"]["last"], counts["b"]["last"], counts["b"]["groups"]) == (1, 0, [0])


def test_stein_asks_for_what_the_hand_calculation_asks() -> None:
    # s² = 0.0004, t(0.975; 2) = 4.30265: 4.30265² · 0.0004 / 0.02² = 18.51
    assert stein_total([0.00, 0.02, 0.04], half_width=0.02) == 19
    # wide enough already: never fewer than the pilot
    assert stein_total([0.00, 0.02, 0.04], half_width=0.5) == 3


def test_a_pilot_that_says_nothing_of_the_spread_asks_for_no_more() -> None:
    assert stein_total([], 0.01) == 0
    assert stein_total([0.1], 0.01) == 1
    assert stein_total([0.1, float("inf"), 0.2], 0.01) == 3


def test_the_interval_keeps_the_pilots_variance_and_degrees_of_freedom() -> None:
    found = estimate([0.00, 0.02, 0.04, 9.0, -9.0], pilot=3)
    assert (found.df, found.restarts) == (2, 5)
    assert found.sd == pytest.approx(0.02)
    assert found.mean == pytest.approx(0.012)
    low, high = found.interval(0.95)
    assert high - low == pytest.approx(2 * 4.302653 * 0.02 / math.sqrt(5), rel=1e-6)


def test_steins_two_stages_keep_the_wanted_width_and_the_level() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(2000):
        pilot = rng.normal(0, 0.01, 6)
        y = [*pilot, *rng.normal(0, 0.01, stein_total(pilot.tolist(), 0.008) - 6)]
        low, high = estimate(y, pilot=6).interval()
        assert high - low <= 0.016 + 1e-12
        covered += low <= 0 <= high
    assert 0.935 < covered / 2000 < 0.965


@pytest.mark.parametrize(
    ("spread", "restarts", "percent"),
    [(0.01, 3, 3.3), (0.01, 6, 1.4), (0.01, 10, 1.0), (0.005, 3, 1.6), (0.005, 6, 0.7), (0.005, 10, 0.5)],
)
def test_the_smallest_visible_effect_agrees_with_the_simulated_one(
    spread: float, restarts: int, percent: float
) -> None:
    effect = Estimate(0.0, spread, restarts - 1, restarts).smallest_effect()
    assert 100 * effect == pytest.approx(percent, abs=0.06)


def test_inflation_multiplies_the_standard_error_everywhere() -> None:
    y = [0.010, 0.014, 0.009, 0.012]
    plain, wide = estimate(y, 4), estimate(y, 4, inflation=3.0)
    assert (wide.mean, wide.sd, wide.df, wide.speedup) == (plain.mean, plain.sd, plain.df, plain.speedup)
    assert wide.standard_error == pytest.approx(3 * plain.standard_error)
    low, high = plain.interval()
    wide_low, wide_high = wide.interval()
    assert wide_high - wide_low == pytest.approx(3 * (high - low))
    assert wide.p_value() > plain.p_value()
    assert math.log1p(wide.smallest_effect()) == pytest.approx(3 * math.log1p(plain.smallest_effect()))


def test_p_value_and_interval_tell_the_same_story() -> None:
    found = estimate([0.010, 0.014, 0.009, 0.012], pilot=4)
    edge = 1 - found.p_value()
    low, _ = found.interval(edge)
    assert low == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, float("nan")]])
def test_an_interval_of_too_few_or_broken_values_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite values"):
        estimate(values, pilot=6)


def test_importing_the_package_imports_neither_scipy_nor_polars() -> None:
    code = "import sys, llama_bench; sys.exit(bool({'scipy', 'polars'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
