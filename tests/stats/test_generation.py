"""Times of generated tokens, from runs whose tokens take known shares of a run."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from llama_bench.stats import views
from llama_bench.stats.generation import SCHEMA, geometric

GENERATE = {"kind": "generate", "batch": 2, "prompt": 8, "new_tokens": 21}


def made(world: Any) -> dict[str, dict[str, Any]]:
    table = views.make(world.run, world.datasets()).generation.collect()
    assert dict(table.schema) == SCHEMA
    return {row["recipe"]: row for row in table.to_dicts()}


def test_first_and_later_tokens_have_their_times_with_intervals_over_restarts(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.5, executed="aa")}, workload=GENERATE)
    found = made(world)
    assert list(found) == ["original", "fast", "control"]
    times = {row["recipe"]: row for row in views.make(world.run, world.datasets()).speedups.collect().to_dicts()}
    for name, row in found.items():
        # the first token takes three tenths of a run; two of twenty later ones take three times as long as the others
        assert row["first_s"] == pytest.approx(0.3 * times[name]["time_s"], rel=1e-9)
        assert row["first_low_s"] == pytest.approx(0.3 * times[name]["time_low_s"], rel=1e-9)
        assert row["first_high_s"] == pytest.approx(0.3 * times[name]["time_high_s"], rel=1e-9)
        assert row["token_low_s"] < row["token_s"] < row["token_high_s"]
        unit = 0.7 * times[name]["time_s"] / 24
        assert row["token_s"] == pytest.approx(unit * math.exp(2 / 20 * math.log(3)), rel=1e-9)
        assert row["token_p50_s"] == pytest.approx(unit, rel=0.1)
        assert row["token_p90_s"] < 2 * unit
        assert row["token_p99_s"] == pytest.approx(3 * unit, rel=0.2)
        assert row["tokens_per_s"] == times[name]["tokens_per_s"] == pytest.approx(42 / times[name]["mean_s"])
        assert row["decode_tokens_per_s"] == pytest.approx(2 / row["token_s"])
        assert (row["batch"], row["prompt"], row["new_tokens"], row["restarts"], row["runs"]) == (2, 8, 21, 6, 120)
    assert found["fast"]["first_s"] == pytest.approx(0.5 * found["original"]["first_s"], rel=0.02)


def test_percentiles_are_over_all_later_tokens_of_all_runs(synthetic: ModuleType) -> None:
    world = synthetic.world({}, workload=GENERATE)
    later = [s for row in world.rows["timings"] if not row["control"] for s in row["token_s"][1:]]
    expected = np.quantile(later, [0.5, 0.9, 0.99])
    row = made(world)["original"]
    assert [row["token_p50_s"], row["token_p90_s"], row["token_p99_s"]] == pytest.approx(expected.tolist(), rel=1e-9)


def test_one_new_token_has_a_first_and_no_later_one(synthetic: ModuleType) -> None:
    row = made(synthetic.world({}, workload=GENERATE | {"new_tokens": 1}))["original"]
    assert row["first_s"] is not None
    later = ["token_s", "token_low_s", "token_p50_s", "token_p99_s", "decode_tokens_per_s"]
    assert [row[name] for name in later] == [None] * 5


def test_runs_that_do_not_count_count_in_no_token_either(synthetic: ModuleType) -> None:
    world = synthetic.world({}, workload=GENERATE)
    before = made(world)["original"]
    world.disturb(2, 0, "original", kept=False)
    for row in world.rows["timings"]:
        if not row["kept"]:
            row["token_s"] = [9.0] * 21
    assert made(world)["original"]["first_s"] == pytest.approx(before["first_s"], rel=1e-6)


def test_what_generates_nothing_or_cannot_be_shown_has_no_row(synthetic: ModuleType) -> None:
    assert made(synthetic.world({})) == {}
    world = synthetic.world({"fast": synthetic.Truth(0.5, executed="aa")}, workload=GENERATE)
    for row in world.rows["timings"]:
        if row["recipe"] == "fast" and row["restart"] == 3:
            row["seconds"] = None
    assert list(made(world)) == ["original", "control"]
    world.move(3, hostname="another")
    assert made(world) == {}


def test_one_restart_has_a_mean_and_no_interval_and_a_missing_value_no_mean() -> None:
    assert geometric([math.log(2.0)]) == (2.0, None, None)
    assert geometric([math.log(2.0), None]) == (None, None, None)
    assert geometric([]) == (None, None, None)
    mean, low, high = geometric([math.log(1.0), math.log(4.0)])
    assert mean == pytest.approx(2.0)
    assert low is not None
    assert high is not None
    assert low < 1.0 < 4.0 < high
