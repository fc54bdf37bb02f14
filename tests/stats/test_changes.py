"""Changes between two runs keep their promises: Welch's numbers, false alarms, and what the same programs show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from llama_bench.stats.changes import Restarts, aa_between, average, beside, difference, judge, shares, summary
from llama_bench.stats.ratios import LEVEL, Estimate
from llama_bench.stats.simulated import Arm, Setting, log_seconds

RUNS = Setting("a run with eight arms", (Arm("quiet", 0.005, count=4), Arm("noisy", 0.02, count=4)))


def restarts(values: np.ndarray) -> Restarts:
    return dict(enumerate(values.tolist()))


def estimated(values: np.ndarray, inflation: float = 1.0) -> Estimate:
    found = summary(restarts(values), len(values), inflation)
    assert isinstance(found, Estimate)
    return found


def arms(rng: np.random.Generator, drift: float = 0.0) -> np.ndarray:
    """ln seconds of the restarts of one cell, restarts × arms, the baseline first; all of it shifted by `drift`."""
    return log_seconds(RUNS, 1, RUNS.restarts, rng)[0].mean(axis=1) + drift


def test_a_difference_is_welchs() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(-5.0, 0.01, 6), rng.normal(-4.95, 0.03, 9)
    found = difference(estimated(b), estimated(a))
    welch = stats.ttest_ind(b, a, equal_var=False)
    assert found.mean == pytest.approx(b.mean() - a.mean())
    assert found.df == pytest.approx(welch.df)
    assert found.p_value() == pytest.approx(welch.pvalue)
    assert found.interval(0.95) == pytest.approx(tuple(welch.confidence_interval(0.95)))


def test_the_wider_of_two_inflations_counts() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(0, 0.01, 6), rng.normal(0, 0.01, 6)
    bare = difference(estimated(b), estimated(a)).standard_error
    assert difference(estimated(b), estimated(a), inflation=2.0).standard_error == pytest.approx(2 * bare)
    both = difference(estimated(b, 3.0), estimated(a, 3.0), inflation=2.0)
    assert both.standard_error == pytest.approx(3 * bare)


def test_restarts_after_the_pilot_move_the_mean_and_not_the_spread() -> None:
    first = [0.0, 0.01, 0.02]
    found = summary(dict(enumerate([*first, 0.5])), 3)
    assert isinstance(found, Estimate)
    assert (found.sd, found.df, found.restarts) == (pytest.approx(0.01), 2, 4)
    assert found.mean == pytest.approx(0.1325)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, 1.0], [1.0, float("nan")]])
def test_what_is_no_measurement_has_no_summary(values: list[float]) -> None:
    assert isinstance(summary(dict(enumerate(values)), 6), tuple)


def test_what_others_did_is_taken_off_restart_by_restart() -> None:
    others = [{0: 1.0, 1: 2.0, 3: 9.0}, {0: 3.0, 1: 4.0}]
    assert beside({0: 5.0, 1: 5.0, 2: 5.0, 3: 5.0}, others) == {0: 3.0, 1: 2.0}


def test_the_mean_of_drifts_that_disagree_is_as_uncertain_as_they_disagree() -> None:
    close = [Estimate(0.05, 0.01, 5, 1), Estimate(0.05, 0.01, 5, 1)]
    assert average(close).standard_error == pytest.approx(0.01 / math.sqrt(2))
    apart = average([Estimate(0.0, 0.001, 5, 1), Estimate(0.1, 0.001, 5, 1)])
    assert (apart.mean, apart.df) == (pytest.approx(0.05), pytest.approx(10))
    assert apart.standard_error == pytest.approx(0.05)


def test_a_comparison_of_equal_runs_claims_no_more_than_q_promises() -> None:
    """All of 400 comparisons are of equal runs, so a claim in one of them is a false alarm: at most q = 5 % may have.

    The machine drifts by 5 % between the runs. Three arms are the same program in both and stand for the machine.
    """
    rng, false, cells = np.random.default_rng(11), {"beside": 0, "raw": 0}, 400
    for _ in range(cells):
        a, b = arms(rng), arms(rng, drift=0.05)
        same = [0, 1, 5]
        test = aa_between([({str(i): restarts(a[:, i]) for i in same}, {str(i): restarts(b[:, i]) for i in same})])
        changes: dict[str, dict[int, Estimate]] = {"beside": {}, "raw": {}}
        for i in sorted(set(range(a.shape[1])) - set(same)):
            own = [beside(restarts(run[:, i]), [restarts(run[:, other]) for other in same]) for run in (a, b)]
            first, last = (summary(values, RUNS.restarts) for values in own)
            assert isinstance(first, Estimate) and isinstance(last, Estimate)
            changes["beside"][i] = difference(last, first, test.inflation)
            changes["raw"][i] = difference(estimated(b[:, i]), estimated(a[:, i]))
        for how, found in changes.items():
            words = {one.word for one in judge(found, dict.fromkeys(found, 0.02)).values()}
            false[how] += bool(words & {"faster", "slower"})
    assert stats.binomtest(false["beside"], cells, 0.05, alternative="greater").pvalue > 0.01
    # the same comparisons show that a method can fail here: as measured, the drift is taken for a change
    assert false["raw"] > 0.5 * cells


def test_a_change_of_ten_percent_is_found_and_covered() -> None:
    rng, found, covered = np.random.default_rng(12), 0, 0
    for _ in range(100):
        a, b = arms(rng), arms(rng, drift=-0.08)
        b[:, 1] += math.log(1.1)
        own = [beside(restarts(run[:, 1]), [restarts(run[:, 0])]) for run in (a, b)]
        first, last = (summary(values, RUNS.restarts) for values in own)
        assert isinstance(first, Estimate) and isinstance(last, Estimate)
        change = difference(last, first)
        found += judge({"one": change}, {"one": 0.02})["one"].word == "slower"
        low, high = shares(change, LEVEL)[1]
        covered += low < 0.1 < high
    assert found == 100
    assert covered >= 89  # 95 % of 100, less four standard deviations


def test_the_test_between_runs_rejects_equal_programs_as_often_as_it_says() -> None:
    rng, small = np.random.default_rng(13), 0
    equal = Setting("equal programs", (Arm("no-op", count=3),), shared=0.05)
    for _ in range(1000):
        a, b = (log_seconds(equal, 1, 6, rng)[0].mean(axis=1) for _ in "AB")
        runs = [{str(i): restarts(run[:, i]) for i in range(4)} for run in (a, b + 0.2)]
        small += aa_between([(runs[0], runs[1])]).p < 0.05
    assert stats.binomtest(small, 1000, 0.05).pvalue > 0.001


def test_the_test_between_runs_sees_one_that_changes_apart_from_the_others() -> None:
    rng = np.random.default_rng(14)
    equal = Setting("equal programs", (Arm("no-op", count=3),))
    a, b = (log_seconds(equal, 1, 6, rng)[0].mean(axis=1) for _ in "AB")
    b[:, 2] += 0.05
    runs = [{str(i): restarts(run[:, i]) for i in range(4)} for run in (a, b)]
    test = aa_between([(runs[0], runs[1])])
    assert (test.pairs, test.p < 1e-3, test.inflation > 2) == (3, True, True)


def test_programs_with_other_numbers_of_restarts_are_tested_where_they_are_together() -> None:
    rng = np.random.default_rng(15)
    a = {"original": restarts(rng.normal(0, 0.01, 9)), "control": restarts(rng.normal(0, 0.01, 9))}
    a["no-op"] = restarts(rng.normal(0, 0.01, 6))
    b = {name: restarts(rng.normal(0, 0.01, 6)) for name in a}
    assert aa_between([(a, b)]).pairs == 2  # the three restarts of A without the no-op have none like them in B
    b["original"], b["control"] = (restarts(rng.normal(0, 0.01, 8)) for _ in "ab")
    assert aa_between([(a, b)]).pairs == 3
    assert aa_between([({"original": a["original"]}, {"original": b["original"]})]).pairs == 0


def test_words_of_a_change() -> None:
    changes = {
        "slower": Estimate(0.10, 0.01, 9.5, 1),
        "faster": Estimate(-0.10, 0.01, 9.5, 1),
        "equivalent": Estimate(0.001, 0.002, 9.5, 1),
        "inconclusive": Estimate(0.05, 0.05, 9.5, 1),
    }
    found = judge(changes, dict.fromkeys(changes, 0.02))
    assert {name: one.word for name, one in found.items()} == {name: name for name in changes}
    assert found["slower"].change == pytest.approx(math.expm1(0.10))
    assert found["slower"].level == pytest.approx(1 - 2 * 0.05 / 4)
    assert "80 % power" in found["inconclusive"].evidence
    assert "inside ±2 %" in found["equivalent"].evidence or "inside ±2%" in found["equivalent"].evidence
    inside = judge({"one": Estimate(0.01, 0.001, 9.5, 1)}, {"one": 0.02})["one"]
    assert (inside.word, "count as none" in inside.evidence) == ("slower", True)
