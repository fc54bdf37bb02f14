from __future__ import annotations

import json
import math
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from llama_bench import calibration
from llama_bench.calibration import Design
from llama_bench.errors import InputError
from llama_bench.stats.calibration import Calibration, Share, calibrate, truths
from llama_bench.stats.procedures import OURS, PROCEDURES

synthetic = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("synthetic_calibration.py"))))

SMALL = Design(cells=6, restarts=3, blocks=2, runs=4)


def rates(found: Calibration, slowdown: float) -> dict[str, Share]:
    return {rate.procedure: rate.claimed for rate in found.rates if rate.slowdown == slowdown}


def changed(rows: dict[str, pl.DataFrame], **datasets: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {**rows, **datasets}


@pytest.fixture(scope="module")
def large() -> Calibration:
    """Many pairs whose processes differ by 1 %, with few runs each."""
    design = Design(cells=400, slowed_every=2, blocks=2, runs=5)
    return calibrate(synthetic.frames(*synthetic.measured(design, seed=5)))


@pytest.fixture
def small() -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    return synthetic.measured(SMALL)  # type: ignore[no-any-return]


def test_on_equal_programs_ours_errs_in_five_percent_and_the_others_in_many(large: Calibration) -> None:
    claimed = rates(large, 0.0)
    assert claimed[OURS].n == 400
    low, high = claimed[OURS].interval()
    assert low < 0.05 < high
    assert high < 0.09
    assert claimed["U test"].k > 5 * claimed[OURS].k
    assert all(share.k > 2 * claimed[OURS].k for name, share in claimed.items() if name != OURS)


def test_a_clear_slowdown_is_found_and_the_truth_lies_in_95_percent_of_the_intervals(large: Calibration) -> None:
    ours = {one.slowdown: one for one in large.ours}
    assert (ours[0.03].found.rate or 0) > 0.9
    assert (ours[0.01].found.rate or 0) < 0.6
    for one in large.ours:
        low, high = one.covered.interval(0.999)
        assert low < 0.95 < high
    # the loops of the synthetic runs end late: the truth is their clock's, not the share that was asked for
    assert ours[0.03].truth == pytest.approx(0.03 * 1.025, rel=0.02)


def test_what_is_found_has_the_right_sign_and_the_others_claim_the_wrong_one_too(large: Calibration) -> None:
    slowed = [rate for rate in large.rates if rate.slowdown == 0.01]
    wrong = {rate.procedure: rate.claimed.k - rate.found.k for rate in slowed}
    assert wrong["U test"] > 0
    assert wrong[OURS] <= 0.01 * 200
    counted = large.comparisons.filter(pl.col("slowdown") == 0.01)["U test"].to_list()
    assert wrong["U test"] == counted.count(-1)


def test_among_narrow_intervals_found_and_covered_are_counted_apart(large: Calibration) -> None:
    for one in large.ours:
        rows = large.comparisons.filter(pl.col("slowdown") == one.slowdown)
        narrow = rows.filter((pl.col("high") - pl.col("low")) / 2 <= 0.01)
        assert one.reached == Share(len(narrow), len(rows))
        assert 0 < len(narrow) < len(rows)
        assert one.covered_reached == Share(int(narrow["covered"].sum()), len(narrow))
        if one.slowdown:
            assert one.found_reached == Share(narrow[OURS].to_list().count(1), len(narrow))


def test_the_truth_is_what_the_busy_loops_clock_says_averaged_as_the_ratios_are() -> None:
    rows = pl.DataFrame(
        {
            "cell": "c", "recipe": "slower_3", "control": False, "restart": 0, "group": 0,
            "block": [0, 0, 1], "seconds": [1.1, 1.2, 1.5], "busy_s": [0.1, 0.2, None],
        }
    )  # fmt: skip
    [truth] = truths(rows.lazy())["truth"].to_list()
    assert truth == pytest.approx(((math.log(1.1) + math.log(1.2)) / 2 + 0.0) / 2)


def test_the_intervals_are_those_of_the_restarts_with_steins_variance(
    small: tuple[dict[str, Any], dict[str, pl.DataFrame]],
) -> None:
    run, rows = small
    found = calibrate(synthetic.frames(run, rows)).comparisons
    assert found["recipe"].to_list() == ["control"] * 3 + ["slower_1", "slower_3"] + ["control"] * 3 + [
        "slower_1",
        "slower_3",
    ]
    one = found.filter(pl.col("workload") == "cell-0003", pl.col("recipe") == "slower_3").to_dicts()[0]
    blocks = rows["blocks"].filter(pl.col("workload") == "cell-0003", ~pl.col("control"))
    mean = blocks.group_by("recipe", "restart").agg(pl.col("log_seconds").mean()).sort("restart")
    arm, base = (mean.filter(pl.col("recipe") == name)["log_seconds"] for name in ("slower_3", "original"))
    y = np.array(arm) - np.array(base)
    assert one["y"] == pytest.approx(y.mean())
    assert (one["high"] - one["low"]) / 2 == pytest.approx(4.302653 * y.std(ddof=1) / math.sqrt(3))


def test_blocks_that_were_dropped_change_nothing(small: tuple[dict[str, Any], dict[str, pl.DataFrame]]) -> None:
    run, rows = small
    spoiled = {}
    for name, column in (("timings", "seconds"), ("blocks", "log_seconds")):
        again = rows[name].filter(pl.col("block") == 0).with_columns(
            pl.lit(9, pl.Int64).alias("block"), pl.lit(False).alias("kept"), pl.col(column) * 2,
            disturbed=pl.lit("steal 12 %"),
        )  # fmt: skip
        spoiled[name] = pl.concat([again, rows[name]], how="diagonal")
    before = calibrate(synthetic.frames(run, rows))
    after = calibrate(synthetic.frames(run, changed(rows, **spoiled)))
    assert after.comparisons.equals(before.comparisons)
    assert (before.blocks.all, before.blocks.dropped, before.blocks.flagged) == (36, 0, 0)
    assert (after.blocks.all, after.blocks.dropped, after.blocks.flagged) == (54, 18, 0)


def test_restarts_that_confirm_do_not_count(small: tuple[dict[str, Any], dict[str, pl.DataFrame]]) -> None:
    run, rows = small
    extra = {
        name: pl.concat(
            [rows[name], rows[name].with_columns(pl.lit("confirm").alias("phase"), pl.col("restart") + 100)]
        )
        for name in ("timings", "blocks")
    }
    before = calibrate(synthetic.frames(run, rows)).comparisons
    assert calibrate(synthetic.frames(run, changed(rows, **extra))).comparisons.equals(before)


def _spoil(rows: dict[str, pl.DataFrame], mine: pl.Expr, how: str) -> dict[str, pl.DataFrame]:
    """Take something from the control or from `slower_3` of one cell."""
    control, slowed = mine & pl.col("control"), mine & (pl.col("recipe") == "slower_3")
    timings, blocks = rows["timings"], rows["blocks"]
    if how == "last restart":
        gone = control & (pl.col("restart") == 2)
        return changed(rows, timings=timings.filter(~gone), blocks=blocks.filter(~gone))
    if how == "not finite":
        log = pl.when(control).then(pl.lit(float("nan"))).otherwise("log_seconds")
        return changed(rows, blocks=blocks.with_columns(log_seconds=log))
    if how == "no seconds":
        return changed(rows, timings=timings.with_columns(seconds=pl.when(~control).then("seconds")))
    if how == "no loop":
        return changed(rows, timings=timings.with_columns(busy_s=pl.when(~slowed).then("busy_s")))
    if how == "all loop":
        busy = pl.when(slowed).then("seconds").otherwise("busy_s")
        return changed(rows, timings=timings.with_columns(busy_s=busy))
    where = rows["machines"]
    other = where.filter(pl.col("cell") == where["cell"][2]).with_columns(hostname=pl.lit("another"))
    return changed(rows, machines=pl.concat([where, other]))


@pytest.mark.parametrize(
    ("how", "kind", "reason"),
    [
        ("last restart", "unfinished", "control has 2 of 3 restarts"),
        ("not finite", "void", "control: the ratio of 3 of 3 restarts is not a finite number"),
        ("no seconds", "void", "control: runs without positive, finite seconds"),
        ("no loop", "void", "slower_3: its busy loop took nothing, or all, of a run"),
        ("all loop", "void", "slower_3: its busy loop took nothing, or all, of a run"),
        ("another machine", "void", "timed on two machines"),
    ],
)
def test_a_cell_without_a_result_is_left_out_and_said(
    small: tuple[dict[str, Any], dict[str, pl.DataFrame]], how: str, kind: str, reason: str
) -> None:
    run, rows = small
    whole = calibrate(synthetic.frames(run, rows)).comparisons
    found = calibrate(synthetic.frames(run, _spoil(rows, pl.col("workload") == "cell-0003", how)))
    [left_out] = found.left_out
    assert (left_out.workload, left_out.kind, left_out.reason) == ("cell-0003", kind, reason)
    assert found.comparisons.equals(whole.filter(pl.col("workload") != "cell-0003"))


def test_a_lost_restart_that_was_done_again_leaves_nothing_out_and_an_arm_given_up_does(
    small: tuple[dict[str, Any], dict[str, pl.DataFrame]],
) -> None:
    run, rows = small
    third = run["cells"][2]
    lost = changed(rows, failures=synthetic.failure(third, "lost", "killed"))
    assert calibrate(synthetic.frames(run, lost)).left_out == ()
    given_up = changed(
        _spoil(rows, pl.col("workload") == "cell-0003", "last restart"),
        failures=synthetic.failure(third, "OutOfMemoryError", "too\nlarge"),
    )
    [left_out] = calibrate(synthetic.frames(run, given_up)).left_out
    assert (left_out.kind, left_out.reason) == ("failed", "control: slot: too large")


def test_where_nothing_was_measured_no_rate_is_given_and_every_cell_is_left_out() -> None:
    run, _ = synthetic.measured(SMALL)
    found = calibrate(synthetic.frames(run, {}))
    assert [cell.kind for cell in found.left_out] == ["unfinished"] * 6
    assert found.comparisons.is_empty()
    assert {rate.claimed.rate for rate in found.rates} == {None}
    assert {one.covered.n for one in found.ours} == {0}
    failed = calibrate(synthetic.frames(run, {"failures": synthetic.failure(None, "WorkError", "no room")}))
    assert {(cell.kind, cell.reason) for cell in failed.left_out} == {("failed", "build: no room")}


def test_a_calibration_without_slowed_cells_has_false_alarms_alone() -> None:
    design = Design(cells=5, slowed_every=0, restarts=3, blocks=2, runs=4)
    found = calibrate(synthetic.frames(*synthetic.measured(design)))
    assert {rate.slowdown for rate in found.rates} == {0.0}
    assert [rate.procedure for rate in found.rates] == list(PROCEDURES)
    assert found.comparisons["recipe"].to_list() == ["control"] * 5


def test_the_order_of_rows_and_of_cells_changes_nothing(
    small: tuple[dict[str, Any], dict[str, pl.DataFrame]],
) -> None:
    run, rows = small
    shuffled = {name: table.sample(fraction=1, shuffle=True, seed=3) for name, table in rows.items()}
    turned = {**run, "cells": list(reversed(run["cells"]))}
    first = calibrate(synthetic.frames(run, rows)).comparisons
    second = calibrate(synthetic.frames(turned, shuffled)).comparisons
    floats = [name for name, kind in first.schema.items() if kind == pl.Float64]
    assert second.drop(floats).equals(first.drop(floats))
    np.testing.assert_allclose(second.select(floats).to_numpy(), first.select(floats).to_numpy(), atol=1e-12)


def test_a_run_of_a_sweep_is_no_calibration(small: tuple[dict[str, Any], dict[str, pl.DataFrame]]) -> None:
    run, rows = small
    sweep = json.loads(json.dumps({**run["sweep"], "name": "report"}))
    with pytest.raises(InputError, match="no calibration"):
        calibrate(synthetic.frames({**run, "sweep": sweep}, rows))
    assert calibration.number(run["cells"][0]["workload"]) == 1
