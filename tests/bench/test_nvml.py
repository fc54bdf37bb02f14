"""Questions to NVML: to a plain class that answers as its reference says, and to a real GPU where there is one."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pynvml
import pytest

from llama_bench.bench import nvml

NOBODY = 2**22 + 7  # beyond the largest process number Linux gives
ALL = pynvml.nvmlClocksEventReasonAll


def test_every_reason_nvml_knows_has_a_word_and_an_unknown_one_its_number() -> None:
    words = nvml.reasons(ALL)
    assert len(words) == 9
    assert set(words) == set(nvml.REASONS.values())
    assert nvml.reasons(0) == ()
    assert nvml.reasons(pynvml.nvmlClocksEventReasonSwPowerCap | 1 << 20) == ("power cap", "0x100000")


@pytest.mark.parametrize(
    ("bit", "word"),
    [
        (pynvml.nvmlClocksEventReasonGpuIdle, "idle"),
        (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
        (pynvml.nvmlClocksEventReasonHwSlowdown, "hardware slowdown"),
        (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal"),
        (pynvml.nvmlClocksEventReasonHwThermalSlowdown, "hardware thermal"),
        (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, "power brake"),
    ],
)
def test_our_words_stand_at_nvmls_own_bits(bit: int, word: str) -> None:
    assert nvml.reasons(bit) == (word,)


def test_a_reading_has_watts_joules_and_words(library: Any) -> None:
    counter = pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN
    library.held_ns, library.compute, library.graphics = {counter: 5}, [NOBODY], [NOBODY, os.getpid()]
    gpu = nvml.Gpu()
    found = gpu.read()
    assert found is not None
    assert (found.sm_mhz, found.power_w, found.temperature_c) == (1980, 650.0, 61)
    assert found.reasons == ("power cap",)
    assert found.held_ns == (("hardware thermal", 5),)
    assert found.processes is not None
    assert [pid for pid, _ in found.processes] == sorted([os.getpid(), NOBODY])
    assert (NOBODY, "python3") in found.processes
    gpu.close()
    gpu.close()
    assert library.opened == 0
    assert gpu.read() is None


def test_what_the_gpu_cannot_say_is_none(library: Any) -> None:
    library.mask = library.compute = library.graphics = None
    found = nvml.Gpu().read()
    assert found is not None
    assert (found.reasons, found.processes, found.held_ns) == (None, None, ())
    library.graphics = []
    assert nvml.Gpu().read() == replace(found, processes=())


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, ("index", 0)),
        ("", ("index", 0)),
        ("0,1", ("index", 0)),
        ("3", ("index", 3)),
        ("GPU-8f6b,GPU-11", ("uuid", "GPU-8f6b")),
        ("MIG-7c", ("uuid", "MIG-7c")),
    ],
)
def test_the_gpu_is_the_first_that_is_visible(library: Any, visible: str | None, asked: tuple[str, object]) -> None:
    gpu = nvml.Gpu(visible)
    assert library.asked == [asked]
    assert (gpu.read() is None) == (asked == ("index", 3))  # there is one GPU alone


def test_without_a_word_the_own_environment_says_which_gpu(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5")
    nvml.Gpu()
    assert library.asked == [("uuid", "GPU-5")]


def test_the_facts_of_a_gpu_hold_its_limits_and_settings(library: Any) -> None:
    [found] = nvml.facts()
    assert found == {
        "name": "NVIDIA H200", "driver": "580.159.04", "cuda_driver": "13.0", "memory_bytes": 143771 * 2**20,
        "power_limit_w": 700.0, "max_sm_mhz": 1980, "max_memory_mhz": 3201, "ecc": True, "mig": False,
        "persistence": True, "compute_mode": "exclusive process", "pcie_generation": 5, "pcie_lanes": 16,
    }  # fmt: skip
    library.persistence = None
    assert nvml.facts()[0]["persistence"] is None
    assert library.opened == 0


def test_without_nvml_there_is_no_gpu_and_nothing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "library", lambda: None)
    gpu = nvml.Gpu("0")
    assert gpu.read() is None
    gpu.close()
    assert nvml.facts() == nvml.processes() == []


def test_who_is_on_a_gpu_is_told_with_what_it_holds(library: Any) -> None:
    library.compute, library.graphics = [os.getpid(), NOBODY], [NOBODY, NOBODY + 1]
    library.bytes_of = {os.getpid(): 3 * 10**9, NOBODY: 12_340_000_000}
    gpu = nvml.Gpu("0")
    assert [one.pid for one in gpu.occupants()] == [os.getpid(), NOBODY, NOBODY + 1]
    assert list(map(str, gpu.occupants()))[1:] == [
        f"python3 (pid {NOBODY}, 12.3 GB)",
        f"python3 (pid {NOBODY + 1})",
    ]
    total = 143771 * 2**20
    assert gpu.memory() == nvml.Memory(total, 100 * 2**30, 3 * 10**9)
    assert gpu.memory().others == total - 100 * 2**30 - 3 * 10**9
    gpu.close()
    assert gpu.memory() is None
    assert gpu.occupants() == []


def test_what_a_process_holds_that_nvml_does_not_name_is_unknown(library: Any) -> None:
    library.compute = [NOBODY]  # as in a container, which has process numbers of its own
    found = nvml.memory()
    assert found is not None
    assert (found.own, found.others) == (None, None)
    assert library.opened == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver is here"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "was updated under a running system"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "may not use"),
        (pynvml.NVML_ERROR_UNKNOWN, "NVML says: Unknown Error"),
    ],
)
def test_why_there_is_no_gpu_is_said_in_words(error: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", fails)
    assert words in str(nvml.absent())


def test_the_cells_own_arms_are_not_foreign() -> None:
    assert nvml.foreign([(5, "python"), (6, "python")], {5, 6, 7}) is None
    assert nvml.foreign([], {5}) is None


def test_a_stranger_beside_the_arms_is_named() -> None:
    assert nvml.foreign([(5, "python"), (9, "blender")], {5}) == "blender (pid 9)"
    assert nvml.foreign([(9, "blender")], ()) == "blender (pid 9)"


def test_in_a_container_only_more_processes_than_arms_are_foreign() -> None:
    seen = [(90, "?"), (91, "?"), (92, "?")]
    assert nvml.foreign(seen, {1, 2, 3}) is None
    assert nvml.foreign(seen, {1, 2}) == "1 more than the 2 arms among ? (pid 90), ? (pid 91), ? (pid 92)"


@pytest.mark.gpu
def test_a_real_gpu_answers() -> None:
    [found, *_] = nvml.facts()
    assert found["name"]
    gpu = nvml.Gpu()
    look = gpu.read()
    gpu.close()
    assert look is not None
    assert look.sm_mhz is not None
    assert look.sm_mhz <= found["max_sm_mhz"]
    assert look.reasons is not None
