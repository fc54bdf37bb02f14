"""What this machine is: real readings, and doubts from made-up ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from llama_bench.bench import machine


def quiet(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "hostname": "node", "cpu": "a CPU", "physical_cores": 8, "logical_cores": 8, "affinity": 8, "cpu_quota": None,
        "governor": "performance", "smt": False, "memory_bytes": 16 * 2**30, "kernel": "6.1", "system": "Linux",
        "gpus": [], "now": {"load_1m": 0.1, "memory_available_bytes": 2**33, "busy": []},
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
        ({"now": {"load_1m": 4.0, "busy": []}}, "load average"),
        ({"now": {"load_1m": 0.0, "busy": [("cc1", 7, 0.9)]}}, r"cc1 \(7\) uses 90%"),
        ({"cpu_quota": 1.5}, "quota of 1.5"),
        ({"smt": True, "logical_cores": 16}, "16 CPUs are 8 cores"),
        ({"governor": "powersave"}, "'powersave'"),
        ({"governor": None}, "cannot be seen"),
    ],
)
def test_what_makes_numbers_doubtful_is_said(changes: dict[str, Any], word: str) -> None:
    [said] = machine.doubts(quiet(**changes))
    assert __import__("re").search(word, said)


def test_the_fingerprint_follows_the_hardware_and_not_the_moment() -> None:
    now = {"load_1m": 9.0, "memory_available_bytes": 1, "busy": [("x", 1, 1.0)]}
    assert machine.fingerprint(quiet()) == machine.fingerprint(quiet(now=now, hostname="other"))
    assert machine.fingerprint(quiet()) != machine.fingerprint(quiet(cpu="another CPU"))
    assert machine.fingerprint(quiet()) != machine.fingerprint(quiet(governor="powersave"))


def test_another_busy_process_is_found_by_name_and_share() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            found = machine.busy_processes(0.5, most=50)
        finally:
            busy.kill()
    assert busy.pid in [pid for _, pid, _ in found]
    assert os.getpid() not in [pid for _, pid, _ in found]


def test_the_rate_of_matrix_products_is_a_rate() -> None:
    assert 1e8 < machine.matmul_flops_per_s(256, 0.05) < 1e15
