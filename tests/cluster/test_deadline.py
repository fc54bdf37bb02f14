"""How long a call may take follows from the model and from what the machine was seen to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llama_bench import parts, results
from llama_bench.bench import machine
from llama_bench.cluster.deadline import LEAST_S, deadline_s
from llama_bench.cluster.job import Job
from llama_bench.cluster.launch import DEADLINE_S
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Sweep

from .conftest import FACTS

RUN = "tiny/20260101-000000-aaaaaaaa"


def job(data: dict[str, Any], store: Store) -> Job:
    plan = make(Sweep.model_validate(data), {})
    return Job(plan.cells[0], plan.sweep.measure, store.uri, RUN, "here", FACTS, 0)


def ceilings(store: Store, flops_per_s: float, hardware: str, number: int = 0) -> None:
    """Write the ceilings of a machine that reads ten billion bytes a second."""
    rates = (("matmul", "fp32", flops_per_s), ("matmul", "int8", 1e15), ("read", None, 1e10))
    rows = [
        {"hardware": hardware, "target": "cpu", "what": what, "dtype": dtype, "per_second": rate}
        for what, dtype, rate in rates
    ]
    stem = f"ceilings-cpu-{hardware}-{number}"
    parts.write_part(store, RUN, "ceilings", stem, rows)
    parts.write_part(store, RUN, "pieces", stem, [{"piece": stem, "kind": "ceilings"}])


@pytest.fixture
def begun(store: Store) -> Store:
    results.write_run(store, RUN, {"cells": [], "artifacts": []})
    return store


def test_without_ceilings_it_is_the_longest_that_any_call_is_given(tiny: dict[str, Any], begun: Store) -> None:
    assert deadline_s(job(tiny, begun), begun) == DEADLINE_S
    ceilings(begun, 1e12, "another machine".replace(" ", ""))
    assert deadline_s(job(tiny, begun), begun) == DEADLINE_S


def test_a_small_model_on_a_fast_machine_gets_little_more_than_a_process_takes_to_start(
    tiny: dict[str, Any], begun: Store
) -> None:
    ceilings(begun, 1e12, machine.fingerprint(FACTS))
    assert LEAST_S < deadline_s(job(tiny, begun), begun) < LEAST_S + 1


def test_a_larger_model_a_slower_machine_and_more_text_take_longer(tiny: dict[str, Any], begun: Store) -> None:
    ceilings(begun, 1e9, machine.fingerprint(FACTS))
    small = deadline_s(job(tiny, begun), begun)
    tiny["models"][0] |= {"hidden_size": 512, "num_attention_heads": 4, "intermediate_size": 2048}
    large = deadline_s(job(tiny, begun), begun)
    assert large - LEAST_S > 100 * (small - LEAST_S)
    longer = job(tiny, begun)
    runs = longer.measure.model_copy(update={"runs": 100})
    assert deadline_s(replace(longer, measure=runs), begun) > 2 * large - LEAST_S
    ceilings(begun, 1e10, machine.fingerprint(FACTS), 1)  # the best of two measurements counts
    assert deadline_s(longer, begun) - LEAST_S < 0.5 * (large - LEAST_S)
