"""What must hold for every run: from rows of the datasets through ratios and verdicts to the view."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_bench.stats.ratios import Estimate, estimate, restart_ratios, stein_total, t_quantile
from llama_bench.stats.speedups import speedups
from llama_bench.stats.verdicts import Comparison, Q, benjamini_hochberg, judge
from llama_bench.sweep import CONTROL

PILOT = 3
NUMBERS = ["time_s", "mean_s", "speedup", "low", "high", "level", "saved", "saved_low", "saved_high", "smallest_effect"]
COUNTS = ["restarts", "runs", "verdict", "nodes_changed", "no_op"]

few = settings(deadline=None, max_examples=20)

seeds = st.integers(0, 2**32 - 1)
truths = st.lists(st.sampled_from([0.8, 0.97, 0.99, 1.0, 1.01, 1.05, 1.5]), min_size=1, max_size=3)
spreads = st.sampled_from([0.001, 0.005, 0.02, 0.1])
ln_seconds = st.floats(-9.0, 3.0)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def make(synthetic: ModuleType) -> Callable[..., Any]:
    """A run as a measurement writes it: arms a, b, … with the given true ratios, every block kept."""

    def world(ratios: Iterable[float], spread: float, seed: int) -> Any:
        recipes = {name: synthetic.Truth(ratio, executed=name) for name, ratio in zip("abcdef", ratios, strict=False)}
        made = synthetic.world(
            recipes, restarts=PILOT + 1, pilot=PILOT, blocks=2, runs=2, spread=spread, seed=seed % 2**32
        )
        for rows in made.rows.values():
            for row in rows:
                row |= {"phase": "main", "kept": True}
        return type(made)(made.run, {name: _known_columns(synthetic, name, rows) for name, rows in made.rows.items()})

    return world


def _known_columns(synthetic: ModuleType, dataset: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = set(synthetic.SCHEMAS[dataset].names)
    return [{key: value for key, value in row.items() if key in names} for row in rows]


def changed(world: Any, change: Callable[[str, dict[str, Any]], dict[str, Any] | None]) -> Any:
    """Return the world with each row as `change` (of dataset and row) gives it, without those it gives None for."""
    rows = {
        name: [new for row in rows if (new := change(name, dict(row))) is not None] for name, rows in world.rows.items()
    }
    return type(world)(world.run, rows)


def with_cells(world: Any, **columns: Any) -> Any:
    run = world.run | {"cells": [cell | columns for cell in world.run["cells"]]}
    return type(world)(run, world.rows)


def view(world: Any) -> dict[str, dict[str, Any]]:
    """Return the view's rows by recipe (a world here has one cell)."""
    rows = speedups(world.run, world.datasets()).to_dicts()
    assert len({row["recipe"] for row in rows}) == len(rows)
    return {row["recipe"]: row for row in rows}


def ratios_of(world: Any, baseline: str = "original") -> dict[str, list[float]]:
    """Return y of each arm, one a restart."""
    [cell] = world.run["cells"]
    table = restart_ratios(world.datasets()["blocks"], {cell["id"]: baseline})
    grouped = table.group_by("recipe", maintain_order=True).agg("y")
    return dict(grouped.iter_rows())


def assert_same(
    one: Mapping[str, Any], other: Mapping[str, Any], *, to: float = 1e-12, but: Iterable[str] = ()
) -> None:
    """Assert that two rows of the view agree: words, counts and gaps exactly, numbers `to` a relative difference.

    Not to the last bit: the engine sums and takes logarithms of several values at once, and which ones depends on the
    row numbers.
    """
    for column in COUNTS:
        assert one[column] == other[column], column
    for column in set(NUMBERS) - set(but):
        numbers = one[column], other[column]
        same = numbers[0] == numbers[1] if None in numbers else math.isclose(*numbers, rel_tol=to, abs_tol=to)
        assert same, (column, *numbers)


