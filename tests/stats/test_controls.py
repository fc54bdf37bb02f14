"""The test over A/A pairs: its level, its power, and what it does with gaps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llama_bench.stats.controls import VOID_P, AATest, Stratum, aa_test, strata


def pairs(rng: np.random.Generator, k: int, restarts: int = 6, bias: float = 0.0) -> dict[str, dict[int, float]]:
    """y of `k` arms that are the baseline again; `bias` is how much faster the baseline's process is (ln seconds)."""
    level = rng.normal(0, 0.01, (restarts, k + 1)) + rng.normal(0, 0.1, (restarts, 1))
    level[:, 0] -= bias
    y = level[:, 1:] - level[:, :1]
    return {f"a{i}": dict(enumerate(y[:, i].tolist())) for i in range(k)}


def test_one_pair_gives_the_paired_t_test() -> None:
    from scipy import stats

    y = [0.011, -0.004, 0.017, 0.009, 0.002]
    [found] = strata({"control": dict(enumerate(y))})
    assert (found.pairs, found.restarts) == (1, 5)
    assert found.p == pytest.approx(stats.ttest_1samp(y, 0).pvalue, rel=1e-9)
    assert found.chi2 == pytest.approx(stats.chi2.isf(found.p, 1), rel=1e-9)


def test_three_arms_give_the_analysis_of_variance_in_randomised_blocks() -> None:
    # Restarts × (baseline, control, no-op), in thousandths: 0 4 8, 0 6 4, 0 10 12, 0 0 8. Sums of squares: all 214.67,
    # arms 130.67 (2 degrees of freedom), restarts 38.67, so residual 45.33 (6): F = 65.33 / 7.556 = 8.647
    y = {"control": {0: 0.004, 1: 0.006, 2: 0.010, 3: 0.000}, "idle": {0: 0.008, 1: 0.004, 2: 0.012, 3: 0.008}}
    [found] = strata(y)
    assert (found.pairs, found.restarts) == (2, 4)
    # P(F(2, 6) > f) = (1 + f/3)^-3
    assert found.p == pytest.approx((1 + (130.6667 / 2) / (45.3333 / 6) / 3) ** -3, rel=1e-4)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_identical_programs_are_found_to_differ_as_often_as_the_p_value_says(k: int) -> None:
    rng = np.random.default_rng(k)
    p = np.array([aa_test([pairs(rng, k)]).p for _ in range(3000)])
    # within four standard errors of 5 % and 1 %
    assert abs((p < 0.05).mean() - 0.05) < 0.016
    assert abs((p < 0.01).mean() - 0.01) < 0.0073


def test_cells_add_up_and_keep_the_level() -> None:
    rng = np.random.default_rng(20)
    tests = [aa_test([pairs(rng, 1), pairs(rng, 3), pairs(rng, 2, restarts=9)]) for _ in range(2000)]
    assert {test.pairs for test in tests} == {6}
    p = np.array([test.p for test in tests])
    assert abs((p < 0.05).mean() - 0.05) < 0.02
    assert np.mean([test.chi2 for test in tests]) == pytest.approx(6, abs=0.35)


def test_a_baseline_that_is_always_preferred_voids_the_target() -> None:
    rng = np.random.default_rng(4)
    tests = [aa_test([pairs(rng, 2, bias=0.03) for _ in range(3)]) for _ in range(100)]
    assert np.mean([test.void for test in tests]) > 0.97
    assert all(test.inflation > 1 for test in tests)


def test_the_sum_of_two_strata_is_the_sum_of_their_chi_squares() -> None:
    rng = np.random.default_rng(5)
    first, second = pairs(rng, 2), pairs(rng, 3)
    together = aa_test([first, second])
    assert together.chi2 == pytest.approx(aa_test([first]).chi2 + aa_test([second]).chi2)
    assert together.pairs == 5


def test_restarts_count_once_with_the_arms_that_they_have() -> None:
    rng = np.random.default_rng(6)
    y = pairs(rng, 2, restarts=10)
    y["a1"] = {restart: y["a1"][restart] for restart in range(6)}
    [alone, both] = strata(y)
    assert (alone.pairs, alone.restarts) == (1, 4)
    assert (both.pairs, both.restarts) == (2, 6)


def test_a_ratio_that_is_not_finite_takes_its_restart_from_that_arm_only() -> None:
    rng = np.random.default_rng(7)
    y = pairs(rng, 2, restarts=6)
    y["a0"][3] = math.nan
    y["a1"][3] = math.inf
    [found] = strata(y)
    assert (found.pairs, found.restarts) == (2, 5)


@pytest.mark.parametrize(
    "y",
    [
        {},
        {"control": {}},
        {"control": {0: 0.01}},
        {"control": {0: 0.01, 1: math.nan}},
        {"control": {0: 0.01, 1: 0.01, 2: 0.01}},
        {"control": {0: 0.0, 1: 0.0}, "idle": {0: 0.0, 1: 0.0}},
    ],
)
def test_too_few_or_constant_ratios_say_nothing(y: dict[str, dict[int, float]]) -> None:
    assert strata(y) == []
    assert aa_test([y]) == AATest(0, 0.0, 1.0)
    assert (aa_test([y]).inflation, aa_test([y]).void) == (1.0, False)


def test_a_difference_beyond_all_numbers_stays_finite() -> None:
    y = {"control": {i: 1000.0 + 1e-7 * i for i in range(40)}}
    found = aa_test([y])
    assert found.void
    assert math.isfinite(found.inflation)


def test_errors_are_widened_and_never_narrowed() -> None:
    assert AATest(4, 16.0, 0.003).inflation == 2.0
    assert AATest(4, 1.0, 0.9).inflation == 1.0
    assert AATest(4, 20.0, VOID_P / 2).void
    assert not AATest(4, 18.0, VOID_P).void


def test_the_order_of_arms_and_restarts_changes_nothing() -> None:
    y: dict[str, Any] = pairs(np.random.default_rng(8), 3)
    turned = {arm: dict(reversed(values.items())) for arm, values in reversed(y.items())}
    [one], [other] = strata(y), strata(turned)
    assert isinstance(one, Stratum)
    assert one == other


def test_the_sentence_has_the_statistic_its_degrees_of_freedom_and_p() -> None:
    said = AATest(7, 45.23, 1.24e-7).words("B")
    assert "target B" in said
    assert "χ² = 45.2 with 7 degrees of freedom, p = 1e-07" in said
