"""What this machine is and what would make its numbers doubtful. A leaf: it imports nothing of llama_bench."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import time
from pathlib import Path
from typing import Any

import psutil

BUSY_SHARE = 0.10  # of one core, by processes that are not ours
LOAD_SHARE = 0.25  # of the cores


def physical_cores() -> int:
    """Physical cores this process may use: no more than its affinity and its container's CPU quota allow."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    quota = cpu_quota()
    return max(1, min(physical, allowed, int(quota) if quota else physical))


def cpu_quota() -> float | None:
    """CPUs that the container's quota allows (cgroup v2 `cpu.max`, v1 `cfs_quota_us`), None without a quota."""
    v2 = _read("/sys/fs/cgroup/cpu.max").split()
    if len(v2) == 2 and v2[0] != "max":
        return int(v2[0]) / int(v2[1])
    quota, period = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def memory_bytes() -> int:
    """Memory of this machine or of the container's limit, whichever is less."""
    total = int(psutil.virtual_memory().total)
    limit = _read("/sys/fs/cgroup/memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def gpus() -> list[dict[str, Any]]:
    """Name, driver and memory of each NVIDIA GPU; empty where there is none or no driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no permission: all mean that no GPU can be used here
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append({"name": pynvml.nvmlDeviceGetName(handle), "driver": driver, "memory_bytes": memory})
        return found
    finally:
        pynvml.nvmlShutdown()


def facts() -> dict[str, Any]:
    """Everything about this machine that a reader of its timings may ask for, JSON-able.

    Keys that never change while it runs are the machine's identity (see :func:`fingerprint`); `now` holds the rest.
    """
    return {
        "hostname": socket.gethostname(),
        "cpu": cpu_name(),
        "physical_cores": physical_cores(),
        "logical_cores": psutil.cpu_count() or 1,
        "affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_quota": cpu_quota(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
        "smt": _read("/sys/devices/system/cpu/smt/active") == "1",
        "memory_bytes": memory_bytes(),
        "kernel": platform.release(),
        "system": platform.system(),
        "gpus": gpus(),
        "now": {
            "load_1m": os.getloadavg()[0],
            "memory_available_bytes": int(psutil.virtual_memory().available),
            "busy": busy_processes(),
        },
    }


def fingerprint(machine: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with the hardware and its settings, not with the moment."""
    lasting = {key: value for key, value in machine.items() if key not in ("now", "hostname", "memory_bytes")}
    lasting["memory_gib"] = round(machine["memory_bytes"] / 2**30)
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]


def doubts(machine: dict[str, Any]) -> list[str]:
    """Say in one sentence each what would make timings on this machine doubtful; empty when nothing would."""
    said = []
    now, cores = machine["now"], machine["physical_cores"]
    if now["load_1m"] > LOAD_SHARE * machine["logical_cores"]:
        said.append(
            f"load average is {now['load_1m']:.1f} on {machine['logical_cores']} CPUs: something else is running"
        )
    for name, pid, share in now["busy"]:
        said.append(f"process {name} ({pid}) uses {share:.0%} of a core")
    if machine["cpu_quota"]:
        said.append(f"a CPU quota of {machine['cpu_quota']:g} CPUs throttles in bursts: times will have steps")
    if machine["smt"]:
        said.append(f"SMT is on: {machine['logical_cores']} CPUs are {cores} cores; threads are set to the cores")
    if machine["governor"] not in (None, "performance"):
        said.append(f"frequency policy is {machine['governor']!r}, not 'performance': clocks follow the load")
    elif machine["governor"] is None:
        said.append("the frequency policy cannot be seen here (virtual machine?): clocks and neighbours are unknown")
    return said


def busy_processes(seconds: float = 0.25, most: int = 3) -> list[tuple[str, int, float]]:
    """Processes other than this one that use more than a tenth of a core: (name, pid, share of one core)."""
    watched = {}
    for process in psutil.process_iter():
        try:
            watched[process] = sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    time.sleep(seconds)
    found = []
    for process, before in watched.items():
        try:
            share = (sum(process.cpu_times()[:2]) - before) / seconds
            if share > BUSY_SHARE and process.pid != os.getpid():
                found.append((process.name(), process.pid, round(share, 2)))
        except psutil.Error:
            continue
    return sorted(found, key=lambda row: -row[2])[:most]


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def matmul_flops_per_s(size: int = 2048, seconds: float = 0.3) -> float:
    """Measure fp32 matrix products for about `seconds`: operations a second of the fastest, for estimates only."""
    import numpy as np

    a = np.ones((size, size), dtype=np.float32)
    fastest, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
