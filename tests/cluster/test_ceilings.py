"""What a node can do at most: measured once a run and target, before its first cell."""

from __future__ import annotations

from typing import Any

import pytest

from llama_bench.bench import machine
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


def test_a_node_whose_ceilings_cannot_be_measured_is_told_and_measured_all_the_same(
    two_arms: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_bench.cluster.ceilings.roofline.measure", int)  # int("CPU…", 1) raises
    frames, events = measure(two_arms, store)
    assert any(event["detail"].startswith("no ceilings: ") for event in events)
    assert frames.ceilings.collect().is_empty()
    assert frames.failures.collect().is_empty()
    assert frames.speedups.collect()["verdict"].to_list()[0] == "baseline"
