"""The fastest recipe, and what fresh restarts say of it."""

from __future__ import annotations

import numpy as np
import pytest

from llama_bench.stats.headline import best, headlines, holm, one_sided_p
from llama_bench.stats.ratios import estimate


def around(centre: float, spread: float = 0.002) -> tuple[float, ...]:
    return tuple(centre + spread * step for step in (-1.5, -1, -0.3, 0.3, 1, 1.5))


def test_the_best_is_the_faster_arm_with_the_largest_speedup() -> None:
    ratios = {"fast": around(-0.1), "faster": around(-0.2), "slow": around(0.3), "noisy": around(-0.5, 0.6)}
    assert best(ratios, pilot=6, margin=0.02) == "faster"
    assert best(ratios, pilot=6, margin=0.02, excluded={"faster"}) == "fast"
    assert best({"slow": around(0.3)}, pilot=6, margin=0.02) is None
    assert best({}, pilot=6, margin=0.02) is None


def test_the_control_is_never_the_best_nor_is_an_arm_without_an_interval() -> None:
    ratios = {"control": around(-0.4), "broken": (*around(-0.4), float("nan")), "once": (-0.9,), "fast": around(-0.1)}
    assert best(ratios, pilot=6, margin=0.02) == "fast"


def test_holm_rejects_step_by_step() -> None:
    # Holm (1979): thresholds 0.05/4, 0.05/3, 0.05/2, 0.05/1; the third smallest stops
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == [True, False, False, True]
    assert holm([0.04]).tolist() == [True]
    assert holm([0.04, 0.04]).tolist() == [False, False]
    assert holm([]).tolist() == []
    # one above its threshold stops those after it, even below theirs
    assert holm([0.03, 0.03, 0.03]).tolist() == [False, False, False]


def test_the_p_value_is_one_sided() -> None:
    found = estimate(around(-0.003), 6)
    assert one_sided_p(found) == pytest.approx(found.p_value() / 2)
    slower = estimate(around(0.003), 6)
    assert one_sided_p(slower) == pytest.approx(1 - slower.p_value() / 2)


def test_fresh_restarts_alone_make_the_number() -> None:
    found = headlines({"c": ("fast", around(-0.1))})["c"]
    assert (found.recipe, found.restarts, found.confirmed, found.word) == ("fast", 6, True, "confirmed")
    assert found.speedup == pytest.approx(np.exp(0.1))
    assert found.low is not None
    assert found.high is not None
    assert 1 < found.low < found.speedup < found.high
    assert found.sentence.startswith("confirmed on 6 fresh restarts: 1.105× [")


def test_a_recipe_that_is_not_faster_again_is_plainly_not_confirmed() -> None:
    found = headlines({"c": ("lucky", around(0.0))})["c"]
    assert (found.confirmed, found.word) == (False, "not confirmed")
    assert found.sentence.startswith("not confirmed on 6 fresh restarts: 1.000× [")


def test_what_confirmed_means_and_the_printed_interval_agree_for_one_cell() -> None:
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(200):
        found = headlines({"c": ("a", rng.normal(-0.006, 0.01, 6).tolist())})["c"]
        assert found.low is not None
        assert found.confirmed == (found.low > 1)
        seen.add(found.confirmed)
    assert seen == {True, False}


def test_several_cells_of_a_target_share_one_error_rate() -> None:
    edge = (-0.022, -0.017, -0.011, -0.006, 0.0, 0.004)
    alone = headlines({"c": ("a", edge)})["c"]
    assert alone.confirmed
    assert 0.02 < alone.p < 0.05
    among = headlines({"c": ("a", edge), "d": ("a", around(0.0)), "e": ("a", around(0.0))})["c"]
    assert not among.confirmed
    assert "several cells of its target" in among.sentence
    assert (among.speedup, among.low) == (alone.speedup, alone.low)


def test_hardly_a_target_has_a_false_headline() -> None:
    rng = np.random.default_rng(9)
    false = 0
    for _ in range(1000):
        fresh = {str(cell): ("a", rng.normal(0, 0.01, 6).tolist()) for cell in range(3)}
        false += any(found.confirmed for found in headlines(fresh).values())
    assert false / 1000 < 0.07


def test_being_chosen_does_not_bias_the_fresh_estimate() -> None:
    rng = np.random.default_rng(3)
    main, fresh = [], []
    for _ in range(400):
        y = {f"a{i}": rng.normal(-0.01, 0.01, 6) for i in range(8)}
        name = best({arm: values.tolist() for arm, values in y.items()}, pilot=6, margin=0.01)
        if name is not None:
            main.append(y[name].mean())
            fresh.append(np.log(headlines({"c": (name, rng.normal(-0.01, 0.01, 6).tolist())})["c"].speedup))
    assert -np.mean(main) > 0.013
    assert np.mean(fresh) == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize(
    ("y", "reason"), [((-0.1,), "one restart"), ((-0.1,) * 6, "exactly the same"), ((-0.1, float("nan")), "1 of 2")]
)
def test_fresh_restarts_that_allow_no_test_confirm_nothing_and_show_no_number(
    y: tuple[float, ...], reason: str
) -> None:
    found = headlines({"c": ("fast", y)})["c"]
    assert (found.confirmed, found.speedup, found.low, found.high, found.p) == (False, None, None, None, 1.0)
    assert found.sentence.startswith("not confirmed: ")
    assert reason in found.sentence


def test_the_inflation_of_the_target_widens_what_is_confirmed() -> None:
    plain = headlines({"c": ("fast", around(-0.003))})["c"]
    wide = headlines({"c": ("fast", around(-0.003))}, inflation=4.0)["c"]
    assert (plain.confirmed, wide.confirmed) == (True, False)
    assert plain.low is not None
    assert wide.low is not None
    assert np.log(wide.speedup / wide.low) == pytest.approx(4 * np.log(plain.speedup / plain.low))


def test_a_recipe_whose_main_restarts_call_it_faster_no_more_is_not_confirmed() -> None:
    found = headlines({"c": ("fast", around(-0.1))}, standing=set())["c"]
    assert not found.confirmed
    assert "its main restarts do not call it faster" in found.sentence
