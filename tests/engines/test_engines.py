"""The tables of engines and providers point at what exists."""

from __future__ import annotations

from importlib import import_module

import onnxruntime

from llama_bench.engines import ENGINES, PROVIDERS


def test_every_engine_has_settings_and_a_session_to_time() -> None:
    for name, info in ENGINES.items():
        module = import_module(info.module)
        assert callable(module.settings), name
        assert callable(module.TimedSession), name


def test_every_provider_is_one_that_onnx_runtime_knows() -> None:
    assert set(PROVIDERS) <= set(onnxruntime.get_all_providers())
