"""What disturbs a block: made-up looks for every bound, and real blocks on this machine."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import pynvml
import pytest

from llama_bench.bench import interference, nvml, proc
from llama_bench.bench.interference import Look, Monitor, Observed, observed

ARMS = (101, 102)
NOTHING = Observed(None, None, None, None, None, None, None)


def gpu(reasons: tuple[str, ...] = (), **changes: Any) -> nvml.Reading:
    known: dict[str, Any] = {"sm_mhz": 1980, "power_w": 650.0, "processes": ((101, "python"),)}
    return nvml.Reading(**{**known, "reasons": reasons, **changes})


def test_a_quiet_block_is_not_disturbed() -> None:
    first = Look(0.0, proc.CpuTime(0, 0, 5), 0, 7, 9, gpu(("power cap",)))
    last = Look(2.0, proc.CpuTime(400, 0, 7), 500_000, 7, 9, gpu(("power cap",)))
    assert observed(first, last, ARMS) == Observed(
        steal=pytest.approx(2 / 402), cpu_pressure=0.25, sm_mhz=1980, power_w=650.0, throttle="power cap",
        foreign=None, disturbed=None,
    )  # fmt: skip


def test_a_machine_that_tells_nothing_gives_a_block_of_nones() -> None:
    assert observed(Look(0.0), Look(1.0), ARMS) == NOTHING


def test_steal_above_its_bound_disturbs_a_block_and_is_said_with_its_share() -> None:
    seen = observed(Look(0.0, proc.CpuTime(0, 0, 0)), Look(2.0, proc.CpuTime(360, 0, 40)), ())
    assert seen.steal == pytest.approx(0.1)
    assert seen.disturbed == "the hypervisor took 10.0% of the CPU time asked for"


@pytest.mark.parametrize(
    ("busy", "stolen", "disturbed"),
    [
        (19, 1, False),  # 100 ms on 2 CPUs: one tick is 5 %, and may be a rounding
        (18, 2, True),  # two ticks are at least 10 ms that were really taken
        (990, 10, False),  # 1 % is the bound, not beyond it
        (988, 12, True),
    ],
)
def test_a_short_block_needs_more_than_one_stolen_tick(busy: int, stolen: int, disturbed: bool) -> None:
    seen = observed(Look(0.0, proc.CpuTime(0, 0, 0)), Look(0.1, proc.CpuTime(busy, 0, stolen)), ())
    assert (seen.disturbed is not None) == disturbed


def test_steal_from_one_busy_thread_is_seen_among_64_idle_cpus() -> None:
    first, last = Look(0.0, proc.CpuTime(0, 0, 0)), Look(10.0, proc.CpuTime(900, 63_000, 100))
    assert observed(first, last, ()).disturbed == "the hypervisor took 10.0% of the CPU time asked for"


def test_waiting_for_a_cpu_is_recorded_and_disturbs_nothing() -> None:
    seen = observed(Look(0.0, waited_us=0), Look(1.0, waited_us=900_000), ())
    assert seen.cpu_pressure == pytest.approx(0.9)
    assert seen.disturbed is None
    assert observed(Look(0.0, waited_us=0), Look(1.0, waited_us=1_000_900), ()).cpu_pressure == 1.0


def test_a_quota_and_heat_that_stopped_the_cpu_disturb_a_block() -> None:
    seen = observed(Look(0.0, quota_stops=4, heat_stops=1), Look(1.0, quota_stops=7, heat_stops=2), ())
    assert seen.disturbed == "throttled by the CPU quota 3 times; the CPU slowed down for heat once"
    assert seen.throttle == "CPU quota, CPU heat"


def test_a_counter_that_went_back_is_unknown() -> None:
    seen = observed(Look(0.0, waited_us=5, quota_stops=4), Look(1.0, waited_us=3, quota_stops=1), ())
    assert seen == NOTHING


@pytest.mark.parametrize("word", nvml.SLOWED)
@pytest.mark.parametrize("at_begin", [True, False])
def test_a_gpu_that_is_slowed_at_either_look_disturbs_a_block(word: str, at_begin: bool) -> None:
    slow, fine = gpu(("power cap", word)), gpu(("power cap",))
    seen = observed(Look(0.0, gpu=slow if at_begin else fine), Look(1.0, gpu=fine if at_begin else slow), ARMS)
    assert seen.disturbed == f"the GPU slowed down: {word}"
    assert seen.throttle == f"power cap, {word}"


@pytest.mark.parametrize("word", sorted(set(nvml.REASONS.values()) - set(nvml.SLOWED)))
def test_the_power_cap_and_other_harmless_reasons_are_recorded_alone(word: str) -> None:
    seen = observed(Look(0.0, gpu=gpu((word,))), Look(1.0, gpu=gpu(())), ARMS)
    assert (seen.throttle, seen.disturbed) == (word, None)


def test_heat_between_the_looks_is_seen_in_the_drivers_counter() -> None:
    first, last = (gpu(held_ns=(("hardware thermal", ns), ("power brake", 3))) for ns in (40, 41))
    seen = observed(Look(0.0, gpu=first), Look(1.0, gpu=last), ARMS)
    assert seen.disturbed == "the GPU slowed down: hardware thermal"
    assert observed(Look(0.0, gpu=last), Look(1.0, gpu=last), ARMS).throttle == ""


def test_a_foreign_process_at_either_look_disturbs_a_block() -> None:
    alone, joined = gpu(), gpu(processes=((101, "python"), (9, "blender")))
    for first, last in ((alone, joined), (joined, alone)):
        seen = observed(Look(0.0, gpu=first), Look(1.0, gpu=last), ARMS)
        assert seen.foreign == "blender (pid 9)"
        assert seen.disturbed == "foreign on the GPU: blender (pid 9)"


def test_clock_and_power_are_those_at_the_end_of_the_block() -> None:
    seen = observed(Look(0.0, gpu=gpu(sm_mhz=345, power_w=90.0)), Look(1.0, gpu=gpu()), ARMS)
    assert (seen.sm_mhz, seen.power_w) == (1980, 650.0)


def test_a_monitor_sees_a_real_block_on_this_machine() -> None:
    monitor = Monitor(False, [os.getpid()])
    monitor.begin()
    until = time.perf_counter() + 0.3
    while time.perf_counter() < until:
        pass
    seen = monitor.end()
    monitor.close()
    monitor.close()
    assert seen.sm_mhz is seen.power_w is seen.foreign is None
    if proc.cpu_time(proc.read("/proc/stat")):
        assert seen.steal is not None
        assert 0 <= seen.steal <= 1
    if proc.read("/proc/pressure/cpu"):
        assert seen.cpu_pressure is not None
        assert 0 <= seen.cpu_pressure <= 1


def test_a_monitor_waits_for_others_when_they_take_the_cpus() -> None:
    if not proc.read("/proc/pressure/cpu"):
        pytest.skip("this kernel tells no pressure")
    monitor = Monitor(False, [])
    monitor.begin()
    loop = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    children = [subprocess.Popen(["sh", "-c", loop]) for _ in range(1 + 2 * (os.cpu_count() or 1))]
    for child in children:
        child.wait()
    seen = monitor.end()
    monitor.close()
    assert seen.cpu_pressure is not None
    assert seen.cpu_pressure > 0.1


def test_watching_a_block_takes_well_under_a_millisecond_without_a_gpu() -> None:
    monitor = Monitor(False, [os.getpid()])
    took_s = []
    for _ in range(50):
        begin_s = time.perf_counter()
        monitor.begin()
        monitor.end()
        took_s.append(time.perf_counter() - begin_s)
    monitor.close()
    assert min(took_s) < 1e-3 * max(1, (os.cpu_count() or 1) / 64)


def test_an_end_without_a_begin_is_an_error() -> None:
    monitor = Monitor(False, [])
    with pytest.raises(RuntimeError, match="never began"):
        monitor.end()
    monitor.begin()
    monitor.end()
    with pytest.raises(RuntimeError, match="never began"):
        monitor.end()


def test_a_monitor_asked_for_a_gpu_where_there_is_none_sees_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "library", lambda: None)
    monitor = Monitor(True, ARMS)
    monitor.begin()
    seen = monitor.end()
    assert seen.sm_mhz is seen.power_w is seen.foreign is None


def test_a_monitor_where_no_file_can_be_read_gives_nones(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = type("Nothing", (proc.Held,), {"__init__": lambda self, paths: super(nothing, self).__init__([])})
    monkeypatch.setattr(interference.proc, "Held", nothing)
    monitor = Monitor(False, ARMS)
    monitor.begin()
    assert monitor.end() == NOTHING


def test_a_monitor_asks_nvml_and_lets_it_go(library: Any) -> None:
    library.compute = [os.getpid()]
    monitor = Monitor(True, [os.getpid()], visible="0")
    monitor.begin()
    library.mask = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    library.graphics = [2**22 + 7]
    seen = monitor.end()
    monitor.close()
    assert (seen.sm_mhz, seen.power_w, seen.throttle) == (1980, 650.0, "power cap, hardware thermal")
    assert seen.foreign == f"python3 (pid {2**22 + 7})"
    assert seen.disturbed is not None
    assert library.opened == 0
