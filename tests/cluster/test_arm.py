"""An arm's process, called directly: no Ray."""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_bench import engines
from llama_bench.bench.accuracy import Bounds
from llama_bench.cluster.arm import Arm
from llama_bench.cluster.build import build
from llama_bench.engines import Task
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Session, Sweep

BOUNDS = Bounds(max_rel=1e-3, min_cosine=None, max_kl=None, min_top1=None)


def loaded(sweep: Sweep, store: Store, **settings: Any) -> tuple[Arm, Path, dict[str, Any]]:
    """Build the sweep's first arm and load it; return it, the folder of its reference, and what it said."""
    plan = make(sweep, {})
    [cell] = plan.cells
    for name in (cell.reference, cell.arms[0].variant):
        build(plan.artifacts[name], store)
    reference, arm = store.fetch(cell.reference), Arm()
    task = Task(cell.model.model_dump(), cell.workload.model_dump(), load_file(reference / "inputs.safetensors"))
    said = engines.settings("onnxruntime", Session(), cell.target, 1) | settings
    return arm, reference, arm.load(store.fetch(cell.arms[0].variant), said, task)


@pytest.fixture
def generating(tiny: dict[str, Any]) -> Sweep:
    """A sweep of a model with a cache and a head that generates text."""
    tiny["models"][0] |= {"cache": True, "head": "lm", "exporter": "dynamo", "opset": 18}
    tiny["workloads"] = {"generate": {"kind": "generate", "batch": 2, "prompt": 5, "new_tokens": 4}}
    tiny["measure"] |= {"text": {"tokens": 14, "window": 8}}
    return Sweep.model_validate(tiny)


def test_an_arm_loads_warms_up_checks_and_times(sweep: Sweep, store: Store) -> None:
    arm, reference, said = loaded(sweep, store)
    assert arm.identify()["pid"] == os.getpid()
    assert said == {"providers": ["CPUExecutionProvider"], "threads": 1}
    assert arm.warm_up()["runs"] >= 3
    checks = arm.check(reference / "reference.safetensors", BOUNDS, "exact")
    assert {row["output"] for row in checks} == {"hidden_states", "present.0.key", "present.0.value"}
    assert all(row["within_bound"] for row in checks)
    slot = arm.slot(4)
    assert len(slot["seconds"]) == 4
    assert min(slot["seconds"]) > 0
    assert arm.generated() == []


def test_hidden_states_predict_nothing_that_could_be_scored(sweep: Sweep, store: Store) -> None:
    arm, reference, _ = loaded(sweep, store)
    assert arm.text(reference, BOUNDS, "exact") is None


def test_an_arm_that_generates_gives_its_tokens_and_what_each_took(generating: Sweep, store: Store) -> None:
    arm, reference, _ = loaded(generating, store)
    arm.warm_up()
    slot = arm.slot(2)
    assert [len(tokens) for tokens in slot["token_s"]] == [4, 4]
    assert all(
        sum(tokens) == pytest.approx(run, rel=0.5) for tokens, run in zip(slot["token_s"], slot["seconds"], strict=True)
    )
    expected = load_file(reference / "reference.safetensors")["tokens"]
    assert arm.generated() == expected.tolist()


def test_the_timed_session_answers_for_its_perplexity(generating: Sweep, store: Store) -> None:
    arm, reference, _ = loaded(generating, store)
    arm.warm_up()
    row = arm.text(reference, BOUNDS, "exact")
    assert row is not None
    assert (row["output"], row["tokens"], row["window"]) == ("text", 14, 8)
    assert row["perplexity"] == pytest.approx(row["reference_perplexity"], rel=1e-4)
    assert (row["top1"], row["within_bound"]) == (1.0, True)


def test_an_arm_says_how_much_memory_it_has_had(sweep: Sweep, store: Store) -> None:
    arm, _, _ = loaded(sweep, store)
    arm.warm_up()
    memory = arm.memory()
    assert memory["peak_bytes"] > 50_000_000  # Python, numpy and ONNX Runtime
    assert memory["device_bytes"] is None


def test_an_arm_that_answers_something_else_is_outside_its_bound(sweep: Sweep, store: Store, tmp_path: Path) -> None:
    arm, reference, _ = loaded(sweep, store)
    arm.warm_up()
    expected = load_file(reference / "reference.safetensors")
    expected["hidden_states"] = expected["hidden_states"] + np.float32(0.1)
    save_file(expected, tmp_path / "other.safetensors")
    outside = [
        row["output"] for row in arm.check(tmp_path / "other.safetensors", BOUNDS, "exact") if not row["within_bound"]
    ]
    assert outside == ["hidden_states"]


@pytest.mark.xdist_group("alone")  # busy loops are timed
def test_a_slowdown_takes_its_share_of_the_arms_own_median_and_says_what_it_took(sweep: Sweep, store: Store) -> None:
    arm, _, _ = loaded(sweep, store, slowdown=2.0)
    arm.warm_up()
    arm.slot(20)  # its median is from a slot of runs from here on
    slot = arm.slot(20)
    net = [total - busy for total, busy in zip(slot["seconds"], slot["busy_s"], strict=True)]
    assert min(net) > 0
    assert statistics.median(slot["busy_s"]) / statistics.median(net) == pytest.approx(2.0, rel=0.5)


def test_timing_before_loading_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="load was not called"):
        Arm().slot(1)
