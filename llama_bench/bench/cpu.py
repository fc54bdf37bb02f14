"""What the CPUs of this machine are and what this process may use of them; None for what cannot be seen. A leaf."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import psutil

from llama_bench.bench import proc

CPUS = Path("/sys/devices/system/cpu")


def facts() -> dict[str, Any]:
    """Return what lasts of the CPUs and their settings, JSON-able, by flat keys."""
    frequency = CPUS / "cpu0/cpufreq"
    info = proc.read("/proc/cpuinfo")
    return {
        "cpu": name(info),
        "physical_cores": physical_cores(),
        "logical_cores": psutil.cpu_count() or 1,
        "sockets": sockets(),
        "affinity": len(allowed()),
        "cpu_quota": quota(),
        "cpuset": cgroup_text("cpuset", "cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"),
        "isolated_cpus": proc.read(CPUS / "isolated") or None,
        "governor": proc.read(frequency / "scaling_governor") or None,
        "frequency_driver": proc.read(frequency / "scaling_driver") or None,
        "min_mhz": _mhz(proc.read(frequency / "cpuinfo_min_freq")),
        "max_mhz": _mhz(proc.read(frequency / "cpuinfo_max_freq")),
        "boost": boost(),
        "smt": proc.read(CPUS / "smt/active") == "1",
        "cache_bytes": cache_bytes(),
        "numa_nodes": numa_nodes(),
        "microcode": _field(info, "microcode"),
        "hypervisor": "hypervisor" in flags if (flags := (_field(info, "flags") or "").split()) else None,
        "virtualisation": virtualisation(),
        "clock_source": proc.read("/sys/devices/system/clocksource/clocksource0/current_clocksource") or None,
    }


def name(info: str) -> str:
    """Return the processor's name as the system gives it; `info` is the text of `/proc/cpuinfo`."""
    return _field(info, "model name") or platform.processor() or platform.machine()


def allowed() -> list[int]:
    """Numbers of the CPUs this process may run on; all of them where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def physical_cores() -> int:
    """Physical cores this process may use: no more than its affinity and its container's CPU quota allow."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    limit = quota()
    return max(1, min(physical, len(allowed()), int(limit) if limit else physical))


def sockets() -> int | None:
    """Processor packages in this machine."""
    found = {proc.read(path) for path in CPUS.glob("cpu[0-9]*/topology/physical_package_id")} - {""}
    return len(found) or None


def quota() -> float | None:
    """CPUs that the container's quota allows (cgroup v2 `cpu.max`, v1 `cfs_quota_us`), None without a quota.

    A quota of any group above this process binds it too, so the least of them counts.
    """
    found = []
    for folder in proc.cgroup_folders(proc.read("/proc/self/cgroup"), "cpu"):
        words = proc.read(folder / "cpu.max").split() or [
            proc.read(folder / "cpu.cfs_quota_us"),
            proc.read(folder / "cpu.cfs_period_us"),
        ]
        if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
            found.append(int(words[0]) / int(words[1]))
    return min(found, default=None)


def cgroup_text(controller: str, *files: str) -> str | None:
    """Return the first of `files` that says something in the nearest of this process's groups, None without one."""
    for folder in proc.cgroup_folders(proc.read("/proc/self/cgroup"), controller):
        for file in files:
            if text := proc.read(folder / file):
                return text
    return None


def boost() -> bool | None:
    """Whether the CPUs may clock above their base frequency (turbo)."""
    if (on := proc.read(CPUS / "cpufreq/boost")) in ("0", "1"):
        return on == "1"
    off = proc.read(CPUS / "intel_pstate/no_turbo")
    return off == "0" if off in ("0", "1") else None


def cache_bytes() -> int | None:
    """Last-level cache in all that the CPUs this process may use reach: the sum over distinct caches, not CPUs.

    A virtual machine shows its host's cache, of which neighbours use their part.
    """
    caches: dict[str, int] = {}
    for number in allowed():
        levels = sorted((CPUS / f"cpu{number}/cache").glob("index*"), key=lambda one: proc.read(one / "level"))
        if levels and (size := proc.size_bytes(proc.read(levels[-1] / "size"))):
            shared = proc.read(levels[-1] / "shared_cpu_list") or str(number)
            caches[shared] = size
    return sum(caches.values()) or None


def numa_nodes() -> int | None:
    """Count the memory nodes that are online."""
    return len(proc.cpus(proc.read("/sys/devices/system/node/online"))) or None


def virtualisation() -> str | None:
    """What kind of virtual machine or container this is, as far as it says so itself; None when nothing does."""
    product = " ".join(
        text for file in ("sys_vendor", "product_name") if (text := proc.read(Path("/sys/class/dmi/id") / file))
    )
    container = next(
        (kind for path, kind in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")) if os.path.exists(path)),
        "kubernetes" if "KUBERNETES_SERVICE_HOST" in os.environ else None,
    )
    hypervisor = proc.read("/sys/hypervisor/type") or None
    return ", ".join(word for word in (hypervisor, product or None, container) if word) or None


def mhz() -> float | None:
    """Return the mean clock of all CPUs now, in MHz."""
    info = proc.read("/proc/cpuinfo")
    clocks = [line.partition(":")[2] for line in info.splitlines() if line.startswith("cpu MHz")]
    if clocks:
        return sum(float(clock) for clock in clocks) / len(clocks)
    return _mhz(proc.read(CPUS / "cpu0/cpufreq/scaling_cur_freq"))


def _field(info: str, key: str) -> str | None:
    for line in info.splitlines():
        found, _, value = line.partition(":")
        if found.strip() == key:
            return value.strip() or None
    return None


def _mhz(kilohertz: str) -> float | None:
    return int(kilohertz) / 1e3 if kilohertz.isdigit() else None
