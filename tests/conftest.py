"""What the tests of several packages share: synthetic runs whose true ratios are known."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The module tests/stats/synthetic.py: `world(recipes, …)` and `Truth`."""
    path = Path(__file__).with_name("stats") / "synthetic.py"
    spec = importlib.util.spec_from_file_location("llama_bench_synthetic", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
