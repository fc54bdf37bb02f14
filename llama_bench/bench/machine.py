"""What this machine is and what would make its numbers doubtful. A leaf with `cpu`, `nvml` and `proc` beside it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import time
from collections.abc import Collection, Iterator
from typing import Any

import psutil

from llama_bench.bench import cpu, nvml, proc

BUSY_SHARE = 0.10  # of one core, by processes that are not ours
LOAD_SHARE = 0.25  # of the cores
STEAL_SHARE = 0.01  # of the CPU time asked for since the machine started
LOOK_S = 0.2  # a share of CPU time over less is mostly the kernel's rounding to ticks of 10 ms
MOST_BUSY = 3

PASSING = ("now", "hostname", "niceness", "memory_bytes", "memory_limit_bytes")
"""Facts that are no part of a machine's identity: the moment, its name, the asking process; memory counts in GiB."""


class Moments:
    """What the machine is doing, once a restart: busy processes and stolen time are those since the last time asked.

    `own` are the process ids that are no news: the coordinator and its arms. This process never is. The first moment
    looks back to when the object was made.
    """

    def __init__(self, gpu: bool, visible: str | None = None) -> None:
        self._gpu = nvml.Gpu(visible) if gpu else None
        self._last = _cpu_seconds()
        self._time = proc.cpu_time(proc.read("/proc/stat"))
        self._at_s = time.perf_counter()

    def now(self, own: Collection[int] = (), most: int = MOST_BUSY) -> dict[str, Any]:
        """Return the moment's columns of dataset `machines`, the `most` busiest processes among them; None is unseen.

        It takes 4 ms beside 90 processes. `busy` is empty when nothing is, and None sooner than 0.2 s after the last.
        """
        current, at_s, cpu_time = _cpu_seconds(), time.perf_counter(), proc.cpu_time(proc.read("/proc/stat"))
        busy = _busy(self._last, current, at_s - self._at_s, {*own, os.getpid()}, most)
        stolen = proc.stolen_share(self._time, cpu_time)
        self._last, self._at_s, self._time = current, at_s, cpu_time
        look = self._gpu.read() if self._gpu is not None else None
        return {
            "load_1m": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "steal": stolen,
            "cpu_pressure": proc.stalled_share(proc.read("/proc/pressure/cpu")),
            "memory_pressure": proc.stalled_share(proc.read("/proc/pressure/memory")),
            "cpu_mhz": cpu.mhz(),
            "memory_available_bytes": int(psutil.virtual_memory().available),
            "busy": None if busy is None else ", ".join(f"{name} (pid {pid}) {share:.0%}" for name, pid, share in busy),
            "sm_mhz": None if look is None else look.sm_mhz,
            "power_w": None if look is None else look.power_w,
            "temperature_c": None if look is None else look.temperature_c,
            "throttle": None if look is None or look.reasons is None else ", ".join(look.reasons),
        }

    def close(self) -> None:
        """Let NVML go; more than once does no harm."""
        if self._gpu is not None:
            self._gpu.close()


def moment(gpu: bool) -> dict[str, Any]:
    """Return the columns of :meth:`Moments.now` without a look back: `busy` and `steal` are None."""
    moments = Moments(gpu)
    try:
        return moments.now() | {"busy": None, "steal": None}
    finally:
        moments.close()


