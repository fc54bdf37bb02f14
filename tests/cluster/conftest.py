"""A tiny sweep, a store, and one Ray of this machine for all tests of the module that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_bench.store import Store
from llama_bench.sweep import Sweep

TINY: dict[str, Any] = {
    "name": "tiny",
    "models": [
        {
            "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24,
            "vocab_size": 32, "head": "none", "exporter": "torchscript", "opset": 17,
        }
    ],
    "recipes": {
        "original": {},
        "eliminate_identity": {"passes": [{"onnxoptimizer": "eliminate_identity"}]},
        "level0": {"session": {"optimization_level": "disable"}},
    },
    "workloads": {"prefill": {"batch": 1, "sequence": 8, "outputs": "hidden"}},
    "targets": {"cpu": {"tag": "bench_cpu", "threads": 1}},
    "measure": {"restarts": 2, "blocks": 2, "runs": 3, "half_width": None, "seed": 3},
}  # fmt: skip


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A sweep as plain data, to be changed and validated by the test."""
    import copy

    return copy.deepcopy(TINY)


@pytest.fixture
def sweep() -> Sweep:
    return Sweep.model_validate(TINY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Ray on this machine, with the tags that `connect` works out."""
    import ray

    from llama_bench.cluster import connect

    assert connect.connect()
    yield
    ray.shutdown()
