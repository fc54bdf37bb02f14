"""The tables of engines and providers point at what exists, and every engine answers the same questions."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

import onnxruntime
import pytest

from llama_bench import engines
from llama_bench.engines import ENGINES, PROVIDERS
from llama_bench.engines.onnxruntime import settings_sha256
from llama_bench.passes.optimizers import OPTIMIZERS, RULES
from llama_bench.sweep import Session, Target

CPU = Target(tag="bench_cpu", threads=2)
GPU = Target(tag="bench_gpu", provider="CUDAExecutionProvider", threads=2)


def test_every_engine_has_settings_a_reason_to_be_missing_and_a_session_to_time() -> None:
    for name, info in ENGINES.items():
        module = import_module(info.module)
        for function in (module.settings, module.missing, module.open_session):
            assert callable(function), name
        assert info.summary.endswith("."), name


def test_every_provider_is_one_that_onnx_runtime_knows() -> None:
    assert set(PROVIDERS) <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize("engine", ENGINES)
def test_settings_of_every_engine_can_be_compared_and_written_down(engine: str) -> None:
    target = GPU if engine == "tensorrt" else CPU
    first = engines.settings(engine, Session(), target, 4)
    assert first == json.loads(json.dumps(first))
    assert {"engine", "provider", "intra_op_num_threads", "io", "provider_options"} <= set(first)
    assert (first["engine"], first["intra_op_num_threads"]) == (engine, 2)
    others = [other for other in ENGINES if other not in (engine, "tensorrt")]
    assert settings_sha256(first) not in {
        settings_sha256(engines.settings(other, Session(), CPU, 4)) for other in others if engine != "tensorrt"
    }


def test_an_engine_that_is_not_installed_says_what_to_install() -> None:
    if find_spec("onnxruntime_ep_openvino") is None:
        chosen = engines.settings("openvino", Session(), CPU, 2)
        assert "pip install onnxruntime-ep-openvino" in (engines.missing(chosen) or "")


def test_the_timed_process_of_onnx_runtime_imports_no_more_than_it_needs() -> None:
    code = (
        "import sys; from llama_bench.engines import onnxruntime, cached, static; "
        "print([name for name in ('pydantic', 'polars', 'torch', 'onnx', 'ray') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_optimiser_that_onnx_runtime_applies_can_be_named() -> None:
    # its verbose log names each one as it applies it: a new version's new ones are missed here
    code = """
import onnx, onnxruntime
text = '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { z = Neg (x) y = Neg (z) }'
options = onnxruntime.SessionOptions()
options.log_severity_level = 0
onnxruntime.InferenceSession(
    onnx.parser.parse_model(text).SerializeToString(), options, providers=["CPUExecutionProvider"]
)
"""
    log = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    applied = {
        line.split("Applying graph transformer ")[1].split()[0]
        for line in log.splitlines()
        if "Applying graph transformer " in line
    }
    assert len(applied) > 30
    assert applied <= {*OPTIMIZERS, *RULES}
    assert len({*OPTIMIZERS, *RULES}) == len(OPTIMIZERS) + len(RULES)
