"""What NVML tells of NVIDIA GPUs; None or nothing for whatever the library, the driver or the GPU cannot say. A leaf.

Source of names, units and bits: the NVML API reference ("Device Queries", "NvmlClocksEventReasons", "Field Value
Enums"). `library` is the one way in, so that a test can hand in a plain class.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from llama_bench.bench import proc

REASONS: dict[int, str] = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal",
    0x040: "hardware thermal",
    0x080: "power brake",
    0x100: "display clocks",
}
"""Bit of NVML's clocks event reasons → our word for why the GPU does not clock higher."""

COUNTERS: dict[str, str] = {
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN": "software thermal",
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN": "hardware thermal",
    "NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN": "power brake",
}
"""NVML's counters of nanoseconds that a reason held (newer drivers): they see what happens between two readings."""

KINDS = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
"""NVML's lists of the processes on a GPU."""

SLOWED = ("hardware slowdown", "software thermal", "hardware thermal", "power brake")
"""Reasons that slow a block for nothing it did. At the power cap a heavy matrix product always is: not one of them."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU; None for what it does not tell."""

    sm_mhz: float | None = None
    power_w: float | None = None  # mean of the last second (Ampere and newer), else of that moment
    temperature_c: float | None = None
    reasons: tuple[str, ...] | None = None
    held_ns: tuple[tuple[str, int], ...] = ()  # reason → nanoseconds that it held since the driver was loaded
    processes: tuple[tuple[int, str], ...] | None = None  # (pid, name) of whoever computes or draws on it


@dataclass(frozen=True, slots=True)
class Memory:
    """A GPU's memory in bytes; `own` is what this process holds of it, None where NVML does not name it."""

    total: int
    free: int
    own: int | None = None

    @property
    def others(self) -> int | None:
        """What all other processes and the driver hold, None where nobody knows what is ours."""
        return None if self.own is None else max(0, self.total - self.free - self.own)


@dataclass(frozen=True, slots=True)
class Occupant:
    """A process on a GPU, and the bytes that it holds there; None where NVML does not say."""

    pid: int
    name: str
    bytes: int | None = None

    def __str__(self) -> str:
        held = "" if self.bytes is None else f", {self.bytes / 1e9:.1f} GB"
        return f"{self.name} (pid {self.pid}{held})"


def library() -> Any:
    """Return NVML's Python binding, ready to be asked, or None: no library, no driver, no permission, no GPU.

    Every call that does not return None must be followed by one of `nvmlShutdown`: NVML counts them.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # each of the four says it with an exception of its own, and all mean that there is no GPU
        return None
    return pynvml


class Gpu:
    """One GPU to look at: the first that `visible` names.

    `visible` has the form of `CUDA_VISIBLE_DEVICES` (numbers, `GPU-…` or `MIG-…`), and is this process's own unless
    given: a coordinator that holds no GPU hands in its arms'. Without either it is GPU 0. Numbers are NVML's, by PCI
    bus, as Ray's are; CUDA's agree when the GPUs of a node are alike or `CUDA_DEVICE_ORDER=PCI_BUS_ID` is set.
    """

    def __init__(self, visible: str | None = None) -> None:
        self._nvml = library()
        self._handle = None
        if self._nvml is not None:
            names = os.environ.get("CUDA_VISIBLE_DEVICES", "") if visible is None else visible
            self._handle = _handle(self._nvml, names.split(",")[0].strip() or "0")

    def read(self) -> Reading | None:
        """Look at the GPU, in half a millisecond; None when there is none.

        The energy counter takes 2 to 15 ms (H200), and has a look of its own (:meth:`energy_j`).
        """
        nvml, gpu = self._nvml, self._handle
        if nvml is None or gpu is None:
            return None
        power_mw = ask(nvml, "nvmlDeviceGetPowerUsage", gpu)
        mask = ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", gpu)
        if mask is None:  # drivers before 535 know the older name alone
            mask = ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", gpu)
        return Reading(
            sm_mhz=ask(nvml, "nvmlDeviceGetClockInfo", gpu, nvml.NVML_CLOCK_SM),
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=ask(nvml, "nvmlDeviceGetTemperature", gpu, nvml.NVML_TEMPERATURE_GPU),
            reasons=None if mask is None else reasons(mask),
            held_ns=_held(nvml, gpu),
            processes=_processes(nvml, gpu),
        )

    def energy_j(self) -> float | None:
        """Return the joules that the GPU has used since its driver was loaded; None when it does not count them."""
        if self._nvml is None or self._handle is None:
            return None
        counted_mj = ask(self._nvml, "nvmlDeviceGetTotalEnergyConsumption", self._handle)
        return None if counted_mj is None else counted_mj / 1e3

    def memory(self) -> Memory | None:
        """Return the GPU's memory, and what this process holds of it; None where it does not tell."""
        found = None if self._handle is None else ask(self._nvml, "nvmlDeviceGetMemoryInfo", self._handle)
        if found is None:
            return None
        own = [one.bytes for one in self.occupants() if one.pid == os.getpid()]
        return Memory(int(found.total), int(found.free), own[0] if own else None)

    def occupants(self) -> list[Occupant]:
        """Return every process on the GPU, this one too, with what it holds."""
        nvml, gpu = self._nvml, self._handle
        if nvml is None or gpu is None:
            return []
        held: dict[int, int | None] = {}
        for kind in KINDS:
            for one in ask(nvml, kind, gpu) or ():
                bytes_held = getattr(one, "usedGpuMemory", None) or 0
                held[int(one.pid)] = max(held.get(int(one.pid)) or 0, bytes_held) or None
        return [Occupant(pid, _name(nvml, pid), held[pid]) for pid in sorted(held)]

    def close(self) -> None:
        """Let NVML go; more than once does no harm."""
        if self._nvml is not None:
            ask(self._nvml, "nvmlShutdown")
        self._nvml = self._handle = None


