"""How right each arm is, and what it takes, from runs whose truth is known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from llama_bench.stats import accuracy, sizes, views


def made(world: Any, view: str = "accuracy_by_arm") -> dict[str, dict[str, Any]]:
    table = getattr(views.make(world.run, world.datasets()), view).collect()
    return {row["recipe"]: row for row in table.to_dicts()}


@pytest.fixture
def world(synthetic: ModuleType) -> Any:
    int8 = synthetic.Truth(
        0.3, executed="aa", kind="approximate", weight_bytes=1_000_000, perplexity_increase=0.02, kl=0.01, top1=0.93
    )
    return synthetic.world({"int8": int8, "bad": synthetic.Truth(failure="no")}, text=True)


def test_what_an_arm_says_of_text_counts_before_its_logits(world: Any) -> None:
    found = made(world)
    assert list(found) == ["original", "int8", "control"]
    row = found["int8"]
    assert (row["source"], row["class"], row["kl"], row["top1"]) == ("text", "approximate", 0.01, 0.93)
    assert row["perplexity_increase"] == pytest.approx(0.02)
    assert (row["perplexity"], row["reference_perplexity"]) == (pytest.approx(12.24), 12.0)
    assert (row["tokens"], row["window"], row["stride"], row["restarts"]) == (510, 256, 255, 6)
    assert row["max_rel"] == 2e-3  # of the logits
    assert row["within_bound"] is True
    assert set(row) == set(accuracy.SCHEMA)


def test_without_text_the_worst_of_the_restarts_counts(synthetic: ModuleType) -> None:
    world = synthetic.world({"int8": synthetic.Truth(0.3, executed="aa", kind="approximate")})
    for row in world.rows["accuracy"]:
        n = row["restart"]
        row |= {"kl": 0.01 * n, "top1": 1 - 0.01 * n, "cosine": 1 - 0.001 * n, "max_rel": 1e-3 * n}
    row = made(world)["int8"]
    assert row["source"] == "logits"
    assert [row[name] for name in ("kl", "top1", "cosine", "max_rel")] == pytest.approx([0.05, 0.95, 0.995, 5e-3])
    assert [row[name] for name in ("perplexity", "perplexity_increase", "tokens", "window")] == [None] * 4


def test_keys_and_values_say_nothing_of_an_arm_and_a_bound_that_any_answer_violates_does(world: Any) -> None:
    logits = next(row for row in world.rows["accuracy"] if row["recipe"] == "int8" and row["output"] == "logits")
    key = logits | {"output": "present.0.key", "max_rel": 0.9, "cosine": 0.1, "within_bound": None}
    world.rows["accuracy"].append(key)
    row = made(world)["int8"]
    assert (row["max_rel"], row["cosine"], row["within_bound"]) == (2e-3, None, True)
    logits["within_bound"] = False
    assert made(world)["int8"]["within_bound"] is False


def test_generated_tokens_are_an_answer_where_there_is_no_text(synthetic: ModuleType) -> None:
    world = synthetic.world({}, workload={"kind": "generate", "prompt": 4, "new_tokens": 4})
    for row in world.rows["accuracy"]:
        row |= {"top1": 0.5, "max_rel": None, "within_bound": None}
    row = made(world)["original"]
    assert (row["source"], row["top1"], row["kl"], row["within_bound"]) == ("tokens", 0.5, None, None)


def test_sizes_are_those_on_disk_and_the_median_of_the_memory(world: Any) -> None:
    for row in world.rows["machines"]:
        if row["restart"] == 5:
            row["peak_bytes"] = 10**12  # one restart beside something else
        row["device_bytes"] = 10 * row["restart"]
    found = made(world, "sizes")
    assert list(found) == ["original", "int8", "bad", "control"]
    row = found["int8"]
    assert (row["graph_bytes"], row["weight_bytes"], row["disk_bytes"]) == (1_000, 1_000_000, 1_001_000)
    assert (row["peak_bytes"], row["device_bytes"], row["restarts"]) == (301_002_500.0, 25.0, 6)
    assert found["control"]["disk_bytes"] == found["original"]["disk_bytes"] == 4_001_000
    bad = found["bad"]
    assert (bad["peak_bytes"], bad["device_bytes"], bad["restarts"], bad["disk_bytes"]) == (None, None, 0, 4_001_000)
    assert set(row) == set(sizes.SCHEMA)


def test_what_no_restart_says_is_null(synthetic: ModuleType) -> None:
    row = made(synthetic.world({}), "sizes")["original"]
    assert (row["peak_bytes"], row["device_bytes"], row["restarts"]) == (None, None, 6)
