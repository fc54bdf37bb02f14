"""The method keeps its promises in simulation, and the simulation can tell a method that does not."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from llama_bench.stats import simulation
from llama_bench.stats.ratios import Estimate, restart_ratios, stein_total
from llama_bench.stats.simulated import SETTINGS, Arm, Array, Setting, Spikes, log_seconds, measure, ratios
from llama_bench.stats.simulation import Rate, own_variance, simulate

BY_NAME = {setting.name: setting for setting in SETTINGS}


def setting(name: str) -> Setting:
    return BY_NAME[name]


def broken(rates: list[Rate]) -> set[str]:
    return {rate.what for rate in rates if not rate.within}


def pooled_variance(y: Array, pilot: int) -> list[Estimate]:
    """Return estimates with one variance for all arms of a cell, as an analysis of variance has it."""
    own = own_variance(y, pilot)
    sd = math.sqrt(sum(found.sd**2 for found in own) / len(own))
    return [Estimate(found.mean, sd, sum(each.df for each in own), found.restarts) for found in own]


def normal_quantiles(y: Array, pilot: int) -> list[Estimate]:
    """Return estimates that take the spread for known: ±1.96 standard errors."""
    return [Estimate(found.mean, found.sd, 10**6, found.restarts) for found in own_variance(y, pilot)]


def all_restarts_variance(y: Array, pilot: int) -> list[Estimate]:
    """Return estimates that take the spread from all restarts, though the pilot's spread decided their number."""
    return own_variance(y, len(y))


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NAME)
def test_ten_thousand_cells_keep_every_promise(name: str) -> None:
    rates = simulate(setting(name), 10_000, seed=7)
    assert len(rates) >= 5
    assert [rate for rate in rates if not rate.within] == []


@pytest.mark.parametrize("name", BY_NAME)
def test_a_few_cells_show_no_broken_promise(name: str) -> None:
    assert broken(simulate(setting(name), 400, seed=7)) == set()


def test_pooling_the_variance_over_arms_is_seen_to_fail_where_one_arm_is_noisier() -> None:
    found = simulate(setting("one arm three times noisier"), 400, seed=7, method=pooled_variance)
    rates = {rate.what: rate.measured for rate in found}
    assert rates["noisy: false alarms at 5 %"] > 0.10
    assert rates["quiet: false alarms at 5 %"] < 0.01
    assert {"noisy: false alarms at 5 %", "quiet: false alarms at 5 %", "noisy: 95 % interval covers"} <= broken(found)


@pytest.mark.parametrize("name", ["equal variances", "drift", "three restarts"])
def test_taking_the_spread_for_known_is_seen_to_fail(name: str) -> None:
    rates = simulate(setting(name), 400, seed=7, method=normal_quantiles)
    assert {"same: false alarms at 5 %", "same: 95 % interval covers"} <= broken(rates)


def test_a_second_stage_that_forgets_the_pilots_variance_is_seen_to_fail() -> None:
    rates = simulate(setting("two stages"), 400, seed=7, method=all_restarts_variance)
    assert "noisy: wanted half-width reached" in broken(rates)


def test_a_level_that_ignores_the_number_of_arms_is_seen_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = simulation.judge

    def one_by_one(compared: dict[str, simulation.Comparison], **options: float) -> dict[str, simulation.Verdict]:
        return {
            name: judge({name: arm}, **options)[name]  # type: ignore[arg-type]
            for name, arm in compared.items()
        }

    monkeypatch.setattr(simulation, "judge", one_by_one)
    rates = simulate(setting("eight arms, none changed"), 400, seed=7)
    assert {"cell: false discoveries", "cell: intervals of called arms that miss"} <= broken(rates)


def test_a_wider_margin_than_the_one_promised_is_seen_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    equivalent = simulation.equivalent
    monkeypatch.setattr(simulation, "equivalent", lambda found, margin: equivalent(found, margin * 1.2))
    rates = simulate(setting("equivalence within 2 %"), 400, seed=7)
    assert {"2 % slower: equivalent", "2 % faster: equivalent"} <= broken(rates)


def test_a_headline_from_the_restarts_that_chose_it_is_seen_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = list(measure(setting("the fastest of eight, confirmed"), 400, np.random.default_rng(6)))
    monkeypatch.setattr(simulation, "measure", lambda *_: iter(cells))
    assert "headline: 95 % lower bound holds" not in broken(
        simulate(setting("the fastest of eight, confirmed"), 400, 7)
    )
    monkeypatch.setattr(simulation, "ratios", lambda _: np.stack(cells))  # no fresh restarts: the same again
    assert "headline: 95 % lower bound holds" in broken(simulate(setting("the fastest of eight, confirmed"), 400, 7))


