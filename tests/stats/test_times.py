"""Times of arms from raw timings."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import polars as pl
import pytest

from llama_bench.stats.ratios import CONFIRM, MAIN, t_quantile
from llama_bench.stats.times import TIMES, arm_times


def timings(seconds: dict[str, list[list[float]]]) -> pl.LazyFrame:
    rows = [
        {"cell": "c", "restart": r, "recipe": arm, "control": False, "seconds": s}
        for arm, restarts in seconds.items()
        for r, restart in enumerate(restarts)
        for s in restart
    ]
    return pl.LazyFrame(rows, schema_overrides={"seconds": pl.Float64})


def test_times_of_an_arm_are_over_runs_and_their_interval_over_restarts() -> None:
    [row] = arm_times(timings({"a": [[1.0, 4.0], [2.0, 2.0]]})).to_dicts()
    assert (row["restarts"], row["runs"], row["unusable"]) == (2, 4, 0)
    assert row["mean_s"] == pytest.approx(2.25)
    assert row["median_s"] == pytest.approx(2.0)
    assert row["p90_s"] == pytest.approx(3.4)
    assert row["time_s"] == pytest.approx(2.0)
    assert row["time_low_s"] == pytest.approx(2.0)
    [spread] = arm_times(timings({"a": [[1.0], [math.e]]})).to_dicts()
    # ln: 0 and 1, mean 1/2, standard error 1/2, t(0.975; 1) = 12.7062
    assert spread["time_high_s"] == pytest.approx(math.exp(0.5 + 12.7062 / 2), rel=1e-4)


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 0.0, -1.0, None])
def test_one_unusable_run_takes_the_arms_times_away(bad: Any) -> None:
    [row] = arm_times(timings({"a": [[1.0, bad], [2.0, 2.0]]})).to_dicts()
    assert row["unusable"] == 1
    assert row["mean_s"] is None
    assert row["time_low_s"] is None


def test_times_are_those_of_kept_runs_in_the_main_phase() -> None:
    rows = timings({"a": [[1.0, 9.0], [2.0, 2.0], [50.0, 50.0]]}).with_columns(
        kept=pl.col("seconds") != 9.0, phase=pl.when(pl.col("restart") == 2).then(pl.lit("confirm"))
    )
    [row] = arm_times(rows).to_dicts()
    assert (row["restarts"], row["runs"]) == (2, 3)
    assert row["mean_s"] == pytest.approx(5 / 3)
    [fresh] = arm_times(rows, CONFIRM).to_dicts()
    assert fresh["mean_s"] == 50.0


def test_runs_that_all_take_the_same_time_are_marked_constant() -> None:
    rows = arm_times(timings({"a": [[1.0, 1.0], [1.0, 1.0]], "b": [[1.0, 1.5]], "c": [[1.0]]}))
    assert dict(rows.select("recipe", "constant").iter_rows()) == {"a": True, "b": False, "c": False}


def test_one_restart_has_times_but_no_interval() -> None:
    [row] = arm_times(timings({"a": [[1.0, 2.0]]})).to_dicts()
    assert row["mean_s"] == pytest.approx(1.5)
    assert row["time_low_s"] is None


def test_cells_looked_at_one_by_one_give_what_all_together_give() -> None:
    whole = pl.concat(
        timings({"b": [[1.0, 2.0], [3.0, 1.5]], "a": [[2.0, 2.5]]}).with_columns(cell=pl.lit(cell)) for cell in "yxz"
    )
    parts = [whole.filter(pl.col("cell") == cell) for cell in "zxy"]
    assert arm_times(parts).equals(arm_times(whole))
    assert arm_times(whole).select("cell", "recipe").rows() == [(cell, arm) for cell in "xyz" for arm in "ab"]


def test_rows_in_any_order_give_the_times_that_plain_python_gives() -> None:
    rng = random.Random(1)
    rows = [
        {
            "cell": cell,
            "restart": restart,
            "recipe": arm,
            "control": control,
            "phase": rng.choice([None, "main"]) if restart < 4 else "confirm",
            "kept": rng.choice([None, True, False]),
            "seconds": math.exp(rng.gauss(-3, 0.3)),
        }
        for cell in ("c", "d")
        for restart in range(6)
        for arm, control in (("original", False), ("a", False), ("b", False), ("original", True))
        for _ in range(12)
    ]
    rng.shuffle(rows)
    for phase, restarts in ((MAIN, 4), (CONFIRM, 2)):
        found = arm_times(pl.LazyFrame(rows), phase)
        assert found.select("cell", "recipe").rows() == [
            (c, a) for c in "cd" for a in ("a", "b", "control", "original")
        ]
        for row in found.iter_rows(named=True):
            assert row["restarts"] == restarts
            assert {name: row[name] for name in ("runs", *TIMES)} == pytest.approx(plain(rows, row, phase), rel=1e-11)


def plain(rows: list[dict[str, Any]], wanted: dict[str, Any], phase: str) -> dict[str, float]:
    by_restart: dict[int, list[float]] = {}
    for row in rows:
        arm = (row["cell"], "control" if row["control"] else row["recipe"])
        counts = row["kept"] is not False and (row["phase"] or MAIN) == phase
        if counts and arm == (wanted["cell"], wanted["recipe"]):
            by_restart.setdefault(row["restart"], []).append(row["seconds"])
    runs = [seconds for restart in by_restart.values() for seconds in restart]
    means = [statistics.fmean(map(math.log, restart)) for restart in by_restart.values()]
    mean = statistics.fmean(means)
    half = t_quantile(0.975, len(means) - 1) * statistics.stdev(means) / len(means) ** 0.5
    return {
        "runs": len(runs),
        "mean_s": statistics.fmean(runs),
        "median_s": statistics.median(runs),
        "p90_s": statistics.quantiles(runs, n=10, method="inclusive")[-1],
        "time_s": math.exp(mean),
        "time_low_s": math.exp(mean - half),
        "time_high_s": math.exp(mean + half),
    }


def test_without_any_timings_there_are_no_rows_and_every_column() -> None:
    assert arm_times([]).height == 0
    assert arm_times([]).columns == arm_times(timings({"a": [[1.0]]})).columns
