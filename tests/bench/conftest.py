"""What the tests of this package share: a plain class in place of NVML, for machines without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from llama_bench.bench import nvml


@dataclass
class Library:
    """NVML's functions over one GPU; constants and errors are pynvml's own, and what is None the GPU cannot say."""

    mask: int | None = pynvml.nvmlClocksEventReasonSwPowerCap
    compute: list[int] | None = field(default_factory=list)
    graphics: list[int] | None = field(default_factory=list)
    held_ns: dict[int, int] = field(default_factory=dict)
    energy_mj: int | None = 5_000_500
    bytes_of: dict[int, int] = field(default_factory=dict)
    free: int = 100 * 2**30
    mig: int = pynvml.NVML_DEVICE_MIG_DISABLE
    persistence: int | None = pynvml.NVML_FEATURE_ENABLED
    asked: list[tuple[str, Any]] = field(default_factory=list)
    opened: int = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML_"):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.04"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000

    def nvmlSystemGetProcessName(self, pid: int) -> str:
        return "/usr/bin/python3 -m train"

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked.append(("index", index))
        if index > 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(("uuid", uuid))
        return "gpu"

    def nvmlDeviceGetName(self, gpu: str) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, gpu: str) -> Any:
        return SimpleNamespace(total=143771 * 2**20, free=self.free)

    def nvmlDeviceGetClockInfo(self, gpu: str, clock: int) -> int:
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}[clock]

    nvmlDeviceGetMaxClockInfo = nvmlDeviceGetClockInfo

    def nvmlDeviceGetPowerUsage(self, gpu: str) -> int:
        return 650_000

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: str) -> int:
        return _told(self.energy_mj)

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: str) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, gpu: str, sensor: int) -> int:
        return {pynvml.NVML_TEMPERATURE_GPU: 61}[sensor]

    def nvmlDeviceGetCurrentClocksEventReasons(self, gpu: str) -> int:
        return _told(self.mask)

    def nvmlDeviceGetFieldValues(self, gpu: str, fields: list[int]) -> list[Any]:
        missing = pynvml.NVML_ERROR_NOT_SUPPORTED
        return [
            SimpleNamespace(
                fieldId=one,
                nvmlReturn=pynvml.NVML_SUCCESS if one in self.held_ns else missing,
                value=SimpleNamespace(ullVal=self.held_ns.get(one, 0)),
            )
            for one in fields
        ]

    def nvmlDeviceGetComputeRunningProcesses(self, gpu: str) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=self.bytes_of.get(pid)) for pid in _told(self.compute)]

    def nvmlDeviceGetGraphicsRunningProcesses(self, gpu: str) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in _told(self.graphics)]

    def nvmlDeviceGetEccMode(self, gpu: str) -> list[int]:
        return [pynvml.NVML_FEATURE_ENABLED, pynvml.NVML_FEATURE_ENABLED]

    def nvmlDeviceGetMigMode(self, gpu: str) -> list[int]:
        return [self.mig, self.mig]

    def nvmlDeviceGetPersistenceMode(self, gpu: str) -> int:
        return _told(self.persistence)

    def nvmlDeviceGetComputeMode(self, gpu: str) -> int:
        return int(pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, gpu: str) -> int:
        return 5

    def nvmlDeviceGetMaxPcieLinkWidth(self, gpu: str) -> int:
        return 16


def _told(value: Any) -> Any:
    if value is None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """NVML's only way in leads to a :class:`Library`, which the test may change."""
    found = Library()

    def opened() -> Library:
        found.opened += 1
        return found

    monkeypatch.setattr(nvml, "library", opened)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found