def test_the_drawn_y_is_what_restart_ratios_makes_of_the_same_slots() -> None:
    drawn = log_seconds(setting("drift"), 3, 4, np.random.default_rng(1))
    names = ["original", "a", "b"]
    rows = [
        {
            "cell": str(cell),
            "restart": restart,
            "group": 0,
            "block": block,
            "recipe": names[arm],
            "control": False,
            "phase": "main",
            "kept": True,
            "log_seconds": float(drawn[cell, restart, block, arm]),
        }
        for cell, restart, block, arm in np.ndindex(drawn.shape)
    ]
    found = restart_ratios(pl.LazyFrame(rows), dict.fromkeys("012", "original"))
    expected = ratios(drawn)
    assert found.height == expected.size
    for row in found.iter_rows(named=True):
        y = expected[int(row["cell"]), row["restart"], names.index(row["recipe"]) - 1]
        assert row["y"] == pytest.approx(y, abs=1e-12)


@pytest.mark.parametrize("name", BY_NAME)
def test_drawn_cells_have_the_spread_and_the_effect_that_their_promises_are_made_of(name: str) -> None:
    one = setting(name)
    y = ratios(log_seconds(one, 5000, one.restarts, np.random.default_rng(2))).reshape(-1, one.slots - 1)
    arms = [*one.each, *([Arm("control", one.spread)] if one.control else [])]
    for column, arm in zip(y.T, arms, strict=True):
        sd = one.true_sd(arm)
        assert column.std() == pytest.approx(sd, rel=0.04)
        assert abs(column.mean() - one.true_effect(arm)) < 4 * sd / math.sqrt(len(column))


def test_what_the_arms_of_a_block_share_cancels() -> None:
    still = Setting("shared", (Arm("a"),), slot_spread=0.0, shared=0.5, trend=0.3)
    y = ratios(log_seconds(still, 2000, 6, np.random.default_rng(3)))
    assert y.std() == pytest.approx(0.01 * math.sqrt(2), rel=0.04)


def test_spikes_of_one_side_make_y_skew_and_spikes_of_both_do_not() -> None:
    def skewness(baseline: bool) -> float:
        spiky = Setting("spikes", (Arm("a"),), spikes=Spikes(0.05, 0.3, baseline))
        y = ratios(log_seconds(spiky, 20_000, 1, np.random.default_rng(4))).ravel()
        return float((((y - y.mean()) / y.std()) ** 3).mean())

    assert skewness(baseline=True) == pytest.approx(0, abs=0.1)
    # by hand: the skewness 2.06 of Bin(4, 5 %), diluted by the processes to 0.80 of the variance
    assert skewness(baseline=False) == pytest.approx(1.48, abs=0.1)


@pytest.mark.parametrize("budget", [None, 9])
def test_a_cell_makes_as_many_restarts_as_its_noisiest_arm_asks_for_and_its_budget_allows(budget: int | None) -> None:
    two = Setting("stages", (Arm("quiet", 0.002), Arm("noisy", 0.02)), half_width=0.01, budget=budget)
    lengths = set()
    for y in measure(two, 200, np.random.default_rng(5)):
        asked = max(stein_total(column, 0.01) for column in y[:6].T.tolist())
        assert len(y) == min(asked, budget or asked)
        lengths.add(len(y))
    assert len(lengths) > 2


def test_a_trend_goes_on_where_the_pilot_ended() -> None:
    one = Setting("trend", (Arm("a", 0.0),), spread=0.0, slot_spread=0.0, shared=0.0, trend=0.1)
    later = log_seconds(one, 1, 2, np.random.default_rng(0), first=6)
    assert later[0, :, 0, 0].tolist() == pytest.approx([0.6, 0.7])


def test_the_same_seed_gives_the_same_rates_and_another_gives_others() -> None:
    first, again, other = (simulate(setting("drift"), 50, seed) for seed in (1, 1, 2))
    assert first == again
    assert [rate.measured for rate in first] != [rate.measured for rate in other]


@pytest.mark.parametrize(
    ("sign", "measured", "within"),
    [
        ("=", 0.05, True),
        ("=", 0.06, False),
        ("=", 0.04, False),
        ("≤", 0.04, True),
        ("≤", 0.06, False),
        ("≥", 0.06, True),
        ("≥", 0.04, False),
    ],
)
def test_a_promise_is_broken_on_its_own_side_only(sign: str, measured: float, within: bool) -> None:
    # the standard error of 5 % in 10,000 cells is 0.22 %
    assert Rate("s", "w", measured, sign, 0.05, 10_000).within == within


def test_power_of_the_smallest_visible_effect_is_what_was_asked_for() -> None:
    for chance in (0.5, 0.8, 0.95):
        one = Setting("power", (Arm("a", seen=chance),))
        assert one.power(one.arms[0]) == pytest.approx(chance, abs=1e-6)


def test_steins_power_knows_no_variance() -> None:
    # t(0.975; 5) = 2.5706: P(T₅ > 2.5706 · (1 − 1.5)) = P(T₅ < 1.2853) = 0.8725, whatever the spread
    for spread in (0.01, 0.1, 1.0):
        two = Setting("stein", (Arm("a", spread, effect=0.015),), half_width=0.01)
        assert two.power(two.arms[0]) == pytest.approx(0.8725, abs=1e-4)
