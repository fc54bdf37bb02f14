"""The sweep of the fault tests: tiny models, cells of two targets, and a recording of real timings to replay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

RECORDING = HERE / "recorded.json"
"""Seconds of real runs: model → workload → arm → restart → runs. `record.py` wrote it."""

ARMS = ("original", "level0")

SWEEP: dict[str, Any] = {
    "name": "chaos",
    "models": [
        {
            "hidden_size": size, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24,
            "vocab_size": 32, "head": "none", "exporter": "torchscript", "opset": 17,
        }
        for size in range(16, 128, 16)
    ],
    "recipes": {"original": {}, "level0": {"session": {"optimization_level": "disable"}}},
    "workloads": {f"of{n}": {"sequence": n, "outputs": "hidden"} for n in (4, 8)},
    "targets": {"cpu": {"tag": "bench_cpu", "threads": 1}},
    "measure": {"restarts": 10, "blocks": 2, "runs": 3, "half_width": None, "confirm": False, "seed": 11},
}  # fmt: skip
"""As it was recorded; :func:`simulated` is what replays it."""


def simulated(sweep: dict[str, Any]) -> dict[str, Any]:
    """Return `sweep` with the simulated engine in every recipe, and a second target that wants a GPU."""
    recipes = {name: {**recipe, "engine": "simulated"} for name, recipe in sweep["recipes"].items()}
    gpu = {"tag": "bench_gpu", "provider": "CUDAExecutionProvider", "threads": 1}
    return {**sweep, "recipes": recipes, "targets": {**sweep["targets"], "cuda": gpu}}


def as_file(sweep: dict[str, Any]) -> str:
    """Return `sweep` as the text of a sweep file (JSON is YAML)."""
    return json.dumps({**sweep, "models": {"sizes": sweep["models"]}})


def environment(store: Path, **more: str) -> dict[str, str]:
    """Return what the environment of every process says: where the engine is, what it replays, and where."""
    path = [str(HERE), str(HERE.parent.parent)]
    return {"PYTHONPATH": ":".join(path), "SIMULATED_STORE": str(store), "SIMULATED_TIMINGS": str(RECORDING), **more}
