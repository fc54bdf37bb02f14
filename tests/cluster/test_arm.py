"""An arm's process, called directly: no Ray."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_bench.bench.accuracy import Bounds
from llama_bench.cluster.arm import Arm
from llama_bench.cluster.build import build
from llama_bench.engines import onnxruntime as engine
from llama_bench.model.inputs import make_inputs
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Session, Sweep

BOUNDS = Bounds(max_rel=1e-3, min_cosine=None, max_kl=None, min_top1=None)


@pytest.fixture
def variant(sweep: Sweep, store: Store) -> Path:
    plan = make(sweep, {})
    export = plan.artifacts[plan.cells[0].reference]
    build(export, store)
    return store.fetch(export.id)


def test_an_arm_loads_warms_up_checks_and_times(variant: Path, sweep: Sweep) -> None:
    arm = Arm()
    assert arm.identify()["pid"] == os.getpid()
    settings = engine.settings(Session(), sweep.targets["cpu"], 1)
    loaded = arm.load(variant, settings, make_inputs(sweep.models[0], sweep.workloads["prefill"]))
    assert loaded == {"providers": ["CPUExecutionProvider"], "threads": 1}
    assert arm.warm_up()["runs"] >= 3
    checks = arm.check(variant / "reference.safetensors", BOUNDS, "exact")
    assert {row["output"] for row in checks} == {"hidden_states", "present.0.key", "present.0.value"}
    assert all(row["within_bound"] for row in checks)
    slot = arm.slot(4)
    assert len(slot["seconds"]) == 4
    assert min(slot["seconds"]) > 0


def test_an_arm_that_answers_something_else_is_outside_its_bound(variant: Path, sweep: Sweep, tmp_path: Path) -> None:
    arm = Arm()
    settings = engine.settings(Session(), sweep.targets["cpu"], 1)
    arm.load(variant, settings, make_inputs(sweep.models[0], sweep.workloads["prefill"]))
    arm.warm_up()
    reference = load_file(variant / "reference.safetensors")
    reference["hidden_states"] = reference["hidden_states"] + np.float32(0.1)
    save_file(reference, tmp_path / "other.safetensors")
    outside = [
        row["output"] for row in arm.check(tmp_path / "other.safetensors", BOUNDS, "exact") if not row["within_bound"]
    ]
    assert outside == ["hidden_states"]


def test_a_slowdown_takes_its_share_of_the_arms_own_median_and_says_what_it_took(variant: Path, sweep: Sweep) -> None:
    arm = Arm()
    settings = {**engine.settings(Session(), sweep.targets["cpu"], 1), "slowdown": 2.0}
    arm.load(variant, settings, make_inputs(sweep.models[0], sweep.workloads["prefill"]))
    arm.warm_up()
    arm.slot(20)  # its median is from a slot of runs from here on
    slot = arm.slot(20)
    net = [total - busy for total, busy in zip(slot["seconds"], slot["busy_s"], strict=True)]
    assert min(net) > 0
    assert statistics.median(slot["busy_s"]) / statistics.median(net) == pytest.approx(2.0, rel=0.5)


def test_timing_before_loading_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="load was not called"):
        Arm().slot(1)
