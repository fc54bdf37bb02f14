"""What changed between two runs is listed, and nothing else."""

from __future__ import annotations

import copy
import json
from types import ModuleType
from typing import Any

import pytest

from llama_bench.stats.environment import ONLY, Difference, differences


@pytest.fixture
def world(synthetic: ModuleType) -> Any:
    found = synthetic.world({name: synthetic.Truth() for name in ("one", "two")}, restarts=2, pilot=2)
    found.run["code"] = "c0de" * 16
    for row in found.rows["variants"]:
        row["settings"] = json.dumps({"intra_op_num_threads": 2, "config": {"spinning": "1"}})
    for row in found.rows["machines"]:
        row |= {"threads": 2, "provider": "CPUExecutionProvider", "hardware": "1111"}
        row["facts"] = json.dumps({"hostname": "host", "cpu": "A CPU", "kernel": "6.1", "now": {"load_1m": 1.0}})
    return found


def between(a: Any, b: Any) -> list[Difference]:
    return differences((a.run, a.datasets()), (b.run, b.datasets()))


def test_equal_runs_differ_in_nothing(world: Any) -> None:
    other = copy.deepcopy(world)
    other.run.update({"created_at": "2027-01-01T00:00:00Z", "fingerprint": "other"})
    for row in other.rows["machines"]:
        row["facts"] = row["facts"].replace("1.0", "7.0")  # the load is of the moment
    assert between(world, other) == []


def test_libraries_and_code(world: Any) -> None:
    other = copy.deepcopy(world)
    other.run.update({"versions": {"onnxruntime": "1.32.0", "ray": "2.60.0"}, "code": "beef" * 16})
    assert between(world, other) == [
        Difference("library", "onnxruntime", "1.31.1", "1.32.0"),
        Difference("library", "ray", "–", "2.60.0"),
        Difference("llama_bench", "code that measures", "c0dec0de", "beefbeef"),
    ]


def test_facts_of_the_machine(world: Any) -> None:
    other = copy.deepcopy(world)
    for row in other.rows["machines"]:
        row["hostname"] = "host-2"
        row["facts"] = json.dumps({"hostname": "host-2", "cpu": "A CPU", "kernel": "6.2", "smt": False})
    assert between(world, other) == [
        Difference("machine of target B", "hostname", "host", "host-2"),
        Difference("machine of target B", "kernel", "6.1", "6.2"),
    ]


def test_several_machines_are_named_where_they_are_not_the_same(world: Any) -> None:
    other = copy.deepcopy(world)
    other.move(1, hostname="host-2", facts=json.dumps({"cpu": "Another CPU"}), hardware="2222")
    [found] = between(world, other)
    assert found == Difference("machine of target B", "machines", "host, A CPU", "host, A CPU; host-2, Another CPU")


def test_threads_that_arms_had_and_session_settings_are_said_once_for_all_arms(world: Any) -> None:
    other = copy.deepcopy(world)
    for row in other.rows["machines"]:
        row["threads"] = 4
    for row in other.rows["variants"]:
        row["settings"] = json.dumps({"intra_op_num_threads": 4, "config": {"spinning": "0"}})
    assert between(world, other) == [
        Difference("arms on target B", "threads", "2", "4"),
        Difference("settings on target B", "config.spinning (original, one, two, control)", "1", "0"),
        Difference("settings on target B", "intra_op_num_threads (original, one, two, control)", "2", "4"),
    ]


def test_measure_keys_and_parts_of_the_sweep(world: Any) -> None:
    other = copy.deepcopy(world)
    sweep = other.run["sweep"]
    sweep["measure"] |= {"restarts": 9, "half_width": None}
    sweep["targets"]["B"]["threads"] = 8
    sweep["models"][0]["opset"] = 20
    sweep["recipes"]["one"]["passes"] = [{"family": "quantize", "name": "", "options": {"bits": 4}}]
    sweep["recipes"]["three"] = sweep["recipes"].pop("two")
    found = {(one.part, one.what): (one.a, one.b) for one in between(world, other)}
    assert found == {
        ("measure", "half_width"): ("0.01", "–"),
        ("measure", "restarts"): ("2", "9"),
        ("model h512-a4-l2", "opset"): ("18", "20"),
        ("sweep", f"recipes{ONLY}"): ("two", "three"),
        ("recipe one", "passes"): ("–", "quantize: {bits: 4}"),
        ("target B", "threads"): ("–", "8"),
    }
