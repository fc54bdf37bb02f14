"""What is found of each arm before it is timed: what is executed, and on a GPU its kernels. No GPU and no Ray here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llama_bench
from llama_bench.bench.kernels import Kernel, Profile
from llama_bench.bench.machine import facts
from llama_bench.cluster import examine as examining
from llama_bench.cluster import profiling
from llama_bench.cluster.job import Job, Prepared
from llama_bench.cluster.launch import GPU_MEMORY, Lost
from llama_bench.engines import Task
from llama_bench.engines.executed import Executed
from llama_bench.parts import finished
from llama_bench.plan import Arm, Plan, make
from llama_bench.results import write_run
from llama_bench.stats.progress import Progress
from llama_bench.store import Store
from llama_bench.sweep import Sweep

PROFILE = Profile(5, 12.0, 3e-3, 4e-3, 5e-3, (Kernel("gemm", "matmul", 9.0, 2e-3), Kernel("cast", "other", 3.0, 1e-3)))
TORCH = {"engine": "torch-sdpa"}
EXECUTED = Executed("ab" * 32, 2, {"MatMul": 2}, {"CUDAExecutionProvider": {"MatMul": 2}}, "cd" * 32)


class Launched:
    """Answers for the processes that a GPU would need, and remembers what they were asked."""

    deadline_s = 1.0

    def __init__(self, profile: Any) -> None:
        self.profile, self.asked = profile, []  # type: ignore[var-annotated]

    def start(self, make: Callable[[], Any], count: int) -> list[Any]:
        self.asked.append((make.__name__, count))
        return [Answering(self) for _ in range(count)]

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.asked.append((function.__name__, arguments[1]["engine"]))
        return EXECUTED


class Answering:
    """A process that answers at once."""

    def __init__(self, launched: Launched) -> None:
        self.launched, self.value = launched, None  # type: ignore[var-annotated]

    def call(self, method: str, *arguments: Any) -> Answering:
        what = next((one["engine"] for one in arguments if isinstance(one, dict)), None)
        self.launched.asked.append((method, what))
        self.value = {"run": EXECUTED, "load": self.launched.profile is not None, "profile": self.launched.profile}[
            method
        ]
        return self

    def wait(self) -> Any:
        return self.value

    def kill(self) -> None:
        self.launched.asked.append(("kill", None))


def planned(tiny: dict[str, Any], provider: str) -> Plan:
    tiny["recipes"] = tiny["recipes"] if "compiled" in tiny["recipes"] else {"original": {}, "torch": TORCH}
    tiny["targets"] = {"A": {"tag": "bench_gpu", "provider": provider}}
    return make(Sweep.model_validate(tiny), {})


def settings(arm: Arm, provider: str) -> dict[str, Any]:
    said = {"engine": arm.recipe.engine, "provider": provider, "tf32": arm.recipe.session.tf32}
    return said | ({"inductor": {"max_autotune": True}} if arm.recipe.engine == "torch-compile" else {})


def examined(
    tiny: dict[str, Any], store: Store, profile: Any, provider: str = "CUDAExecutionProvider", count: int = 1
) -> Any:
    """Examine the arms of one cell; return its results, what was told, and what processes were asked for."""
    plan = planned(tiny, provider)
    [cell] = plan.cells
    run, launched = "tiny/20260102T030405Z-f00d", Launched(profile)
    manifest = {"graph_sha256": "g", "files": [], "weights": [], "build_s": 1.0, "export": {"nodes": 3}}
    manifest |= {"kind": "export", "parent": None}
    ready = {arm.name: Prepared(arm, Path(), settings(arm, provider), manifest, "exact") for arm in cell.arms}
    job = Job(cell, plan.sweep.measure, store.uri, run, "here", facts(), 10**12)
    progress, task = Progress(cell.id, cell.baseline), Task({}, {}, {})
    told = list(examining.examine(job, launched, store, progress, ready, task, {}, count))
    write_run(store, run, {"sweep": plan.sweep.model_dump(mode="json"), "cells": [cell.entry], "machines": []})
    return llama_bench.load(store.url(run)), told, launched.asked


@pytest.fixture(autouse=True)
def no_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "_effects", lambda store, variant: [])


def test_on_a_gpu_every_session_is_profiled_once_those_of_torch_too(tiny: dict[str, Any], store: Store) -> None:
    frames, told, asked = examined(tiny, store, PROFILE)
    assert asked == [
        ("_examine_one", "onnxruntime"),
        *[("Watched", 1), ("load", "onnxruntime"), ("profile", None), ("kill", None)],
        *[("Watched", 1), ("load", "torch-sdpa"), ("profile", None), ("kill", None)],
    ]  # the control is the baseline's session
    assert not [event for event in told if event["kind"] != "slot"]
    kernels = frames.kernels.collect()
    assert kernels.height == 6
    assert kernels.filter(recipe="torch").select("kernel", "class", "count", "seconds").rows() == [
        ("gemm", "matmul", 9.0, 2e-3),
        ("cast", "other", 3.0, 1e-3),
    ]
    columns = ("kernel_runs", "kernel_launches", "kernel_busy_s", "kernel_span_s", "kernel_wall_s")
    assert set(frames.variants.collect().select(columns).rows()) == {(5, 12.0, 3e-3, 4e-3, 5e-3)}


def test_sessions_are_looked_at_side_by_side_where_there_is_room_and_profiled_one_after_the_other(
    tiny: dict[str, Any], store: Store
) -> None:
    tiny["recipes"] = {name: {"session": {"tf32": name == "a"}} for name in ("original", "a")}
    tiny["recipes"] |= {"compiled": {"engine": "torch-compile"}, "eager": {"engine": "torch-eager"}}
    frames, _, asked = examined(tiny, store, PROFILE, count=3)
    assert asked == [
        *[("Function", 2), ("run", "onnxruntime"), ("run", "onnxruntime"), ("kill", None), ("kill", None)],
        *[("Watched", 1), ("load", "torch-compile"), ("profile", None), ("kill", None)],  # alone: it measures kernels
        *[("Watched", 3), ("load", "onnxruntime"), ("load", "onnxruntime"), ("load", "torch-eager")],
        *[("profile", None)] * 3,
        *[("kill", None)] * 3,
    ]
    assert frames.variants.collect()["kernel_launches"].to_list() == [12.0] * 5


def test_what_fails_for_want_of_memory_beside_others_is_looked_at_again_by_itself(
    tiny: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny["recipes"] = {name: {"session": {"tf32": name == "a"}} for name in ("original", "a")}
    tiny["recipes"] |= {"compiled": {"engine": "torch-compile"}, "eager": {"engine": "torch-eager"}}
    full = Lost(None, "", GPU_MEMORY, "the GPU is out of memory", True)
    answer = Answering.call

    def crowded(self: Answering, method: str, *arguments: Any) -> Answering:
        answer(self, method, *arguments)
        beside = [count for what, count in self.launched.asked if what in ("Function", "Watched")][-1]
        self.value = full if method in ("run", "load") and beside > 1 else self.value
        return self

    monkeypatch.setattr(Answering, "call", crowded)
    frames, told, asked = examined(tiny, store, PROFILE, count=3)
    assert [what for what, _ in asked].count("_examine_one") == 2
    assert frames.failures.collect().is_empty()
    assert frames.variants.collect()["kernel_launches"].to_list() == [12.0] * 5
    assert not [event for event in told if event["kind"] != "slot"]


@pytest.mark.parametrize("lost", [None, Lost(None, "", "died", "its process was lost: SIGSEGV", False)])
def test_a_profile_that_comes_to_nothing_costs_the_arm_nothing(
    tiny: dict[str, Any], store: Store, lost: Lost | None
) -> None:
    frames, told, _ = examined(tiny, store, lost)
    notes = [event["detail"] for event in told if event["kind"] == "note"]
    why = "its process was lost: SIGSEGV" if lost else profiling.UNSEEN
    assert notes == [f"no profile of {arm}'s kernels: {why}" for arm in ("original", "torch")]
    assert frames.variants.collect()["kernel_launches"].to_list() == [None] * 3
    assert frames.variants.collect().filter(recipe="original")["executed_nodes"].to_list() == [2]
    assert frames.failures.collect().is_empty()
    assert not finished(store, "tiny/20260102T030405Z-f00d")["kernels"]


def test_on_a_cpu_no_process_is_asked_for_kernels(tiny: dict[str, Any], store: Store) -> None:
    frames, _, asked = examined(tiny, store, PROFILE, "CPUExecutionProvider")
    assert asked == [("_examine_one", "onnxruntime")]
    assert frames.kernels.collect().is_empty()
