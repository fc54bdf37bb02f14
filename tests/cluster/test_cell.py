"""How many restarts a cell gets: from the pilot's spread and seconds alone."""

from __future__ import annotations

import pytest

from llama_bench.cluster.build import build
from llama_bench.cluster.cell import _prepare, _totals
from llama_bench.cluster.job import Job
from llama_bench.plan import make
from llama_bench.stats.progress import Progress
from llama_bench.store import Store
from llama_bench.sweep import Measure, Sweep

from .conftest import TINY

NAMES = ["original", "a"]


def progress(ratios: list[float], seconds: float = 10.0) -> Progress:
    found = Progress("c", "original")
    for name in NAMES:
        found.restarts[name] = len(ratios)
    found.ratios["a"] = list(ratios)
    found.restart_s = [(0, seconds)] * len(ratios)
    return found


NOISY = [0.00, 0.04, -0.04, 0.03]


def total(measure: Measure, done: Progress, budget_s: float) -> int:
    """Restarts in all of the arm `a`."""
    [cell] = make(Sweep.model_validate({**TINY, "measure": measure.model_dump()}), {}).cells
    job = Job(cell, measure, "", "", "", {}, 0)
    totals = _totals(job, done, NAMES, 0, budget_s)
    assert totals["original"] == measure.restarts
    return totals["a"]


def test_without_a_wanted_half_width_the_pilot_is_all() -> None:
    assert total(Measure(restarts=4, half_width=None), progress(NOISY), 1e9) == 4


def test_an_unfinished_pilot_is_finished_first() -> None:
    assert total(Measure(restarts=4, half_width=0.001), progress(NOISY[:3]), 1e9) == 4


def test_a_noisy_pilot_asks_for_more_and_the_budget_limits_it() -> None:
    measure = Measure(restarts=4, half_width=0.01)
    assert total(measure, progress(NOISY), 1e9) > 50
    assert total(measure, progress(NOISY), 200.0) == 20
    assert total(measure, progress(NOISY), 1.0) == 4


def test_a_quiet_pilot_is_enough() -> None:
    assert total(Measure(restarts=4, half_width=0.01), progress([0.1, 0.1001, 0.1, 0.1001]), 1e9) == 4


@pytest.mark.parametrize("later", [0.5, -0.5, 0.0])
def test_what_comes_after_the_pilot_changes_nothing(later: float) -> None:
    measure = Measure(restarts=4, half_width=0.01)
    grown = progress([*NOISY, later, later])
    grown.restart_s = [(0, 10.0)] * 4 + [(0, 99.0)] * 2
    assert total(measure, grown, 200.0) == total(measure, progress(NOISY), 200.0)


def test_an_arms_settings_have_its_recipes_variables_beside_those_of_every_process(store: Store) -> None:
    recipes = {"original": {}, "a": {"session": {"environment": {"ORT_ENABLE_XQA": "0"}}}}
    plan = make(Sweep.model_validate({**TINY, "recipes": recipes}), {})
    [cell] = plan.cells
    build(plan.artifacts[cell.arms[0].variant], store)
    job = Job(cell, plan.sweep.measure, store.uri, "", "", {}, 0)
    original, a, _ = (_prepare(store, job, arm, 1).settings for arm in cell.arms)
    assert original["environment"] == job.environment
    assert a["environment"] == {**job.environment, "ORT_ENABLE_XQA": "0"}