def standard_error(row: Mapping[str, Any]) -> float:
    """Return the standard error of mean y that an interval in the view was made from, NaN where there is none."""
    if row["low"] is None:
        return math.nan
    half = (math.log(row["high"]) - math.log(row["low"])) / 2
    return half / t_quantile(0.5 + row["level"] / 2, PILOT - 1)


@few
@given(ratio=st.sampled_from([0.8, 0.99, 1.0, 1.02, 1.5]), spread=spreads, seed=seeds)
def test_swapping_baseline_and_arm_flips_the_sign_and_inverts_speedup_and_interval(
    make: Callable[..., Any], ratio: float, spread: float, seed: int
) -> None:
    # without the control, which is the first baseline again and would be no A/A pair of the second
    there = changed(make([ratio], spread, seed), lambda _, row: None if row.get("control") else row)
    back = with_cells(there, baseline="a")
    assert ratios_of(there)["a"] == [-y for y in ratios_of(back, "a")["original"]]
    one, other = view(there)["a"], view(back)["original"]
    assert other["speedup"] == pytest.approx(1 / one["speedup"], rel=1e-12)
    assert other["low"] == pytest.approx(1 / one["high"], rel=1e-12)
    assert other["high"] == pytest.approx(1 / one["low"], rel=1e-12)
    opposite = {"faster": "slower", "slower": "faster"}
    assert other["verdict"] == opposite.get(one["verdict"], one["verdict"])
    assert other["smallest_effect"] == pytest.approx(one["smallest_effect"])


@few
@given(ratios=truths, spread=spreads, seed=seeds, factor=st.floats(1e-3, 1e3))
def test_scaling_every_time_changes_no_ratio_and_no_verdict(
    make: Callable[..., Any], ratios: list[float], spread: float, seed: int, factor: float
) -> None:
    def scale(dataset: str, row: dict[str, Any]) -> dict[str, Any]:
        if dataset == "timings":
            row["seconds"] *= factor
        if dataset == "blocks":
            row["log_seconds"] += math.log(factor)
        return row

    world = make(ratios, spread, seed)
    before, after = view(world), view(changed(world, scale))
    assert before.keys() == after.keys()
    for name, row in before.items():
        assert_same(row, after[name], to=1e-9, but=["time_s", "mean_s"])
        assert after[name]["mean_s"] == pytest.approx(row["mean_s"] * factor, rel=1e-9)
        assert after[name]["time_s"] == pytest.approx(row["time_s"] * factor, rel=1e-9)


@few
@given(ratios=truths, spread=spreads, seed=seeds, order=st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    make: Callable[..., Any], ratios: list[float], spread: float, seed: int, order: Any
) -> None:
    world = make(ratios, spread, seed)
    shuffled = type(world)(world.run, {name: order.sample(rows, len(rows)) for name, rows in world.rows.items()})
    before, after = view(world), view(shuffled)
    assert list(before) == list(after)
    for name, row in before.items():
        assert_same(row, after[name], to=1e-9)
    for name, y in ratios_of(world).items():
        assert ratios_of(shuffled)[name] == pytest.approx(y, abs=1e-12)


@few
@given(ratios=st.lists(st.sampled_from([0.8, 0.99, 1.0, 1.5]), min_size=2, max_size=4), spread=spreads, seed=seeds)
def test_adding_an_arm_changes_no_other_arms_estimate_or_variance(
    make: Callable[..., Any], ratios: list[float], spread: float, seed: int
) -> None:
    more = make(ratios, spread, seed)
    added = "abcdef"[len(ratios) - 1]
    [cell] = more.run["cells"]
    fewer = with_cells(
        changed(more, lambda _, row: None if row.get("recipe") == added else row),
        arms=[name for name in cell["arms"] if name != added],
    )
    assert added in ratios_of(more)
    assert added not in ratios_of(fewer)
    for name, y in ratios_of(fewer).items():
        beside = ratios_of(more)[name]
        assert beside == y
        one, other = estimate(y, PILOT), estimate(beside, PILOT)
        assert (one.mean, one.sd, one.df, one.restarts) == (other.mean, other.sd, other.df, other.restarts)
    before, after = view(fewer), view(more)
    for name, row in before.items():
        # the level may change with the family; what the interval is made of may not
        assert standard_error(after[name]) == pytest.approx(standard_error(row), rel=1e-9, nan_ok=True)
        assert (after[name]["speedup"], after[name]["restarts"]) == (row["speedup"], row["restarts"])
        for column in ("time_s", "time_low_s", "time_high_s", "mean_s", "median_s", "p90_s"):
            assert after[name][column] == pytest.approx(row[column], rel=1e-12), (name, column)


