"""What this process holds on a GPU, as NVML counts it."""

from __future__ import annotations

import os
from typing import Any


def device_bytes() -> int | None:
    """Return the bytes that this process holds on all GPUs: context, weights, caches and the arena of its session.

    None without a GPU, and where NVML names no process of this number (in a container it gives the host's numbers) or
    not its memory. Source: NVML API reference, nvmlDeviceGetComputeRunningProcesses.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no permission, no GPU: each says it with an exception of its own
        return None
    try:
        return _held(pynvml, os.getpid())
    except Exception:  # NVMLError of any kind
        return None
    finally:
        pynvml.nvmlShutdown()


def _held(nvml: Any, pid: int) -> int | None:
    gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    found = [one for gpu in gpus for one in nvml.nvmlDeviceGetComputeRunningProcesses(gpu) if one.pid == pid]
    held = [one.usedGpuMemory for one in found if one.usedGpuMemory is not None]
    return sum(held) if held else None
