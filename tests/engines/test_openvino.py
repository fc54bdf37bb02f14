"""OpenVINO: its precision is always said, its answers are torch's, and a machine without it gets the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_bench import engines
from llama_bench.engines import TimedSession, openvino
from llama_bench.engines.executed import examine
from llama_bench.errors import InputError, WorkError
from llama_bench.sweep import Session, Target, Workload

CPU = Target(tag="bench_cpu", threads=1)
PREFILL = Workload(kind="prefill", batch=2, sequence=9)
WORKLOADS = [
    Workload(kind="prefill", batch=2, sequence=9, outputs="last_logits"),
    Workload(kind="decode", batch=2, context=7),
    Workload(kind="generate", batch=1, prompt=5, new_tokens=4),
]


def chosen(**session: Any) -> dict[str, Any]:
    return engines.settings("openvino", Session(**session), CPU, 8)


def opened(variant: Any, workload: Workload, **session: Any) -> TimedSession:
    return engines.open_session(variant.folder, chosen(**session), variant.task(workload))


@pytest.fixture(scope="module")
def here() -> None:
    why = engines.missing(chosen())
    if why is not None:
        pytest.skip(why)


def test_the_precision_and_the_threads_are_always_said() -> None:
    for word, hint in (("fp32", "f32"), ("bf16", "bf16"), ("fp16", "f16")):
        found = json.loads(chosen(precision=word)["provider_options"]["load_config"])
        assert found == {"CPU": {"INFERENCE_NUM_THREADS": "1", "INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": "1"}}
    given = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    more = json.loads(chosen(provider_options=given)["provider_options"]["load_config"])["CPU"]
    assert more["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"
    assert chosen()["provider"] == openvino.PROVIDER


def test_a_gpu_target_and_a_property_with_a_key_of_its_own_are_refused() -> None:
    with pytest.raises(InputError, match="'openvino' runs on CPU targets, not on one with provider CUDAExecution"):
        engines.settings("openvino", Session(), Target(tag="bench_gpu", provider="CUDAExecutionProvider"), 8)
    with pytest.raises(InputError, match=r"'INFERENCE_PRECISION_HINT' has a key of its own .*: 'precision'"):
        chosen(provider_options={"INFERENCE_PRECISION_HINT": "f32"})


def test_without_the_package_it_says_what_to_install(static: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    why = "engine 'openvino' needs the package onnxruntime-ep-openvino: pip install onnxruntime-ep-openvino"
    assert engines.missing(chosen()) == why
    with pytest.raises(WorkError, match="pip install onnxruntime-ep-openvino"):
        opened(static, PREFILL)


def test_without_a_cpu_that_it_serves_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: name)
    monkeypatch.setattr(openvino, "_device", lambda: None)
    assert engines.missing(chosen()) == "onnxruntime-ep-openvino serves Intel CPUs, and this machine has none"


def test_a_precision_that_the_cpu_lacks_is_not_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        ep_metadata = {"OPTIMIZATION_CAPABILITIES": "BF16 WINOGRAD FP32 INT8"}  # noqa: RUF012

    monkeypatch.setattr(openvino, "find_spec", lambda name: name)
    monkeypatch.setattr(openvino, "_device", Device)
    assert [engines.missing(chosen(precision=word)) is None for word in ("fp32", "bf16", "fp16")] == [True, True, False]
    assert "has no fp16 on this CPU" in (engines.missing(chosen(precision="fp16")) or "")


@pytest.mark.usefixtures("here")
def test_a_static_prefill_is_torchs_and_can_be_scored(static: Any, growing: Any) -> None:
    session = opened(static, PREFILL)
    assert session.providers[0] == openvino.PROVIDER
    session.run()
    for name, values in static.torch(PREFILL).items():
        np.testing.assert_allclose(session.outputs()[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
    windows = np.random.default_rng(0).integers(0, 128, size=(3, 9))
    np.testing.assert_allclose(list(session.score(windows)), growing.logits(windows), rtol=1e-4, atol=1e-5)
    assert session.device_bytes() is None


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.kind)
@pytest.mark.parametrize("form", ["growing", "shared"])
def test_a_cached_graph_is_torchs_in_every_kind_of_run(
    growing: Any, shared: Any, workload: Workload, form: str
) -> None:
    variant = growing if form == "growing" else shared()
    session = opened(variant, workload)
    session.run()
    session.run()
    found, expected = session.outputs(), variant.torch(workload)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.usefixtures("here")
def test_bfloat16_is_computed_only_where_it_is_said(static: Any) -> None:
    expected = static.torch(PREFILL)["logits"]
    errors = {}
    for word in ("fp32", "bf16"):
        if engines.missing(chosen(precision=word)) is None:
            session = opened(static, PREFILL, precision=word)
            session.run()
            errors[word] = np.abs(session.outputs()["logits"] - expected).max()
    assert errors["fp32"] < 1e-5
    assert errors.get("bf16", 1e-3) > 1e-4


@pytest.mark.usefixtures("here")
def test_examining_says_what_it_took_and_that_its_nodes_are_unknown(static: Any, tmp_path: Path) -> None:
    found = examine(static.folder, chosen(), static.task(PREFILL), tmp_path)
    assert (found.nodes, found.histogram) == (None, None)
    assert found.placement[openvino.PROVIDER]["MatMul"] >= 14
    assert found == examine(static.folder, chosen(), static.task(PREFILL), tmp_path)
