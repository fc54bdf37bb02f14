"""What a node can do at most: measured once a run and target, before its first cell."""

from __future__ import annotations

from typing import Any

import pytest

from llama_bench.bench import machine
from llama_bench.bench.race import Ceiling
from llama_bench.cluster.ceilings import MOST
from llama_bench.store import Store

from .conftest import FACTS, measure


@pytest.mark.slow
def test_the_ceilings_of_a_node_are_measured_once_before_its_first_cell(two_arms: dict[str, Any], store: Store) -> None:
    two_arms["workloads"]["second"] = {**two_arms["workloads"]["prefill"], "batch": 2}
    frames, events = measure(two_arms, store)
    found = frames.ceilings.collect()
    assert {"matmul", "copy", "read"} <= set(found["what"])
    assert found["per_second"].min() > 0  # type: ignore[operator]
    assert found["threads"].unique().to_list() == [1]
    assert found["hardware"].unique().to_list() == [machine.fingerprint(FACTS)]
    details = [event["detail"] for event in events]
    assert details.index("measuring the ceilings of this node") == 0
    assert details.count("measuring the ceilings of this node") == 1
    fractions = frames.speedups.collect()["of_bound"].drop_nulls()
    assert len(fractions) == 6
    assert 0 < min(fractions) <= max(fractions) <= 1


def test_ceilings_that_an_arm_beats_are_measured_again_and_then_it_is_void(
    two_arms: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_bench.cluster.ceilings.roofline.measure", slow_machine)
    frames, events = measure(two_arms, store)
    again = [event for event in events if event["detail"].startswith("measuring the ceilings again")]
    assert len(again) == MOST - 1
    assert frames.ceilings.collect().height == 3 * MOST
    verdicts = frames.speedups.collect()
    assert set(verdicts["verdict"]) == {"void"}
    assert "of the machine's own ceiling" in verdicts["evidence"][0]


def slow_machine(provider: str, threads: int) -> list[Ceiling]:
    """A machine of a thousand operations a second, which every real one beats."""
    return [Ceiling("matmul", "fp32", 1e3, "by hand"), Ceiling("copy", "", 1e3, ""), Ceiling("read", "", 1e3, "")]


def test_a_node_whose_ceilings_cannot_be_measured_is_told_and_measured_all_the_same(
    two_arms: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_bench.cluster.ceilings.roofline.measure", int)  # int("CPU…", 1) raises
    frames, events = measure(two_arms, store)
    assert any(event["detail"].startswith("no ceilings: ") for event in events)
    assert frames.ceilings.collect().is_empty()
    assert frames.failures.collect().is_empty()
    assert frames.speedups.collect()["verdict"].to_list()[0] == "baseline"