@few
@given(ratios=truths, spread=spreads, seed=seeds, dropped=st.sets(st.integers(0, PILOT), max_size=PILOT + 1))
def test_a_block_that_was_not_kept_counts_as_little_as_one_that_is_not_there(
    make: Callable[..., Any], ratios: list[float], spread: float, seed: int, dropped: set[int]
) -> None:
    def spoilt(row: dict[str, Any]) -> bool:
        return row.get("block") == 1 and row["restart"] in dropped

    def flag(_: str, row: dict[str, Any]) -> dict[str, Any]:
        if spoilt(row):
            row["kept"] = False
            if "seconds" in row:
                row["seconds"] *= 7.0 + len(row["recipe"])
            if "log_seconds" in row:
                row["log_seconds"] += 2.0 + len(row["recipe"])
        return row

    world = make(ratios, spread, seed)
    there, gone = changed(world, flag), changed(world, lambda _, row: None if spoilt(row) else row)
    assert len(there.rows["blocks"]) == len(gone.rows["blocks"]) + len(dropped) * (len(ratios) + 2)
    before, after = view(there), view(gone)
    for name, row in before.items():
        assert_same(row, after[name])


@few
@given(ratios=truths, spread=spreads, seed=seeds, names=st.permutations(["zeta", "Ω", "a b", "0"]))
def test_renaming_arms_changes_nothing_but_names(
    make: Callable[..., Any], ratios: list[float], spread: float, seed: int, names: list[str]
) -> None:
    new = dict(zip(["original", "a", "b", "c"], names, strict=True)) | {CONTROL: CONTROL}

    def rename(_: str, row: dict[str, Any]) -> dict[str, Any]:
        if row.get("recipe") is not None:
            row["recipe"] = new[row["recipe"]]
        return row

    world = make(ratios, spread, seed)
    [cell] = world.run["cells"]
    renamed = with_cells(
        changed(world, rename), arms=[new[name] for name in cell["arms"]], baseline=new[cell["baseline"]]
    )
    before, after = view(world), view(renamed)
    assert list(after) == [new[name] for name in before]
    for name, row in before.items():
        assert_same(row, after[new[name]])


@few
@given(ratios=st.lists(st.sampled_from([0.8, 0.98, 1.0, 1.02]), min_size=1, max_size=6), spread=spreads, seed=seeds)
def test_an_interval_excludes_one_exactly_when_the_verdict_is_faster_or_slower(
    make: Callable[..., Any], ratios: list[float], spread: float, seed: int
) -> None:
    found = {name: row for name, row in view(make(ratios, spread, seed)).items() if name in "abcdef"}
    assert len(found) == len(ratios)
    assume(all(row["verdict"] != "void" for row in found.values()))  # once in a thousand the control differs
    for row in found.values():
        assert (row["low"] > 1) == (row["verdict"] == "faster")
        assert (row["high"] < 1) == (row["verdict"] == "slower")
        assert row["low"] <= row["speedup"] <= row["high"]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.floats(-0.2, 0.2), min_size=4, max_size=4), min_size=1, max_size=6))
