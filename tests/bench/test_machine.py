"""What this machine is: real readings, and doubts from made-up ones."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from llama_bench.bench import machine
from llama_bench.schemas import SCHEMAS


@contextmanager
def busy_process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            yield busy
        finally:
            busy.kill()


def compute(process: subprocess.Popen[bytes], cpu_s: float) -> None:
    """Wait until a process has had the CPU for so many seconds more, however long others have it."""
    used = psutil.Process(process.pid)
    until = sum(used.cpu_times()[:2]) + cpu_s
    while sum(used.cpu_times()[:2]) < until:
        time.sleep(0.02)


def quiet(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hostname": "node", "cpu": "a CPU", "physical_cores": 8, "logical_cores": 8, "affinity": 8, "cpu_quota": None,
        "governor": "performance", "smt": False, "memory_bytes": 16 * 2**30, "memory_limit_bytes": None,
        "kernel": "6.1", "system": "Linux", "niceness": 0, "gpus": [], "now": now(),
    }  # fmt: skip
    return {**found, **changes}


def now(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "load_1m": 0.1, "memory_available_bytes": 2**33, "busy": [], "swap_used_bytes": 0, "steal_since_boot": 0.001,
        "gpu_processes": [],
    }  # fmt: skip
    return {**found, **changes}


def test_the_facts_of_this_machine_are_plausible_and_json() -> None:
    facts = json.loads(json.dumps(machine.facts()))
    assert 1 <= facts["physical_cores"] <= facts["logical_cores"] == os.cpu_count()
    assert facts["cpu"]
    assert facts["memory_bytes"] > 2**29


def test_a_quiet_machine_gives_no_doubts() -> None:
    assert machine.doubts(quiet()) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"now": now(load_1m=4.0)}, "load average"),
        ({"now": now(busy=[("cc1", 7, 0.9)])}, r"cc1 \(7\) uses 90%"),
        ({"now": now(steal_since_boot=0.025)}, r"took 2.5% of the CPU time"),
        ({"now": now(swap_used_bytes=3 * 2**20)}, "3 MiB of swap"),
        ({"now": now(gpu_processes=[(9, "blender")])}, r"on the GPU already: blender \(9\)"),
        ({"gpus": [{"name": "A100", "mig": True, "persistence": True}]}, r"A100 is split \(MIG\)"),
        ({"gpus": [{"name": "A100", "mig": False, "persistence": False}]}, "A100 has no persistence mode"),
        ({"gpus": [{"name": "A100", "compute_mode": "exclusive process"}]}, "A100 lets one process in at a time"),
        ({"cpu_quota": 1.5}, "quota of 1.5"),
        ({"smt": True, "logical_cores": 16}, "16 CPUs are 8 cores"),
        ({"governor": "powersave"}, "'powersave'"),
        ({"governor": None}, "cannot be seen"),
    ],
)
def test_what_makes_numbers_doubtful_is_said(changes: dict[str, Any], word: str) -> None:
    [said] = machine.doubts(quiet(**changes))
    assert re.search(word, said)


def test_what_cannot_be_seen_gives_no_doubts() -> None:
    unknown = now(swap_used_bytes=None, steal_since_boot=None)
    assert machine.doubts(quiet(now=unknown, gpus=[{"name": "A100", "mig": None, "persistence": None}])) == []


def test_the_fingerprint_follows_the_hardware_and_not_the_moment() -> None:
    busy = now(load_1m=9.0, memory_available_bytes=1, busy=[("x", 1, 1.0)])
    other = quiet(now=busy, hostname="other", niceness=15, memory_limit_bytes=5)
    assert machine.fingerprint(quiet()) == machine.fingerprint(other)
    assert machine.fingerprint(quiet()) != machine.fingerprint(quiet(cpu="another CPU"))
    assert machine.fingerprint(quiet()) != machine.fingerprint(quiet(governor="powersave"))
    assert machine.fingerprint(quiet()) != machine.fingerprint(quiet(boost=False))
    assert machine.fingerprint(quiet()) != machine.fingerprint(quiet(gpus=[{"name": "A100", "power_limit_w": 300.0}]))


def test_this_machine_has_one_fingerprint_however_often_it_is_asked() -> None:
    assert machine.fingerprint(machine.facts()) == machine.fingerprint(json.loads(json.dumps(machine.facts())))


def test_another_busy_process_is_found_by_name_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUSY_SHARE", 0.01)  # on a crowded machine a loop gets few percent
    with busy_process() as busy:
        found: list[int] = []
        while busy.pid not in found:  # until others leave it a share of the CPU
            found = [pid for _, pid, _ in machine.busy_processes(0.5, most=50)]
            assert os.getpid() not in found


def test_a_moment_has_the_columns_of_the_dataset_and_is_quick() -> None:
    moments, took_s = machine.Moments(gpu=False), []
    for _ in range(10):
        begin_s = time.perf_counter()
        moment = moments.now()
        took_s.append(time.perf_counter() - begin_s)
    moments.close()
    assert set(moment) <= set(SCHEMAS["machines"].names)
    assert list(moment) == list(machine.moment(gpu=False))
    assert moment["memory_available_bytes"] > 0
    assert min(took_s) < 0.5


def test_a_moment_names_who_was_busy_since_the_last_and_leaves_the_arms_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUSY_SHARE", 0.01)  # on a crowded machine a loop gets few percent
    moments = machine.Moments(gpu=False)
    with busy_process() as arm, busy_process() as stranger:
        for process in (arm, stranger):
            compute(process, 0.3)
        first = moments.now(own=[arm.pid], most=50)
        stranger.send_signal(signal.SIGSTOP)
        while psutil.Process(stranger.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.02)
        moments.now()
        compute(arm, 0.3)
        second = moments.now(own=[arm.pid], most=50)
    assert f"(pid {stranger.pid})" in first["busy"]
    assert f"(pid {arm.pid})" not in first["busy"] + second["busy"]
    assert f"(pid {stranger.pid})" not in second["busy"]


def test_two_moments_too_close_together_say_nothing_of_who_is_busy() -> None:
    moments = machine.Moments(gpu=False)
    assert moments.now()["busy"] is None
    assert machine.moment(gpu=False)["busy"] is None


def test_a_moment_of_a_gpu_holds_its_clock_power_heat_and_reasons(library: Any) -> None:
    moment = machine.moment(gpu=True)
    assert {key: moment[key] for key in ("sm_mhz", "power_w", "temperature_c", "throttle")} == {
        "sm_mhz": 1980, "power_w": 650.0, "temperature_c": 61, "throttle": "power cap",
    }  # fmt: skip
    assert library.opened == 0


def test_facts_name_the_gpus_and_who_is_on_them(library: Any) -> None:
    library.compute = [2**22 + 7]
    facts = machine.facts()
    assert [gpu["name"] for gpu in facts["gpus"]] == ["NVIDIA H200"]
    assert facts["now"]["gpu_processes"] == [(2**22 + 7, "python3")]


def test_the_rate_of_matrix_products_is_a_rate() -> None:
    assert 1e8 < machine.matmul_flops_per_s(256, 0.05) < 1e15