def memory(visible: str | None = None) -> Memory | None:
    """Return the memory of the GPU that `visible` names (see :class:`Gpu`), None without one."""
    gpu = Gpu(visible)
    try:
        return gpu.memory()
    finally:
        gpu.close()


def absent() -> str | None:
    """Return why NVML finds no GPU on this machine, None where it finds one. Asking costs a few milliseconds."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # pynvml has a class for each of NVML's errors, and its own absence is one more
        return MEANINGS.get(type(error).__name__.removeprefix("NVMLError_"), f"NVML says: {error}")
    try:
        why = None if ask(pynvml, "nvmlDeviceGetCount") else "the NVIDIA driver sees no GPU"
        return why
    finally:
        ask(pynvml, "nvmlShutdown")


MEANINGS = {
    "LibraryNotFound": "no NVIDIA driver is here: nvidia-smi must work, and a container needs --gpus all",
    "DriverNotLoaded": "the NVIDIA driver is not loaded: nvidia-smi must work (modprobe nvidia, or restart)",
    "LibRmVersionMismatch": "the NVIDIA driver was updated under a running system: restart the machine",
    "NoPermission": "this user may not use the NVIDIA driver: look at the permissions of /dev/nvidia*",
}
"""NVML's error → what it means."""


def facts() -> list[dict[str, Any]]:
    """Return what lasts of each GPU: name, driver, memory, limits and settings; empty where there is none."""
    nvml = library()
    if nvml is None:
        return []
    try:
        count = ask(nvml, "nvmlDeviceGetCount") or 0
        handles = [ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        return [_facts(nvml, gpu) for gpu in handles if gpu is not None]
    finally:
        ask(nvml, "nvmlShutdown")


def processes() -> list[tuple[int, str]]:
    """Return (pid, name) of every process on any GPU of this machine."""
    nvml = library()
    if nvml is None:
        return []
    try:
        handles = [ask(nvml, "nvmlDeviceGetHandleByIndex", i) for i in range(ask(nvml, "nvmlDeviceGetCount") or 0)]
        return sorted({one for gpu in handles if gpu is not None for one in _processes(nvml, gpu) or ()})
    finally:
        ask(nvml, "nvmlShutdown")


def reasons(mask: int) -> tuple[str, ...]:
    """Return the words of a mask of clocks event reasons, lowest bit first; unknown bits as hexadecimal numbers."""
    bits = [1 << place for place in range(mask.bit_length()) if mask >> place & 1]
    return tuple(REASONS.get(bit, hex(bit)) for bit in bits)


def foreign(found: Sequence[tuple[int, str]], own: Collection[int]) -> str | None:
    """Return the processes of `found` that are none of `own` in words: `name (pid 123)`; None when there is none.

    In a container NVML gives the host's process numbers, and none of `own` is among them. Then only their count can be
    judged: more processes than `own` has are said, naming them all, since nobody can tell which are the arms.
    """
    strangers = [one for one in found if one[0] not in own]
    named = ", ".join(f"{name} (pid {pid})" for pid, name in strangers)
    if len(strangers) < len(found) or not own:
        return named or None
    extra = len(found) - len(set(own))
    return f"{extra} more than the {len(set(own))} arms among {named}" if extra > 0 else None


def ask(nvml: Any, function: str, *arguments: Any) -> Any:
    """Call a function of NVML; None when it, the driver or the GPU has no answer."""
    try:
        call: Callable[..., Any] = getattr(nvml, function)
        return call(*arguments)
    except Exception:  # NVMLError of any kind, an older library without the function, a driver without the symbol
        return None


def _handle(nvml: Any, name: str) -> Any:
    if name.isdigit():
        return ask(nvml, "nvmlDeviceGetHandleByIndex", int(name))
    return ask(nvml, "nvmlDeviceGetHandleByUUID", name)


def _held(nvml: Any, gpu: Any) -> tuple[tuple[str, int], ...]:
    wanted = {getattr(nvml, name): word for name, word in COUNTERS.items() if hasattr(nvml, name)}
    values = ask(nvml, "nvmlDeviceGetFieldValues", gpu, list(wanted)) or ()
    return tuple((wanted[value.fieldId], int(value.value.ullVal)) for value in values if value.nvmlReturn == 0)


def _processes(nvml: Any, gpu: Any) -> tuple[tuple[int, str], ...] | None:
    answers = [ask(nvml, kind, gpu) for kind in KINDS]
    if all(answer is None for answer in answers):
        return None
    pids = sorted({int(process.pid) for answer in answers for process in answer or ()})
    return tuple((pid, _name(nvml, pid)) for pid in pids)


def _name(nvml: Any, pid: int) -> str:
    """The program's name: from our process table, else NVML's without folder and arguments, else a question mark."""
    words = str(ask(nvml, "nvmlSystemGetProcessName", pid) or "").split()
    return proc.read(f"/proc/{pid}/comm") or (words[0].rpartition("/")[2] if words else "?")


def _facts(nvml: Any, gpu: Any) -> dict[str, Any]:
    memory = ask(nvml, "nvmlDeviceGetMemoryInfo", gpu)
    cuda = ask(nvml, "nvmlSystemGetCudaDriverVersion")
    limit_mw = ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", gpu)
    ecc, mig = ask(nvml, "nvmlDeviceGetEccMode", gpu), ask(nvml, "nvmlDeviceGetMigMode", gpu)
    persistence = ask(nvml, "nvmlDeviceGetPersistenceMode", gpu)
    return {
        "name": ask(nvml, "nvmlDeviceGetName", gpu),
        "driver": ask(nvml, "nvmlSystemGetDriverVersion"),
        "cuda_driver": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "memory_bytes": None if memory is None else int(memory.total),
        "power_limit_w": None if limit_mw is None else limit_mw / 1e3,
        "max_sm_mhz": ask(nvml, "nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_SM),
        "max_memory_mhz": ask(nvml, "nvmlDeviceGetMaxClockInfo", gpu, nvml.NVML_CLOCK_MEM),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mig is None else bool(mig[0]),
        "persistence": None if persistence is None else bool(persistence),
        "compute_mode": _compute_mode(nvml, ask(nvml, "nvmlDeviceGetComputeMode", gpu)),
        "pcie_generation": ask(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", gpu),
        "pcie_lanes": ask(nvml, "nvmlDeviceGetMaxPcieLinkWidth", gpu),
    }


def _compute_mode(nvml: Any, mode: int | None) -> str | None:
    names = {
        nvml.NVML_COMPUTEMODE_DEFAULT: "default",
        nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive process",
        nvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    }
    return None if mode is None else names.get(mode, str(mode))
