"""The numbers that go into an own model: drawn from seeds, the same on every machine. numpy only."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from llama_bench.model.inputs import philox
from llama_bench.model.weights import quantiles
from llama_bench.sweep import Workload
from llama_bench.sweep_own import OwnInput, OwnModel

Array: TypeAlias = np.ndarray[Any, Any]


def make_inputs(model: OwnModel, workload: Workload) -> dict[str, Array]:
    """Return what a run of a prefill is given by name.

    Whole numbers are uniform in [0, high), floats normal quantiles of N(0, 1), each input from its own name and the
    model's seed; `value` stands everywhere, `positions` count along the last dimension.
    """
    sequence = workload.given
    return {
        name: _array(given, given.numbers(workload.batch, sequence), f"own/{name}/{model.seed}")
        for name, given in model.inputs.items()
    }


def _array(given: OwnInput, shape: tuple[int, ...], words: str) -> Array:
    dtype = np.dtype(given.dtype or "float32")
    if given.value == "positions":
        line = np.arange(shape[-1] if shape else 1, dtype=dtype)
        return np.ascontiguousarray(np.broadcast_to(line if shape else line[0], shape))
    if given.value is not None:
        return np.full(shape, given.value, dtype)
    raw = philox(words).random_raw(math.prod(shape))
    if given.high is not None:
        return (raw % np.uint64(given.high)).astype(dtype).reshape(shape)
    return quantiles()[(raw >> np.uint64(48)).astype(np.int64)].astype(dtype).reshape(shape)
