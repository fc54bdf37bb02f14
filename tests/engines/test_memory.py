"""What this process holds on GPUs is NVML's word, None where it has none."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from llama_bench.engines.memory import device_bytes


def nvml(*gpus: dict[int, int | None], fails: bool = False) -> tuple[Any, list[str]]:
    """Return a library with these GPUs (process → bytes), and what it was asked to do."""
    asked: list[str] = []

    def initialise() -> None:
        if fails:
            raise RuntimeError("no driver")
        asked.append("init")

    library = SimpleNamespace(
        nvmlInit=initialise,
        nvmlShutdown=lambda: asked.append("shutdown"),
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [
            SimpleNamespace(pid=pid, usedGpuMemory=held) for pid, held in gpu.items()
        ],
    )
    return library, asked


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        ([{os.getpid(): 5 << 30, 1: 7 << 30}, {2: 1}], 5 << 30),
        ([{os.getpid(): 3}, {os.getpid(): 4}], 7),
        ([{1: 7 << 30}], None),
        ([{os.getpid(): None}], None),
        ([], None),
    ],
)
def test_only_this_process_counts_on_all_gpus(
    monkeypatch: pytest.MonkeyPatch, gpus: list[dict[int, int | None]], expected: int | None
) -> None:
    library, asked = nvml(*gpus)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert device_bytes() == expected
    assert asked == ["init", "shutdown"]


def test_without_a_driver_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    library, asked = nvml(fails=True)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert device_bytes() is None
    library, asked = nvml({})
    del library.nvmlDeviceGetCount
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert device_bytes() is None
    assert asked == ["init", "shutdown"]
