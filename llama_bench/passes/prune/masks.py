"""Weights set to zero: the sizes stay. Only the decoder layers' linear layers, as is usual (Sun et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llama_bench.passes.checkpoint import Array, Checkpoint

ROWS = 1 << 22  # groups of four at a time: their order takes eight times the bytes of a weight


def is_linear(name: str) -> bool:
    """Whether `name` is the weight of a linear layer in a decoder layer; embedding and lm_head are none."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def magnitude(before: Checkpoint, sparsity: float) -> dict[str, Array]:
    """Return all parameters, of each linear layer the share `sparsity` of smallest |w| set to zero.

    Han et al. (2015), "Learning both Weights and Connections for Efficient Neural Networks"; the share is kept in
    each weight matrix by itself, and equal weights go in their order.
    """
    return {name: smallest(tensor, sparsity) if is_linear(name) else tensor for name, tensor in before.tensors()}


def smallest(tensor: Array, sparsity: float) -> Array:
    """Return `tensor` with exactly int(`sparsity` · size) of its smallest |w| set to zero."""
    sizes = np.abs(tensor).ravel()
    count = int(sparsity * sizes.size)
    if not count:
        return tensor
    limit = np.partition(sizes, count - 1)[count - 1]
    gone = sizes < limit
    gone[np.flatnonzero(sizes == limit)[: count - int(gone.sum())]] = True
    return np.where(gone.reshape(tensor.shape), np.float32(0), tensor)


def two_of_four(before: Checkpoint) -> dict[str, Array]:
    """Return all parameters, of each linear layer two of every four consecutive inputs set to zero.

    Mishra et al. (2021), "Accelerating Sparse Deep Neural Networks": the pattern of NVIDIA's sparse tensor cores.
    """
    return {name: halved(tensor) if is_linear(name) else tensor for name, tensor in before.tensors()}


def halved(tensor: Array) -> Array:
    """Return `tensor` [out, in] with the two largest |w| of every four along its last axis, of equals the first."""
    fours = tensor.reshape(-1, 4).copy()
    for start in range(0, len(fours), ROWS):
        part = fours[start : start + ROWS]
        order = np.argsort(-np.abs(part), axis=1, kind="stable")
        np.put_along_axis(part, order[:, 2:], np.float32(0), axis=1)
    return fours.reshape(tensor.shape)
