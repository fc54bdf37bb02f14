"""The session's answer against the reference."""

from __future__ import annotations

import numpy as np

from llama_bench.bench.accuracy import BOUNDS, bound, compare

REFERENCE = {"y": np.array([[1.0, -4.0], [2.0, 0.5]], dtype=np.float32)}


def test_an_equal_answer_has_no_error() -> None:
    [row] = compare({"y": REFERENCE["y"].copy()}, REFERENCE, 1e-3)
    assert (row.max_abs, row.max_rel, row.nonfinite, row.within_bound) == (0.0, 0.0, 0, True)


def test_the_relative_error_is_of_the_largest_magnitude() -> None:
    [row] = compare({"y": REFERENCE["y"] + np.float32(0.01)}, REFERENCE, 1e-3)
    assert np.isclose(row.max_abs, 0.01, rtol=1e-4)
    assert np.isclose(row.max_rel, 0.0025, rtol=1e-4)
    assert not row.within_bound


def test_nan_and_infinity_are_wrong_and_counted() -> None:
    [row] = compare({"y": np.array([[np.nan, -4.0], [np.inf, 0.5]], dtype=np.float32)}, REFERENCE, 1e9)
    assert (row.nonfinite, row.within_bound) == (2, False)


def test_a_missing_output_or_another_shape_is_wrong_even_where_it_would_broadcast() -> None:
    assert not compare({}, REFERENCE, 1e9)[0].within_bound
    assert not compare({"y": REFERENCE["y"][:1]}, REFERENCE, 1e9)[0].within_bound


def test_a_reference_of_zeros_allows_only_zeros() -> None:
    zeros = {"y": np.zeros(3, dtype=np.float32)}
    assert compare({"y": np.zeros(3, dtype=np.float32)}, zeros, 1e-3)[0].within_bound
    assert not compare({"y": np.full(3, 1e-9, dtype=np.float32)}, zeros, 1e-3)[0].within_bound


def test_tf32_arms_get_the_bound_of_tf32() -> None:
    assert bound({"provider_options": {"use_tf32": "1"}}) == BOUNDS["tf32"]
    assert bound({"provider_options": {"use_tf32": "0"}}) == bound({}) == BOUNDS["fp32"]
