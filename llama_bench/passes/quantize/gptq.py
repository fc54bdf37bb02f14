"""GPTQ (Frantar, Ashkboos, Hoefler & Alistarh 2022): round one input after another, and let the others make up for it.

ONNX Runtime's own function holds the whole model, runs all of it anew for every layer, takes the ranges of blocks from
weights that are no longer current and rounds a second time to ranges of the result; so these are our own few lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.errors import WorkError
from llama_bench.passes.quantize.blocks import Floats, Form, Packed, pack, quantise, ranges

if TYPE_CHECKING:
    from torch import Tensor

DAMPING = 0.01
"""Share of the mean of the diagonal that is added to it, as in the paper."""

INPUTS_AT_ONCE = 128
"""Inputs after which the rest of the matrix hears of their errors (the paper's lazy batches)."""


def hessian(seen: Iterable[np.ndarray[Any, Any]]) -> Tensor:
    """Return Σ x·xᵀ [K, K] over all vectors x of the arrays [..., K]: what errors of weights cost in the outputs."""
    import torch

    total: Tensor | None = None
    for array in seen:
        x = torch.from_numpy(np.asarray(array, np.float32)).flatten(0, -2)
        total = x.T @ x if total is None else total.addmm_(x.T, x)
    assert total is not None
    return total


def gptq(matrix: Floats, second: Tensor, form: Form) -> Packed:
    """Quantise `matrix` [K, N] so that its outputs on the vectors of `second` [K, K] change little.

    Each block's range is that of its weights when its turn comes. Raises WorkError when `second` cannot be inverted.
    """
    import torch

    weights, factor = torch.from_numpy(matrix).clone(), _inverse_factor(second)
    inputs, outputs = weights.shape
    numbers = torch.empty(inputs, outputs, dtype=torch.uint8)
    scales = torch.empty(inputs // form.block_size, outputs)
    zero_points = torch.empty_like(scales)
    step = max(form.block_size, INPUTS_AT_ONCE)
    for start in range(0, inputs, step):
        end = min(start + step, inputs)
        current, corner = weights[start:end], factor[start:end, start:end]
        errors = torch.empty_like(current)
        for i in range(end - start):
            block, within = divmod(start + i, form.block_size)
            if within == 0:
                scale, point = (part[:, 0] for part in ranges(current[i : i + form.block_size].T, form))
                scales[block], zero_points[block] = scale, point
            q = quantise(current[i], scale, point, form)
            numbers[start + i] = q.to(torch.uint8)
            errors[i] = (current[i] - (q - point) * scale) / corner[i, i]
            current[i:].addr_(corner[i, i:], errors[i], alpha=-1)
        weights[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return pack(numbers.T.numpy(), scales.T.numpy(), zero_points.T.numpy(), form)


def _inverse_factor(second: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse of `second`, damped as far as it takes.

    An input that was never anything but zero says nothing about its weights, which are then rounded on their own.
    """
    import torch

    diagonal = second.diagonal()
    mean = float(diagonal.mean()) or 1.0
    silent = torch.where(diagonal == 0, mean, 0.0)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = second.clone()
        damped.diagonal().add_(silent + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper: Tensor
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
    raise WorkError("the second moments of the inputs cannot be inverted: calibrate on more or other text")