def facts() -> dict[str, Any]:
    """Everything about this machine that a reader of its timings may ask for, JSON-able.

    Keys that never change while it runs are the machine's identity (see :func:`fingerprint`); `now` holds the rest.
    """
    since_boot = proc.cpu_time(proc.read("/proc/stat"))
    return {
        "hostname": socket.gethostname(),
        **cpu.facts(),
        "memory_bytes": memory_bytes(),
        "memory_limit_bytes": memory_limit_bytes(),
        "swap_bytes": int(psutil.swap_memory().total),
        "huge_pages": proc.chosen(proc.read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "kernel": platform.release(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "address_randomisation": proc.read("/proc/sys/kernel/randomize_va_space") or None,
        "niceness": os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else None,
        "gpus": gpus(),
        "now": {
            "load_1m": os.getloadavg()[0],
            "memory_available_bytes": int(psutil.virtual_memory().available),
            "swap_used_bytes": int(psutil.swap_memory().used),
            "steal_since_boot": proc.stolen_share(proc.CpuTime(0, 0, 0), since_boot),
            "busy": busy_processes(),
            "gpu_processes": nvml.processes(),
            "no_gpu": nvml.absent(),
        },
    }


def memory_bytes() -> int:
    """Memory of this machine or of the container's limit, whichever is less."""
    total, limit = int(psutil.virtual_memory().total), memory_limit_bytes()
    return total if limit is None else min(total, limit)


def memory_limit_bytes() -> int | None:
    """Bytes that the container may use (cgroup v2 `memory.max`, v1 `memory.limit_in_bytes`), None without a limit.

    The limit of any group above this process binds it too, so the least of them counts; version 1 writes "no limit"
    as a number beyond any memory.
    """
    total, found = int(psutil.virtual_memory().total), []
    for folder in proc.cgroup_folders(proc.read("/proc/self/cgroup"), "memory"):
        for file in ("memory.max", "memory.limit_in_bytes"):
            text = proc.read(folder / file)
            if text.isdigit() and int(text) < total:
                found.append(int(text))
    return min(found, default=None)


def gpus() -> list[dict[str, Any]]:
    """Name, driver, memory, limits and settings of each NVIDIA GPU; empty where there is none or no driver."""
    return nvml.facts()


def fingerprint(machine: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with the hardware and its settings, not with the moment."""
    lasting = {key: value for key, value in machine.items() if key not in PASSING}
    lasting["memory_gib"] = round(machine["memory_bytes"] / 2**30)
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]


def doubts(machine: dict[str, Any]) -> list[str]:
    """Say in one sentence each what would make timings on this machine doubtful; empty when nothing would."""
    return [*_cpu_doubts(machine), *_memory_doubts(machine), *_gpu_doubts(machine)]


def _cpu_doubts(machine: dict[str, Any]) -> Iterator[str]:
    now, cores, logical = machine["now"], machine["physical_cores"], machine["logical_cores"]
    if now["load_1m"] > LOAD_SHARE * logical:
        yield f"load average is {now['load_1m']:.1f} on {logical} CPUs: something else is running"
    for name, pid, share in now["busy"]:
        yield f"process {name} ({pid}) uses {share:.0%} of a core"
    if (now.get("steal_since_boot") or 0) > STEAL_SHARE:
        yield (
            f"the hypervisor took {now['steal_since_boot']:.1%} of the CPU time asked for since this virtual machine "
            "started: its neighbours are busy"
        )
    if machine["cpu_quota"]:
        yield f"a CPU quota of {machine['cpu_quota']:g} CPUs throttles in bursts: times will have steps"
    if machine["smt"]:
        yield f"SMT is on: {logical} CPUs are {cores} cores; threads are set to the cores"
    if machine["governor"] not in (None, "performance"):
        yield f"frequency policy is {machine['governor']!r}, not 'performance': clocks follow the load"
    elif machine["governor"] is None:
        yield "the frequency policy cannot be seen here (virtual machine?): clocks and neighbours are unknown"


def _memory_doubts(machine: dict[str, Any]) -> Iterator[str]:
    if used := machine["now"].get("swap_used_bytes"):
        yield f"{used / 2**20:.0f} MiB of swap are in use: memory that comes back from a disk is slow"


def _gpu_doubts(machine: dict[str, Any]) -> Iterator[str]:
    if found := machine["now"].get("gpu_processes"):
        named = ", ".join(f"{name} ({pid})" for pid, name in found)
        yield f"on the GPU already: {named}; what is not an arm of the cell disturbs its blocks"
    for gpu in machine["gpus"]:
        if gpu.get("mig"):
            yield f"{gpu['name']} is split (MIG): an arm times one part of it, and other parts share its memory's power"
        if gpu.get("compute_mode") == "exclusive process":
            yield f"{gpu['name']} lets one process in at a time, and arms share it: nvidia-smi --compute-mode=DEFAULT"
        if gpu.get("persistence") is False:
            yield f"{gpu['name']} has no persistence mode: the driver unloads between processes and the first are slow"


def busy_processes(seconds: float = 0.25, most: int = MOST_BUSY) -> list[tuple[str, int, float]]:
    """Processes other than this one that use more than a tenth of a core: (name, pid, share of one core)."""
    first, at_s = _cpu_seconds(), time.perf_counter()
    time.sleep(seconds)
    last = _cpu_seconds()
    return _busy(first, last, time.perf_counter() - at_s, {os.getpid()}, most) or []


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


def _cpu_seconds() -> dict[tuple[int, int], tuple[str, float]]:
    """CPU time of every process: (pid, its start) → (name, seconds). A number that was given away again is another."""
    ticks_per_s = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    told = ((pid, proc.process_cpu_s(text, ticks_per_s)) for pid, text in proc.processes())
    return {(pid, found[1]): (found[0], found[2]) for pid, found in told if found is not None}


def _busy(
    first: dict[tuple[int, int], tuple[str, float]],
    last: dict[tuple[int, int], tuple[str, float]],
    seconds: float,
    own: Collection[int],
    most: int = MOST_BUSY,
) -> list[tuple[str, int, float]] | None:
    """Busiest processes between two looks: (name, pid, share of one core); None when they are too close together."""
    if seconds < LOOK_S or not last:
        return None
    used = [(name, key[0], (spent - first.get(key, ("", 0.0))[1]) / seconds) for key, (name, spent) in last.items()]
    found = [(name, pid, round(share, 2)) for name, pid, share in used if share > BUSY_SHARE and pid not in own]
    return sorted(found, key=lambda row: -row[2])[:most]
