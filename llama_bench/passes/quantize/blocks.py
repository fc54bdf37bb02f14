"""Numbers in 2, 4 or 8 bits, a scale and a zero point for each block of a linear layer's inputs.

A weight is (q − zero point) · scale, as MatMulNBits reads it; without zero points q counts from 2^(bits − 1). With
offsets it is (q − 2^(bits − 1)) · scale + offset. N: a layer's outputs, K: its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Bytes: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

OUTPUTS_AT_ONCE = 256
"""Outputs that are worked on together where a method holds many copies of the weights."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as MatMulNBits has it, and `offsets` [N, K / block] that are added beside it.

    `weight` [N, K / block, bytes of a block], `scales` [N, K / block], `zero_points` [N, bytes of a row of them], the
    first number in the lowest bits.
    """

    weight: Bytes
    scales: Floats
    zero_points: Bytes | None = None
    offsets: Floats | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """How numbers are written: bits each, inputs that share a scale, and whether there are no zero points."""

    bits: int
    block_size: int
    symmetric: bool

    @property
    def largest(self) -> int:
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)


def rtn(matrix: Floats, form: Form) -> Packed:
    """Round each weight of `matrix` [K, N] to the nearest number, the scale from the block's range.

    ONNX Runtime's own quantiser, on one matrix.
    """
    from onnxruntime.capi import _pybind_state as functions

    quantise = getattr(functions, f"quantize_matmul_{form.bits}bits")
    rows, columns = matrix.shape
    blocks = rows // form.block_size
    weight = np.zeros((columns, blocks, form.block_size * form.bits // 8), np.uint8)
    scales = np.zeros((columns, blocks), np.float32)
    zero_points = np.zeros((columns, -(-blocks * form.bits // 8)), np.uint8)
    quantise(weight, matrix, scales, zero_points, form.block_size, columns, rows, form.symmetric)
    return Packed(weight, scales, None if form.symmetric else zero_points)


def offset(matrix: Floats, form: Form) -> Packed:
    """Round each weight of `matrix` [K, N] to the nearest of the numbers that span its block, least and largest among
    them.

    A zero point is a whole number, so zero is hit and the ends of the range are not; an offset hits both ends. Weights
    that were made so (GGUF's Q4_1, block size 32) come back as they were.
    """
    parts = []
    for start in range(0, matrix.shape[1], OUTPUTS_AT_ONCE):
        outputs = np.ascontiguousarray(matrix[:, start : start + OUTPUTS_AT_ONCE].T)
        weights = outputs.reshape(len(outputs), -1, form.block_size)
        low = weights.min(-1, keepdims=True)
        scales = (weights.max(-1, keepdims=True) - low) / np.float32(form.largest)
        scales[scales == 0] = 1
        q = np.round((weights - low) / scales).reshape(outputs.shape)
        plain = pack(q, scales[..., 0], None, replace(form, symmetric=True))
        parts.append(replace(plain, offsets=(low + form.middle * scales)[..., 0]))
    return _joined(parts)


def k_quant(matrix: Floats, form: Form) -> Packed:
    """Search each block's scale and least value for the smallest weighted error, as llama.cpp's K-quants do.

    ONNX Runtime's own function, on one matrix; it always has zero points.
    """
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    def some(outputs: Floats) -> tuple[Any, Any, Any]:
        with np.errstate(divide="ignore", invalid="ignore"):  # a block of equal numbers has no range
            q, scales, zero_points = quant_tensor_k_quant_cpu(outputs, form.bits, form.block_size)
        shape = (len(outputs), -1)
        return q.astype(np.uint8), scales.reshape(shape), zero_points.reshape(shape)

    return _in_parts(matrix, form, some)


def hqq(matrix: Floats, form: Form) -> Packed:
    """Fit each block's scale and zero point to the weights but for a few far ones (:func:`half_quadratic`)."""
    import torch

    def some(outputs: Floats) -> tuple[Any, Any, Any]:
        weights = torch.from_numpy(outputs).reshape(len(outputs), -1, form.block_size)
        scales, zero_points = half_quadratic(weights, form)
        q = quantise(weights, scales, zero_points, form).flatten(1)
        return q.numpy(), scales.squeeze(-1).numpy(), zero_points.squeeze(-1).numpy()

    return _in_parts(matrix, form, some)


def half_quadratic(weights: Tensor, form: Form, steps: int = 10) -> tuple[Tensor, Tensor]:
    """Return scales and zero points [N, blocks, 1] of `weights` [N, blocks, block] that make Σ |error|^0.7 small.

    Half-Quadratic Quantization (Badri & Shaji 2023, mobiusml.github.io/hqq_blog): the error is split into a sparse
    part, found by its shrinkage operator, and a rest that is made small by least squares. Theirs moves the zero point
    alone and keeps its fraction; ONNX Runtime multiplies by fractional zero points 170 times slower (4 bits, one row)
    or not at all (8 bits), and rounding them afterwards gives back what was started from. So here the zero point is
    whole and the scale is fitted too; ten steps bring nearly all that twenty do. A block keeps the best of all steps,
    the rounded range among them.
    """
    import torch

    power, beta, growth = 0.7, 10.0, 1.01
    scales, zero_points = ranges(weights, form)
    step = scales.abs()  # the shrinkage is not the same for all sizes of numbers, so it sees them in steps
    best_scales, best_points, least = scales, zero_points, torch.full_like(scales, torch.inf)
    for _ in range(steps):
        q = quantise(weights, scales, zero_points, form)
        error = weights - (q - zero_points) * scales
        size = (error / step).abs()
        bend = (size + 1e-8).pow(power - 1)  # the costly part: taken once, for the loss and for the shrinkage
        loss = (size * bend).mean(-1, keepdim=True)
        better = loss < least
        best_scales = torch.where(better, scales, best_scales)
        best_points = torch.where(better, zero_points, best_points)
        least = torch.where(better, loss, least)
        sparse = error.sign() * torch.relu(size - bend / beta) * step
        rest, beta = weights - sparse, beta * growth
        if not form.symmetric:
            zero_points = (q - rest / scales).mean(-1, keepdim=True).round().clamp(0, form.largest)
        centred = q - zero_points
        fitted = (centred * rest).sum(-1, keepdim=True) / centred.square().sum(-1, keepdim=True)
        scales = torch.where(fitted.isfinite() & (fitted != 0), fitted, scales)
    return best_scales, best_points


def ranges(weights: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """Return scales and zero points [..., 1] that span the range of each block of `weights` [..., block], and zero.

    Symmetric: the number farthest from zero becomes −2^(bits − 1), so its scale may be negative.
    """
    import torch

    if form.symmetric:
        far = weights.gather(-1, weights.abs().argmax(-1, keepdim=True))
        scales = -far / form.middle
        zero_points = torch.full_like(scales, form.middle)
    else:
        low, high = weights.amin(-1, keepdim=True).clamp(max=0), weights.amax(-1, keepdim=True).clamp(min=0)
        scales = (high - low) / form.largest
        zero_points = (-low / torch.where(scales == 0, 1, scales)).round()
    return torch.where(scales == 0, 1, scales), zero_points


def quantise(weights: Tensor, scales: Tensor, zero_points: Tensor, form: Form) -> Tensor:
    """Return the whole numbers that stand for `weights`, in its type."""
    return (weights / scales + zero_points).round().clamp(0, form.largest)


def pack(q: Any, scales: Any, zero_points: Any, form: Form) -> Packed:
    """Pack whole numbers [N, K], scales and zero points [N, blocks]; those of a symmetric form are left out."""
    blocks = scales.shape[1]
    weight = _bits(np.asarray(q, np.uint8), form.bits).reshape(len(q), blocks, -1)
    points = None if form.symmetric else _bits(np.asarray(zero_points, np.uint8), form.bits)
    return Packed(weight, np.asarray(scales, np.float32), points)


def _bits(numbers: Bytes, bits: int) -> Bytes:
    """Put as many numbers of each row as fit into a byte, the first in the lowest bits."""
    each = 8 // bits
    numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % each)))
    packed = numbers[:, ::each].copy()
    for i in range(1, each):
        packed |= numbers[:, i::each] << (bits * i)
    return packed


def _in_parts(matrix: Floats, form: Form, some: Callable[[Floats], tuple[Any, Any, Any]]) -> Packed:
    """Quantise `matrix` [K, N] some outputs at a time, each [outputs, K]."""
    parts = []
    for start in range(0, matrix.shape[1], OUTPUTS_AT_ONCE):
        outputs = np.ascontiguousarray(matrix[:, start : start + OUTPUTS_AT_ONCE].T)
        q, scales, zero_points = some(outputs)
        parts.append(pack(q.reshape(len(outputs), -1), scales, zero_points, form))
    return _joined(parts)


def _joined(parts: Sequence[Packed]) -> Packed:
    """Put the outputs of `parts` one after another."""

    def all_of(name: str) -> Any:
        arrays = [array for part in parts if (array := getattr(part, name)) is not None]
        return np.concatenate(arrays) if arrays else None

    return Packed(*(all_of(field.name) for field in fields(Packed)))
