"""Next-token distributions: their divergence, and whether two of them expect the same token. A leaf: numpy only.

Sums are in float64 over pieces that fit into a cache, so that logits of any size cost next to no memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

PIECE = 1 << 16
"""Elements taken at once: three float64 pieces are 1.5 MB, the second-level cache of one core."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """Next-token distributions, a row each: logits less the row's largest one, where that is, their exp and its sum."""

    logits: Array
    first: Array
    weights: Array
    sums: Array


def slices(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Yield the slices of `tokens` rows of logits that fit into a cache, in order."""
    rows = max(1, PIECE // vocabulary)
    return (slice(at, min(at + rows, tokens)) for at in range(0, tokens, rows))


def predictions(logits: Array) -> Predictions:
    """Return what finite logits [tokens, vocabulary] of any float type predict, in float64."""
    rows = logits.astype(np.float64)
    first = rows.argmax(axis=1)
    rows -= np.take_along_axis(rows, first[:, None], axis=1)
    weights = np.exp(rows)
    return Predictions(rows, first, weights, weights.sum(axis=1))


def kl(actual: Predictions, expected: Predictions) -> Array:
    """Return KL(expected ‖ actual) of each token in nats: see :func:`divergence`."""
    mean = np.einsum("ij,ij->i", expected.weights, expected.logits - actual.logits) / expected.sums
    # a divergence is not negative; its rounding may be
    kept: Array = np.maximum(mean + np.log(actual.sums) - np.log(expected.sums), 0.0)
    return kept


def divergence(actual: Array, expected: Array) -> tuple[float, float]:
    """Return the mean over tokens of KL(expected ‖ actual) in nats, and the share of tokens whose argmax agrees.

    Both [..., vocabulary], finite logits. With p = softmax(e) and q = softmax(a), KL(p ‖ q) = Σ p·(ln p − ln q)
    (Kullback & Leibler 1951, "On Information and Sufficiency", eq. 2.4), here as Σ p·(e′ − a′) + ln Σ exp a′ − ln Σ exp
    e′, where ′ has the row's largest logit taken off, so that nothing overflows. Of equal tokens the first is the most
    likely one.
    """
    vocabulary = expected.shape[-1]
    tokens = expected.size // vocabulary
    a2, e2 = actual.reshape(tokens, vocabulary), expected.reshape(tokens, vocabulary)
    total, agreed = 0.0, 0
    for at in slices(tokens, vocabulary):
        a, e = predictions(a2[at]), predictions(e2[at])
        agreed += int(np.count_nonzero(a.first == e.first))
        total += float(kl(a, e).sum())
    return total / tokens, agreed / tokens
