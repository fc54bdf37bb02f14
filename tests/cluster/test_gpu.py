"""Cells on a GPU on which their arms do not fit together, that somebody else uses, or that cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from llama_bench import engines
from llama_bench.bench import nvml
from llama_bench.bench.slot import WASHOUT_GPU_S
from llama_bench.cluster import gpu
from llama_bench.cluster.job import Job, Prepared
from llama_bench.cluster.launch import GPU_MEMORY, Lost, raised
from llama_bench.cluster.processes import PlainProcess
from llama_bench.counts import model_bytes
from llama_bench.errors import GpuMemoryError
from llama_bench.estimate import CONTEXT_BYTES, arm_bytes, gpu_arm_bytes
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import CONTROL, Sweep, Target

from ..simulated import sweep as recorded
from .conftest import FACTS, TINY, measure

ALWAYS = ("original", CONTROL)
LOST = Lost("a", "load", GPU_MEMORY, "the GPU is out of memory", True)


@pytest.fixture(autouse=True)
def no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings take seconds, and have tests of their own."""
    for name in ("measure_ceilings", "measure_beaten_ceilings"):
        monkeypatch.setattr(f"llama_bench.cluster.cell.{name}", lambda *given: iter(()))


@pytest.fixture
def on_gpu(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Return a maker of the tiny sweep on a GPU that so many of its arms share; they only simulate that they use it."""

    def sweep(room: int, **more: str) -> dict[str, Any]:
        shared = tmp_path / "gpu"
        shared.mkdir()
        told = {"SIMULATED_GPU": str(shared), "SIMULATED_GPU_ROOM": str(room), "SIMULATED_RUN_S": "0.0005", **more}
        for key, value in recorded.environment(Path(store.uri), **told).items():
            monkeypatch.setenv(key, value)
        monkeypatch.delenv("SIMULATED_TIMINGS")
        monkeypatch.syspath_prepend(recorded.HERE)
        monkeypatch.setitem(engines.ENGINES, "simulated", engines.EngineInfo("simulated_engine", "", graph=False))
        data = {**TINY, "targets": {"gpu": {"tag": "bench_gpu", "provider": "CUDAExecutionProvider", "threads": 1}}}
        data["measure"] = {**TINY["measure"], "confirm": False, "blocks": 1}
        data["recipes"] = {name: {"engine": "simulated"} for name in ("original", "a", "b")}
        return data

    return sweep


def test_arms_that_do_not_fit_onto_the_gpu_together_are_timed_in_smaller_groups(
    store: Store, on_gpu: Callable[..., dict[str, Any]]
) -> None:
    frames, events = measure(on_gpu(3, SIMULATED_GPU_AT="1"), store)  # a second run wants memory
    assert not [event for event in events if event["kind"] == "failure"]
    [row] = frames.failures.collect().to_dicts()
    assert (row["kind"], row["group"], row["stage"]) == ("lost", 0, "warmup")
    assert row["message"].startswith("ONNX Runtime failed while running at MatMul '/lm_head/MatMul': ")
    assert "the GPU is out of memory, 2.8 GB more were wanted" in row["message"]
    assert row["message"].endswith("; 4 arms share the GPU: from here on fewer at a time")
    timed = frames.timings.select("group", "recipe").unique().sort("group", "recipe").collect()
    assert timed.rows() == [(group, name) for group, arm in ((1, "a"), (2, "b")) for name in sorted([*ALWAYS, arm])]
    rows = frames.speedups.collect()
    assert set(rows["restarts"]) == {2, 4}  # the baseline is in both groups
    assert not {"failed", "skipped"} & set(rows["verdict"])


def test_an_arm_on_a_gpu_runs_once_as_it_loads_and_its_slots_are_washed_out_until_the_clock_has_settled(
    store: Store, on_gpu: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, tuple[Any, ...]]] = []
    call = PlainProcess.call

    def recorded(self: PlainProcess, method: str, *arguments: Any) -> Any:
        called.append((method, arguments))
        return call(self, method, *arguments)

    monkeypatch.setattr(PlainProcess, "call", recorded)
    blocks = measure(on_gpu(9), store)[0].blocks.collect()
    first_runs = [arguments[-1] for method, arguments in called if method == "load" and len(arguments) == 4]
    assert first_runs == [True] * 2 * 4  # restarts × arms
    assert blocks["washout_s"].min() >= WASHOUT_GPU_S
    assert blocks["washout_s"].max() < WASHOUT_GPU_S + 0.2


def test_an_arm_that_does_not_even_fit_beside_baseline_and_control_is_given_up_and_the_others_go_on(
    store: Store, on_gpu: Callable[..., dict[str, Any]]
) -> None:
    frames, events = measure(on_gpu(4, SIMULATED_GPU_BIG="b"), store)
    [failed] = [event for event in events if event["kind"] == "failure"]
    assert failed["label"].endswith(" b")
    rows = frames.failures.sort("at").collect().to_dicts()
    kinds = ["lost", "lost", GPU_MEMORY]  # beside a, and twice without it
    assert [(row["recipe"], row["stage"], row["kind"]) for row in rows] == [("b", "load", kind) for kind in kinds]
    assert rows[-1]["message"].endswith("shares the GPU with 2 more, the fewest that can be compared")
    verdicts = {row["recipe"]: row for row in frames.speedups.collect().to_dicts()}
    assert verdicts["b"]["verdict"] == "failed"
    assert "the GPU is out of memory" in verdicts["b"]["evidence"]
    assert verdicts["a"]["restarts"] == 2


def test_a_cell_whose_baseline_cannot_run_here_is_one_failure_that_the_same_command_tries_again(
    store: Store, on_gpu: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = on_gpu(9, SIMULATED_MISSING="CUDAExecutionProvider cannot run: there is no NVIDIA driver here")
    frames, events = measure(sweep, store)
    [failed] = [event for event in events if event["kind"] == "failure"]
    assert failed["label"] == "h16-a2-l1/prefill/gpu"
    assert failed["detail"] == "engine: CUDAExecutionProvider cannot run: there is no NVIDIA driver here"
    [row] = frames.failures.collect().to_dicts()
    assert (row["recipe"], row["stage"], row["kind"]) == (None, "engine", "no engine")
    rows = frames.speedups.collect()
    assert set(rows["verdict"]) == {"failed"}
    assert rows["evidence"].str.contains("no NVIDIA driver").all()
    monkeypatch.delenv("SIMULATED_MISSING")
    again, _ = measure(sweep, store)
    assert set(again.speedups.filter(~pl.col("control")).collect()["restarts"]) == {2}


def job(**more: Any) -> Job:
    data = {**TINY, "targets": {"gpu": {"tag": "bench_gpu", "provider": "CUDAExecutionProvider"}}}
    [cell] = make(Sweep.model_validate(data), {}).cells
    return replace(Job(cell, Sweep.model_validate(data).measure, "", "", "here", FACTS, 10**12), **more)


def stored(on: Job, weight_bytes: int) -> list[Prepared]:
    manifest = {"weights": [["0" * 64, weight_bytes]]}
    return [Prepared(arm, Path(), {}, manifest, "exact") for arm in on.cell.arms]


def test_arms_on_a_gpu_make_their_first_run_side_by_side_but_for_those_that_time_kernels_then() -> None:
    on = job()
    [one, *_] = stored(on, 10)
    cpu = replace(on, cell=replace(on.cell, target=Target(tag="bench_cpu")))
    assert [gpu.runs_as_it_loads(where, one) for where in (on, cpu)] == [True, False]
    assert not gpu.runs_as_it_loads(on, replace(one, settings={"inductor": {"max_autotune": True}}))
    assert gpu.runs_as_it_loads(on, replace(one, settings={"inductor": None}))


def test_as_many_sessions_are_examined_at_once_as_cores_and_both_memories_take() -> None:
    on = job(node={**FACTS, "physical_cores": 16})
    arms = stored(on, 10 * 2**30)
    each = {one.arm.name: gpu.host_bytes(on, one) for one in arms}
    assert all(10 * 2**30 < size < 12 * 2**30 for size in each.values())  # the weights as they are read, and a process
    assert gpu.side_by_side(on, arms, each, None) == gpu.AT_ONCE
    assert gpu.side_by_side(replace(on, node={**FACTS, "physical_cores": 6}), arms, each, None) == 6
    cpu = replace(on, cell=replace(on.cell, target=Target(tag="bench_cpu")))
    assert gpu.side_by_side(cpu, arms, {name: 1 for name in each}, None) == 8
    assert gpu.side_by_side(replace(on, memory_bytes=70 * 2**30), arms, each, None) == 3  # each holds its model twice
    assert gpu.side_by_side(on, arms, each, nvml.Memory(80 * 2**30, 50 * 2**30, None)) == 4
    assert gpu.side_by_side(on, arms, each, nvml.Memory(80 * 2**30, 2**30, None)) == 1
    assert gpu.side_by_side(on, [], {}, None) == gpu.AT_ONCE


def test_on_a_cpu_an_arm_holds_its_model_and_on_a_gpu_its_weights_as_they_are_stored() -> None:
    on = job()
    [one, *_] = stored(on, 10 * 2**30)
    cpu = replace(on, cell=replace(on.cell, target=Target(tag="bench_cpu")))
    assert gpu.host_bytes(cpu, one) == arm_bytes(on.cell.model, on.cell.workload)
    assert gpu.host_bytes(on, one) > 10 * 2**30 > gpu.host_bytes(cpu, one)


class Once:
    """A launcher whose one process returns what it is given."""

    deadline_s = 1.0

    def __init__(self, answer: Any) -> None:
        self.answer, self.asked = answer, 0

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.asked += 1
        return self.answer


def looked(launcher: Any, one: Job) -> tuple[list[dict[str, Any]], nvml.Memory | None]:
    found = gpu.looked_at(one, launcher)
    events = []
    try:
        while True:
            events.append(next(found))
    except StopIteration as end:
        return events, end.value


def test_who_else_is_on_the_gpu_is_told_before_a_cell_begins() -> None:
    memory = nvml.Memory(80 * 10**9, 60 * 10**9)
    seen = gpu.Seen(memory, (nvml.Occupant(9, "blender", 12_300_000_000), nvml.Occupant(10, "Xorg")))
    [event], found = looked(Once(seen), job())
    assert found == memory
    assert (event["kind"], event["label"]) == ("doubt", "h16-a2-l1/prefill/gpu")
    assert "other processes are on the GPU: blender (pid 9, 12.3 GB), Xorg (pid 10)" in event["detail"]
    assert looked(Once(gpu.Seen(memory, ())), job()) == ([], memory)
    assert looked(Once(Lost(None, "", "died", "", False)), job()) == ([], None)


def test_no_process_is_started_to_look_at_a_gpu_that_a_cell_does_not_use() -> None:
    [cell] = make(Sweep.model_validate(TINY), {}).cells
    launcher = Once(gpu.Seen(None, ()))
    assert looked(launcher, job(cell=cell)) == ([], None)
    assert launcher.asked == 0


def test_a_look_leaves_out_itself_and_waits_for_those_that_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    left = [[nvml.Occupant(9, "python"), nvml.Occupant(os.getpid(), "python")], [nvml.Occupant(os.getpid(), "python")]]
    monkeypatch.setattr(nvml.Gpu, "occupants", lambda self: left.pop(0))
    assert gpu.look(5.0).occupants == ()
    assert left == []


def prepared(name: str, weights: int) -> Any:
    return SimpleNamespace(arm=SimpleNamespace(name=name), manifest={"weights": [("x", weights)]})


def grouped(memory: nvml.Memory | None, weights: dict[str, int], **more: Any) -> list[list[str]]:
    arms = [prepared(name, weights.get(name, 0)) for name in (*ALWAYS, "a", "b", "c", "d")]
    return gpu.groups(job(**more), arms, dict.fromkeys((*ALWAYS, "a", "b", "c", "d"), 10**9), memory)


def test_arms_are_grouped_by_what_their_weights_take_of_the_gpu() -> None:
    one = job()
    empty = gpu_arm_bytes(one.cell.model, one.cell.workload, 10**9) - 10**9
    assert empty > 600e6
    large = one.cell.workload.model_copy(update={"batch": 4096})
    fp32, fp16 = (gpu_arm_bytes(one.cell.model, large, model_bytes(one.cell.model) // by) for by in (1, 2))
    assert fp32 - CONTEXT_BYTES > 1.99 * (fp16 - CONTEXT_BYTES)  # activations too take half of it
    weights = dict.fromkeys((*ALWAYS, "a", "b", "c", "d"), 10 * 10**9)
    each = gpu_arm_bytes(one.cell.model, one.cell.workload, 10 * 10**9)
    assert each == empty + 10 * 10**9

    def free(arms: int) -> nvml.Memory:
        return nvml.Memory(10**12, int(each * arms / gpu.SHARE) + 10)

    everyone = [[*ALWAYS, "a", "b", "c", "d"]]
    assert grouped(None, weights) == everyone
    assert grouped(free(6), weights) == everyone
    assert grouped(free(5), weights) == [[*ALWAYS, "a", "b"], [*ALWAYS, "c", "d"]]
    single = [[*ALWAYS, name] for name in "abcd"]
    assert grouped(free(3), weights) == single
    assert grouped(free(1), weights) == single  # no more than an estimate: it is tried
    light = {name: 10**9 if name in "abcd" else size for name, size in weights.items()}
    assert grouped(free(3), light) == everyone


def test_the_hosts_memory_counts_beside_the_gpus() -> None:
    roomy = nvml.Memory(10**12, 10**12)
    assert grouped(roomy, {}, memory_bytes=4 * 10**9) == [[*ALWAYS, "a", "b"], [*ALWAYS, "c", "d"]]
    with pytest.raises(ValueError, match="of memory"):
        grouped(roomy, {}, memory_bytes=10**9)


def test_a_group_is_halved_down_to_one_arm_beside_baseline_and_control() -> None:
    assert gpu.halves([*ALWAYS, "a", "b", "c"], ALWAYS) == [[*ALWAYS, "a", "b"], [*ALWAYS, "c"]]
    assert gpu.halves([*ALWAYS, "a"], ALWAYS) == gpu.halves(ALWAYS, ALWAYS) == []


def test_in_the_least_of_groups_the_arm_is_to_blame_whoever_asked_last() -> None:
    many = gpu.crowded(LOST, [*ALWAYS, "a", "b"], ALWAYS)
    assert (many.arm, many.final) == ("a", False)
    assert many.message.endswith("4 arms share the GPU: from here on fewer at a time")
    least = gpu.crowded(replace(LOST, arm=CONTROL), [*ALWAYS, "b"], ALWAYS)
    assert least.arm == "b"
    assert f"{CONTROL} shares the GPU with 2 more" in least.message
    assert gpu.crowded(replace(LOST, arm=CONTROL), ALWAYS, ALWAYS).arm == CONTROL


def test_want_of_gpu_memory_is_a_kind_of_its_own() -> None:
    assert raised(GpuMemoryError("x")) == Lost(None, "", GPU_MEMORY, "x", True)