def test_interval_and_verdict_agree_whatever_the_ratios(family: list[list[float]]) -> None:
    arms = {f"a{i}": Comparison(tuple(y)) for i, y in enumerate(family)}
    for name, verdict in judge(arms, pilot=4, margin=0.02).items():
        if verdict.interval is None:
            assert verdict.word == "inconclusive"
            continue
        low, high = verdict.interval
        # at the very edge the last digit decides
        assume(abs(math.log(low)) > 1e-12)
        assume(abs(math.log(high)) > 1e-12)
        assert (low > 1 or high < 1) == (verdict.word in ("faster", "slower")), name


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(ln_seconds, ln_seconds), min_size=2, max_size=8),
    st.floats(-9.0, 9.0),
    st.integers(2, 8),
)
def test_a_common_change_of_every_slot_moves_no_ratio(
    slots: list[tuple[float, float]], change: float, pilot: int
) -> None:
    def found(by: float) -> Estimate:
        rows = [
            {"cell": "c", "restart": r, "group": 0, "block": 0, "recipe": arm, "control": False, "log_seconds": v + by,
             "phase": "main", "kept": True}
            for r, pair in enumerate(slots)
            for arm, v in zip(("original", "a"), pair, strict=True)
        ]  # fmt: skip
        return estimate(restart_ratios(pl.LazyFrame(rows), {"c": "original"})["y"].to_list(), pilot)

    one, other = found(0.0), found(change)
    assert other.mean == pytest.approx(one.mean, abs=1e-12)
    assert other.sd == pytest.approx(one.sd, abs=1e-12)


pilots = st.lists(st.floats(-0.5, 0.5), min_size=2, max_size=8)


@settings(deadline=None)
@given(pilots, st.floats(1e-4, 0.5), st.floats(1e-4, 0.5))
def test_a_narrower_interval_never_asks_for_fewer_restarts(pilot: list[float], one: float, other: float) -> None:
    narrow, wide = sorted((one, other))
    assert stein_total(pilot, narrow) >= stein_total(pilot, wide) >= len(pilot)


@settings(deadline=None)
@given(pilots, st.floats(1e-4, 0.5), st.floats(1.0, 10.0))
def test_a_noisier_pilot_never_asks_for_fewer_restarts(pilot: list[float], half_width: float, times: float) -> None:
    assert stein_total([times * y for y in pilot], half_width) >= stein_total(pilot, half_width)


@settings(deadline=None)
@given(pilots, st.floats(1e-3, 0.5), seeds)
def test_restarts_that_were_asked_for_reach_the_half_width(pilot: list[float], half_width: float, seed: int) -> None:
    total = stein_total(pilot, half_width)
    assume(np.std(pilot) > 1e-9)
    assume(total < 10_000)
    rest = np.random.default_rng(seed).normal(0, 1, total - len(pilot)).tolist()
    low, high = estimate([*pilot, *rest], len(pilot)).interval()
    assert (high - low) / 2 <= half_width * (1 + 1e-9)


@settings(deadline=None)
@given(p_values, st.data())
def test_a_smaller_p_value_takes_no_rejection_away(p: list[float], data: st.DataObject) -> None:
    smaller = [data.draw(st.floats(0, value)) for value in p]
    assert bool(np.all(benjamini_hochberg(smaller) >= benjamini_hochberg(p)))


@settings(deadline=None)
@given(p_values, st.sampled_from([0.01, Q, 0.2]))
def test_benjamini_hochberg_rejects_what_scipy_rejects(p: list[float], q: float) -> None:
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control(p, method="bh")
    # where a p-value is its own threshold the last digit decides
    assume(np.all(np.abs(adjusted - q) > 1e-12))
    assert benjamini_hochberg(p, q).tolist() == (adjusted <= q).tolist()


@settings(deadline=None)
@given(p_values, st.randoms(use_true_random=False))
def test_the_order_of_p_values_changes_no_rejection(p: list[float], order: Any) -> None:
    places = list(range(len(p)))
    order.shuffle(places)
    rejected = benjamini_hochberg(p)
    assert benjamini_hochberg([p[i] for i in places]).tolist() == [bool(rejected[i]) for i in places]
