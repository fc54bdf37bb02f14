from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta

from llama_bench.stats.procedures import OURS, PROCEDURES, Samples, Share
from llama_bench.stats.ratios import estimate


def samples(ratio: float, *, spread: float = 0.0, runs: int = 20, restarts: int = 6, seed: int = 1) -> Samples:
    """Runs of two arms, `ratio` apart, with 1 % between runs and `spread` between processes."""
    rng = np.random.default_rng(seed)

    def arm(factor: float) -> tuple[np.ndarray, ...]:
        return tuple(
            1e-3 * factor * np.exp(level + rng.normal(0, 0.01, runs)) for level in rng.normal(0, spread, restarts)
        )

    first, second = arm(1.0), arm(ratio)
    y = [float(np.log(b).mean() - np.log(a).mean()) for a, b in zip(first, second, strict=True)]
    return Samples(first, second, estimate(y, restarts), margin=0.02)


@pytest.mark.parametrize("name", PROCEDURES)
def test_every_procedure_claims_a_large_difference_with_its_sign(name: str) -> None:
    assert PROCEDURES[name].claim(samples(1.3)) == 1
    assert PROCEDURES[name].claim(samples(1 / 1.3)) == -1


@pytest.mark.parametrize("name", PROCEDURES)
def test_swapping_the_arms_flips_every_claim(name: str) -> None:
    for seed in range(40):
        one = samples(1.01, spread=0.02, seed=seed)
        turned = replace(one.estimate, mean=-one.estimate.mean)
        other = Samples(one.arm, one.baseline, turned, one.margin)
        if name == "the study":  # 2 % more is not the inverse of 2 % less
            assert PROCEDURES[name].claim(one) * PROCEDURES[name].claim(other) <= 0
        else:
            assert PROCEDURES[name].claim(one) == -PROCEDURES[name].claim(other)


def test_processes_that_differ_are_a_difference_to_all_but_ours() -> None:
    claims = dict.fromkeys(PROCEDURES, 0)
    pairs = 200
    for seed in range(pairs):
        for name, procedure in PROCEDURES.items():
            claims[name] += procedure.claim(samples(1.0, spread=0.02, seed=seed)) != 0
    low, high = Share(claims.pop(OURS), pairs).interval(0.999)
    assert low < 0.05 < high
    assert min(claims.values()) > 0.3 * pairs


def test_where_processes_are_alike_the_common_tests_keep_their_promise() -> None:
    pairs = 400
    for name in ("U test", "pooled t"):
        claims = sum(PROCEDURES[name].claim(samples(1.0, seed=seed)) != 0 for seed in range(pairs))
        low, high = Share(claims, pairs).interval(0.999)
        assert low < 0.05 < high, name


def test_the_study_claims_from_the_margin_on() -> None:
    study = PROCEDURES["the study"].claim
    run = np.array([1.0, 1.0])
    ours = samples(1.0).estimate
    assert study(Samples((run,), (1.019 * run,), ours, 0.02)) == 0
    assert study(Samples((run,), (1.021 * run,), ours, 0.02)) == 1
    assert study(Samples((run,), (0.979 * run,), ours, 0.02)) == -1
    assert study(Samples((run,), (1.019 * run,), ours, 0.01)) == 1


@pytest.mark.parametrize("name", [name for name in PROCEDURES if name not in (OURS, "pooled t")])
def test_procedures_of_one_process_see_only_the_first_restarts(name: str) -> None:
    one = samples(1.0)
    far = Samples(one.baseline, (one.arm[0], *(2 * runs for runs in one.arm[1:])), one.estimate, one.margin)
    assert PROCEDURES[name].claim(far) == PROCEDURES[name].claim(one)


def test_a_binomial_interval_is_that_of_clopper_and_pearson() -> None:
    low, high = Share(29, 600).interval()
    assert low == pytest.approx(beta.ppf(0.025, 29, 572))
    assert high == pytest.approx(beta.ppf(0.975, 30, 571))
    assert Share(0, 20).interval() == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert Share(20, 20).interval() == (pytest.approx(0.025 ** (1 / 20)), 1.0)


def test_of_nothing_there_is_no_rate_and_anything_may_be() -> None:
    assert Share(0, 0).rate is None
    assert Share(0, 0).interval() == (0.0, 1.0)
    assert math.isclose(Share(1, 4).rate or 0, 0.25)
