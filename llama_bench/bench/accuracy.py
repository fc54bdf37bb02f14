"""Is the fast answer the right one? The timed session's outputs against torch's fp32 reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BOUNDS = {"fp32": 1e-3, "tf32": 2e-2}
"""Largest allowed error, relative to the reference's largest magnitude. fp32 rewrites reorder sums (about 1e-5 on a
two-layer Llama); TF32 keeps 10 bits of the mantissa in every product."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One output against its reference: largest error, the same relative to max |reference|, NaN and infinity."""

    output: str
    max_abs: float
    max_rel: float
    nonfinite: int
    bound: float
    within_bound: bool


def bound(settings: Mapping[str, Any]) -> float:
    """Return the bound for an arm with these session settings."""
    tf32 = str(settings.get("provider_options", {}).get("use_tf32", "0")) in ("1", "True", "true")
    return BOUNDS["tf32" if tf32 else "fp32"]


def compare(
    outputs: Mapping[str, npt.NDArray[Any]], reference: Mapping[str, npt.NDArray[Any]], bound: float
) -> list[Accuracy]:
    """Compare each reference output with the session's. A missing output or another shape is infinitely wrong."""
    return [_compare(name, outputs.get(name), expected, bound) for name, expected in sorted(reference.items())]


def _compare(name: str, actual: npt.NDArray[Any] | None, expected: npt.NDArray[Any], bound: float) -> Accuracy:
    if actual is None or actual.shape != expected.shape:
        return Accuracy(name, float("inf"), float("inf"), 0, bound, False)
    actual = actual.astype(np.float32, copy=False)
    nonfinite = int(actual.size - np.count_nonzero(np.isfinite(actual)))
    if nonfinite:
        return Accuracy(name, float("inf"), float("inf"), nonfinite, bound, False)
    largest = float(np.max(np.abs(actual - expected), initial=0.0))
    scale = float(np.max(np.abs(expected), initial=0.0))
    relative = largest / scale if scale > 0 else (0.0 if largest == 0 else float("inf"))
    return Accuracy(name, largest, relative, 0, bound, relative <= bound)
