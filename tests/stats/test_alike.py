"""What counts as the same in two runs: the question, the hardware, the program."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from llama_bench.stats.alike import hardware, other_question, same_hardware, same_program
from llama_bench.sweep import Sweep

RUN = {"versions": {"onnxruntime-gpu": "1.31.1", "torch": "2.13.0", "numpy": "2.4", "python": "3.11"}, "code": "c0de"}
ARM = {
    "engine": "onnxruntime",
    "variant": "variant-1",
    "executed_sha256": "ab" * 32,
    "placement_sha256": "cd" * 32,
    "settings_sha256": "ef" * 32,
}
TORCH = ARM | {"engine": "torch-sdpa", "executed_sha256": None, "placement_sha256": None}


def test_the_same_graph_placement_settings_and_onnxruntime_are_one_program() -> None:
    proof = same_program(ARM, dict(ARM), RUN, RUN | {"code": "other"})
    assert proof is not None
    assert "abababab…" in proof


@pytest.mark.parametrize("key", ["executed_sha256", "placement_sha256", "settings_sha256", "engine"])
def test_what_differs_or_is_unknown_in_one_of_them_is_another_program(key: str) -> None:
    assert same_program(ARM, ARM | {key: "other"}, RUN, RUN) is None
    assert same_program(ARM | {key: None}, ARM | {key: None}, RUN, RUN) is None


@pytest.mark.parametrize("versions", [{"onnxruntime-gpu": "1.32.0"}, {"onnxruntime": "1.31.1"}, {}, None])
def test_the_same_graph_under_another_or_an_unknown_onnxruntime_is_another_program(versions: Any) -> None:
    other = RUN | {"versions": versions}
    assert same_program(ARM, ARM, RUN, other) is None
    assert same_program(ARM, ARM, other, other) is None or versions


def test_an_engine_of_torch_is_the_same_when_all_that_shapes_it_is() -> None:
    newer = RUN | {"versions": RUN["versions"] | {"onnxruntime-gpu": "1.32.0"}}  # type: ignore[operator]
    assert same_program(TORCH, TORCH, RUN, newer) is not None
    assert same_program(TORCH, TORCH | {"variant": "variant-2"}, RUN, newer) is None
    assert same_program(TORCH, TORCH, RUN, newer | {"code": "other"}) is None
    assert same_program(TORCH, TORCH, RUN, newer | {"versions": {"torch": "2.14.0"}}) is None
    openvino = TORCH | {"engine": "openvino"}  # its version is nowhere in a run
    assert same_program(openvino, openvino, RUN, RUN) is None
    assert same_program(None, ARM, RUN, RUN) is None


def test_hardware_is_that_of_each_target_without_what_passes(synthetic: ModuleType) -> None:
    world = synthetic.world(
        {"one": synthetic.Truth()}, targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    )
    for row in world.rows["machines"]:
        gpu = row["target"] == "A"
        row |= {"hardware": "1111" if gpu else "2222", "gpu": "H200" if gpu else None}
        row["facts"] = (
            f'{{"cpu": "A CPU", "memory_bytes": 17179869184, "niceness": 0, "now": {{"load_1m": {row["restart"]}}}}}'
        )
    found = hardware(world.datasets()["machines"])
    assert found["B"] == [{"cpu": "A CPU", "memory_gib": 16, "hardware": "2222", "hostname": "host"}]
    assert set(found) == {"A", "B"}


def machine(**facts: Any) -> dict[str, Any]:
    return {"hardware": None, "hostname": "vm", "cpu": "A CPU", "gpus": [{"name": "H200", "driver": "580"}]} | facts


def test_machines_of_one_fingerprint_are_the_same_hardware() -> None:
    assert same_hardware([machine(hardware="1111")], [machine(hardware="1111", hostname="other")])
    assert not same_hardware([machine(hardware="1111")], [machine(hardware="2222", kernel="6.1", cpu="Another CPU")])


def test_an_older_run_with_fewer_facts_is_compared_by_those_that_both_have() -> None:
    newer = machine(hardware="1111", kernel="6.1", gpus=[{"name": "H200", "driver": "580", "ecc": True}])
    assert same_hardware([machine()], [newer])
    assert not same_hardware([machine(kernel="6.0")], [newer])
    assert not same_hardware([machine(gpus=[{"name": "H100", "driver": "580"}])], [newer])
    assert not same_hardware([machine(gpus=[])], [newer])


def test_nothing_known_and_more_machines_than_one_are_not_the_same() -> None:
    assert not same_hardware([], [])
    assert not same_hardware([machine()], [])
    assert not same_hardware([{"hardware": None, "hostname": "vm"}], [{"hardware": None, "hostname": "vm"}])
    assert not same_hardware([machine()], [machine(), machine(cpu="Another CPU")])


def sweep(**model: Any) -> Sweep:
    found: Sweep = Sweep.model_validate(
        {
            "name": "s",
            "models": [{"name": "m", "hidden_size": 64, "num_attention_heads": 4, **model}],
            "recipes": {"original": {}},
            "workloads": {"prefill": {"sequence": 16}},
            "targets": {"B": {"tag": "bench_cpu"}},
        }
    )
    return found


def test_another_exporter_is_the_same_question_and_another_size_is_not() -> None:
    assert other_question(sweep(), sweep(opset=20, constant_folding=False), "m", "prefill") is None
    said = other_question(sweep(), sweep(num_hidden_layers=4, seed=1), "m", "prefill")
    assert said is not None
    assert "num_hidden_layers 2 → 4" in said
    assert "seed 0 → 1" in said
