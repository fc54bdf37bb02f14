"""A matrix in 8 bits, with a scale for each of its outputs."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np

from llama_bench.passes.quantize.blocks import Floats

WeightType: TypeAlias = Literal["qint8", "quint8"]

OUTPUTS_AT_ONCE = 1024
"""Outputs whose weights are worked on together; it bounds the memory that their copies take."""


def rounded(
    matrix: Floats, weight_type: WeightType, *, per_channel: bool, reduce_range: bool
) -> tuple[np.ndarray[Any, Any], ...]:
    """Return `matrix` [in, out] in 8 (or 7) bits, its scale [out] or [], and zero points of unsigned numbers.

    The ranges are those of ONNX Runtime's own quantiser: symmetric −127…127, or 0…255 over the range and zero.
    """
    axis = 0 if per_channel else None
    low, high = np.minimum(matrix.min(axis), 0), np.maximum(matrix.max(axis), 0)
    if weight_type == "qint8":
        largest = 63 if reduce_range else 127
        scale, zero_point = np.maximum(-low, high) / largest, np.zeros_like(low)
        least = -largest
    else:
        largest = 127 if reduce_range else 255
        scale = (high - low) / largest
        zero_point = np.round(-low / np.where(scale == 0, 1, scale))
        least = 0
    scale = np.where(scale == 0, 1, scale).astype(np.float32)
    numbers = np.empty(matrix.shape, weight_type.removeprefix("q"))
    for start in range(0, matrix.shape[1], OUTPUTS_AT_ONCE):
        some = slice(start, start + OUTPUTS_AT_ONCE)
        of_some = some if per_channel else ()
        q = np.round(matrix[:, some] / scale[of_some]) + zero_point[of_some]
        numbers[:, some] = q.clip(least, largest)
    return (numbers, scale) if weight_type == "qint8" else (numbers, scale, zero_point.astype(np.uint8))
