"""What disturbed a block of slots: two looks at the kernel's counters and at the GPU, right before it and right after.

There is no thread in between, since it would disturb the block itself; what happens inside is seen where a counter goes
on counting (stolen CPU time, pressure, throttling), and missed where there is none (a GPU process that came and went).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama_bench.bench import nvml, proc

STEAL_SHARE = 0.01  # of the CPU time that was asked for: beyond it a block is disturbed
CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of a block; None for what cannot be seen on this machine."""

    steal: float | None  # share of the CPU time asked for that the hypervisor gave to others
    cpu_pressure: float | None  # share of the block in which some task waited for a CPU; the cell's own arms count too
    sm_mhz: float | None  # at the end
    power_w: float | None  # mean of the second before its end
    throttle: str | None  # words joined by commas
    foreign: str | None  # `name (pid 123)`: on the GPU and none of the cell's arms
    disturbed: str | None  # one short sentence; None when nothing exceeded its bound


@dataclass(frozen=True, slots=True)
class Look:
    """Everything that is looked at, at one moment; None for what cannot be seen."""

    at_s: float
    cpu: proc.CpuTime | None = None
    waited_us: int | None = None
    quota_stops: int | None = None
    heat_stops: int | None = None
    gpu: nvml.Reading | None = None


class Monitor:
    """Watches blocks: `begin()` right before one, `end()` right after it, `close()` after the last.

    `own` are the process ids of the cell's arms. `visible` names the GPU as `CUDA_VISIBLE_DEVICES` does (see
    :class:`llama_bench.bench.nvml.Gpu`). No method raises because something cannot be read.
    """

    def __init__(self, gpu: bool, own: Sequence[int], visible: str | None = None) -> None:
        folders = proc.cgroup_folders(proc.read("/proc/self/cgroup"), "cpu")
        self._own = frozenset(own)
        self._stat = proc.Held(["/proc/stat"])
        self._pressure = proc.Held(["/proc/pressure/cpu"])
        self._quota = proc.Held([folder / "cpu.stat" for folder in folders])
        self._heat = proc.Held(sorted(CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count")))
        self._gpu = nvml.Gpu(visible) if gpu else None
        self._first: Look | None = None

    def begin(self) -> None:
        """Take the first look."""
        self._first = self._look()

    def end(self) -> Observed:
        """Take the second look and say what happened since `begin`. Raises RuntimeError without one."""
        if self._first is None:
            raise RuntimeError("end() of a block that never began: call begin() first")
        first, self._first = self._first, None
        return observed(first, self._look(), self._own)

    def close(self) -> None:
        """Let go of files and of NVML; more than once does no harm."""
        for held in (self._stat, self._pressure, self._quota, self._heat):
            held.close()
        if self._gpu is not None:
            self._gpu.close()

    def _look(self) -> Look:
        return Look(
            at_s=time.perf_counter(),
            cpu=proc.cpu_time("".join(self._stat.texts())),
            waited_us=proc.stalled_us("".join(self._pressure.texts())),
            quota_stops=_sum(proc.throttled(text) for text in self._quota.texts()),
            heat_stops=_sum(int(text) if text.strip().isdigit() else None for text in self._heat.texts()),
            gpu=self._gpu.read() if self._gpu is not None else None,
        )


def observed(first: Look, last: Look, own: Collection[int]) -> Observed:
    """Say what happened between two looks; `own` are the process ids that may be on the GPU."""
    seconds = last.at_s - first.at_s
    waited = _since(first.waited_us, last.waited_us)
    throttle = _throttle(first.gpu, last.gpu)
    quota, heat = _since(first.quota_stops, last.quota_stops), _since(first.heat_stops, last.heat_stops)
    stranger = _foreign(first.gpu, last.gpu, own)
    said = [
        _stolen(first.cpu, last.cpu),
        f"throttled by the CPU quota {_times(quota)}" if quota else None,
        f"the CPU slowed down for heat {_times(heat)}" if heat else None,
        *(f"the GPU slowed down: {word}" for word in throttle or () if word in nvml.SLOWED),
        f"foreign on the GPU: {stranger}" if stranger else None,
    ]
    words = [*(throttle or ()), *(["CPU quota"] if quota else []), *(["CPU heat"] if heat else [])]
    return Observed(
        steal=proc.stolen_share(first.cpu, last.cpu),
        cpu_pressure=None if waited is None or seconds <= 0 else min(1.0, waited / 1e6 / seconds),
        sm_mhz=None if last.gpu is None else last.gpu.sm_mhz,
        power_w=None if last.gpu is None else last.gpu.power_w,
        throttle=None if throttle is None and quota is None and heat is None else ", ".join(words),
        foreign=stranger,
        disturbed="; ".join(one for one in said if one) or None,
    )


def _stolen(first: proc.CpuTime | None, last: proc.CpuTime | None) -> str | None:
    share, least = proc.stolen_share(first, last), proc.stolen_share(first, last, surely=True)
    if share is None or least is None or least <= STEAL_SHARE:
        return None
    return f"the hypervisor took {share:.1%} of the CPU time asked for"


def _throttle(first: nvml.Reading | None, last: nvml.Reading | None) -> list[str] | None:
    """Reasons that held at one of the looks, or in between where the driver counts; None when the GPU tells nothing."""
    looks = [look for look in (first, last) if look is not None and look.reasons is not None]
    before = dict(first.held_ns) if first is not None else {}
    after = dict(last.held_ns) if last is not None else {}
    between = [word for word, ns in after.items() if word in before and ns > before[word]]
    if not looks and not after:
        return None
    return list(dict.fromkeys([word for look in looks for word in look.reasons or ()] + between))


def _foreign(first: nvml.Reading | None, last: nvml.Reading | None, own: Collection[int]) -> str | None:
    """Return the strangers of either look; the first look's are named when both have some."""
    looks = [look for look in (first, last) if look is not None and look.processes is not None]
    return next((said for look in looks if (said := nvml.foreign(look.processes or (), own))), None)


def _since(first: int | None, last: int | None) -> int | None:
    """How far a counter moved; None when it cannot be read or went back (a CPU or a group that came and went)."""
    return None if first is None or last is None or last < first else last - first


def _sum(counts: Iterator[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
