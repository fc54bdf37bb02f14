"""A whole sweep through Ray on a real GPU: `pytest -m gpu`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import llama_bench
from llama_bench.bench.nvml import Gpu
from llama_bench.cluster import driver
from llama_bench.cluster.events import Event, RunResult
from llama_bench.stats.views import Frames
from llama_bench.store import Store
from llama_bench.sweep import Sweep

pytestmark = [pytest.mark.gpu, pytest.mark.ray]

SWEEP: dict[str, Any] = {
    "name": "on_gpu",
    "models": [
        {
            "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
            "intermediate_size": 256, "vocab_size": 256, "max_position_embeddings": 64, "cache": True,
        }
    ],
    "recipes": {
        "original": {"session": {"tf32": False}},
        "fused": {"passes": [{"fuse": "all"}, {"precision": "fp16"}], "session": {"cuda_graph": True}},
        "torch": {"engine": "torch-sdpa", "session": {"tf32": False}},
        "limited": {"session": {"tf32": False, "provider_options": {"gpu_mem_limit": 4096}}},
    },
    "workloads": {"decode": {"kind": "decode", "batch": 1, "context": 16}},
    "targets": {"gpu": {"tag": "bench_gpu", "provider": "CUDAExecutionProvider", "threads": 2}},
    "measure": {"restarts": 2, "blocks": 2, "runs": 3, "half_width": None, "confirm": False, "seed": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[RunResult, Frames, list[Event]]:
    store, events = Store(tmp_path_factory.mktemp("on_gpu") / "store"), list[Event]()
    result = driver.run(Sweep.model_validate(SWEEP), store, on_event=events.append)
    return result, llama_bench.load(store.url(result.run)), events


def test_every_arm_is_timed_on_the_gpu_and_answers_as_torch_does(finished: Any) -> None:
    result, frames, _ = finished
    assert result.unserved == {}
    counts = frames.timings.filter("kept").group_by("recipe").len().collect()
    assert dict(counts.iter_rows()) == dict.fromkeys(("original", "control", "fused", "torch"), 2 * 2 * 3)
    machines = frames.machines.collect()
    assert machines["provider"].unique().to_list() == ["CUDAExecutionProvider"]
    assert machines["gpu"].null_count() == 0
    verdicts = dict(frames.speedups.select("recipe", "verdict").collect().iter_rows())
    assert "wrong" not in verdicts.values()


def test_an_arm_without_memory_is_a_row_with_its_reason_and_the_others_go_on(finished: Any) -> None:
    result, frames, _ = finished
    [failed] = result.failures
    assert "limited" in failed
    assert "the GPU is out of memory" in failed
    [row] = frames.failures.filter(pl.col("kind") != "lost").collect().to_dicts()
    assert (row["recipe"], row["stage"], row["kind"]) == ("limited", "examine", "gpu memory")


def test_blocks_have_the_gpus_clock_power_and_reasons_and_its_arms_are_no_strangers(finished: Any) -> None:
    blocks = finished[1].blocks.collect()
    assert blocks["sm_mhz"].min() > 100
    assert blocks["power_w"].min() > 10
    assert blocks["throttle"].null_count() == 0
    assert blocks["foreign"].null_count() == blocks.height
    assert not [event for event in finished[2] if "other processes are on the GPU" in event.detail]


def test_results_have_the_memory_that_each_arm_holds_on_the_gpu(finished: Any) -> None:
    import torch

    held = finished[1].machines.select("recipe", "device_bytes").collect()
    gpu, one = Gpu(), torch.ones(1, device="cuda")
    named = {occupant.pid: occupant.bytes for occupant in gpu.occupants()}
    gpu.close()
    assert one.sum() == 1
    torchs = held.filter(pl.col("recipe") == "torch")["device_bytes"]  # torch knows it itself
    assert torchs.null_count() == 0
    if named.get(os.getpid()) is None:
        pytest.skip("NVML does not say here which process holds what")
    assert held["device_bytes"].null_count() == 0
    assert held["device_bytes"].min() > 100e6  # CUDA's context alone


def test_the_cells_ceilings_are_the_gpus(tmp_path: Path, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_BENCH_CEILINGS", "1")
    sweep = {**SWEEP, "recipes": {"original": {}}, "measure": {**SWEEP["measure"], "blocks": 1}}
    store = Store(tmp_path / "store")
    result = driver.run(Sweep.model_validate(sweep), store)
    found = llama_bench.load(store.url(result.run)).ceilings.collect()
    assert {"fp32", "tf32", "fp16"} <= set(found.filter(pl.col("what") == "matmul")["dtype"])
    assert {"read", "copy"} <= set(found["what"])
