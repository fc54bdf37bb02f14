"""The session's answer against the reference."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llama_bench.bench.accuracy import BOUNDS, Bounds, bounds, compare, measure
from llama_bench.bench.predictions import PIECE
from llama_bench.schemas import SCHEMAS
from llama_bench.sweep import AccuracyBounds

Y = np.array([[1.0, -4.0], [2.0, 0.5]], dtype=np.float32)
LOOSE = Bounds(max_rel=None, min_cosine=None, max_kl=None, min_top1=None)
FP32 = BOUNDS["fp32"]


def one(actual: Any, expected: Any = Y, limits: Bounds = FP32, name: str = "y") -> dict[str, Any]:
    [row] = compare({} if actual is None else {name: actual}, {name: expected}, limits, "exact")
    return row


def test_a_row_has_the_columns_of_the_dataset_and_an_equal_answer_has_no_error() -> None:
    row = one(Y.copy())
    names = SCHEMAS["accuracy"].names
    about_text = ["perplexity", "reference_perplexity", "tokens", "window", "stride"]
    assert list(row) == [name for name in names[names.index("output") :] if name not in about_text]
    assert row == {
        "output": "y", "class": "exact", "max_abs": 0.0, "max_rel": 0.0, "cosine": 1.0, "kl": None, "top1": None,
        "nan": 0, "infinite": 0, "nonfinite": 0, "bound": 1e-4, "bounds": row["bounds"],
        "within_bound": True, "violated": None,
    }  # fmt: skip
    assert Bounds(**json.loads(row["bounds"])) == FP32


def test_the_relative_error_is_of_the_largest_magnitude() -> None:
    row = one(Y + np.float32(0.01))
    assert np.isclose(row["max_abs"], 0.01, rtol=1e-4)
    assert np.isclose(row["max_rel"], 0.0025, rtol=1e-4)
    assert row["within_bound"] is False
    assert row["violated"].startswith("relative error 0.0025 is above 0.0001")


def test_whole_numbers_and_truth_values_are_choices_that_agree_or_do_not() -> None:
    expected = np.arange(20, dtype=np.int64).reshape(4, 5) * 1_000_000
    actual = expected.copy()
    actual[2, 1] += 1  # a relative error of 1e-7
    row = one(actual, expected)
    assert row["violated"] == "1 of 20 whole numbers are not the reference's, the first at [2, 1]"
    assert (row["top1"], row["max_abs"]) == (0.95, None)
    assert one(expected.copy(), expected)["within_bound"] is True
    flags = np.array([True, False])
    assert one(~flags, flags)["violated"].startswith("2 of 2 whole numbers")
    [few] = compare({"y": actual}, {"y": expected}, replace(LOOSE, min_top1=0.96), "approximate")
    assert few["violated"] == "top-1 agreement 0.95 is below 0.96"
    [enough] = compare({"y": actual}, {"y": expected}, replace(LOOSE, min_top1=0.9), "approximate")
    assert enough["within_bound"] is True


def test_floats_that_are_called_tokens_are_floats_like_any_other() -> None:
    assert one(Y + np.float32(1e-6), name="tokens")["within_bound"] is True


def test_the_cosine_is_that_of_the_angle_between_the_two() -> None:
    row = one(np.array([3.0, 4.0], np.float32), np.array([4.0, 3.0], np.float32), Bounds(None, 0.99, None, None))
    assert np.isclose(row["cosine"], 24 / 25)
    assert row["violated"] == "cosine 0.96 is below 0.99"
    assert one(-Y)["cosine"] == -1.0
    # an error everywhere beside one very large value: the largest error is small, the direction is not
    expected = np.ones(10_000, np.float32)
    expected[0] = 5000.0
    row = one(expected + np.where(np.arange(10_000) % 2, 0.4, -0.4).astype(np.float32), expected)
    assert row["max_rel"] < 1e-4
    assert re.fullmatch(r"cosine 0\.99996\d* is below 0\.999999", row["violated"])


def test_every_bound_that_is_violated_is_named_and_a_number_never_reads_like_its_bound() -> None:
    limits = Bounds(max_rel=0.1, min_cosine=0.9, max_kl=0.01, min_top1=0.9)
    expected = np.array([[[3.0, 1.0, 0.0], [0.0, 1.0, 3.0]]], np.float32)
    row = one(expected[..., ::-1], expected, limits, "logits")
    parts = row["violated"].split("; ")
    assert [part.rsplit(" ", 3)[1:] for part in parts] == [
        ["is", "above", "0.1"], ["is", "below", "0.9"], ["is", "above", "0.01"], ["is", "below", "0.9"],
    ]  # fmt: skip
    assert parts[0] == "relative error 1 is above 0.1"
    assert " nats is above" in parts[2]
    assert parts[3] == "top-1 agreement 0 is below 0.9"
    near = one(np.array([1.0001001], np.float64), np.array([1.0]), Bounds(1e-4, None, None, None))
    assert near["violated"].startswith("relative error 0.0001001 is above")


def test_nan_and_infinity_are_wrong_under_any_bound_and_counted_apart() -> None:
    row = one(np.array([[np.nan, -4.0], [np.inf, -np.inf]], dtype=np.float32), limits=LOOSE)
    assert (row["nan"], row["infinite"], row["nonfinite"], row["within_bound"]) == (1, 2, 3, False)
    assert row["violated"] == "1 of 4 values are NaN, 2 infinite"
    assert (row["max_rel"], row["cosine"]) == (math.inf, None)


def test_one_nan_in_the_last_of_many_values_is_found() -> None:
    values = np.zeros(3 * PIECE + 5, np.float32)
    spoiled = values.copy()
    spoiled[-1] = np.nan
    assert one(spoiled, values, LOOSE)["nan"] == 1
    spoiled[-1] = 2.0
    assert one(spoiled, values, FP32)["max_abs"] == 2.0


def test_a_missing_output_or_another_shape_is_infinitely_wrong_even_where_it_would_broadcast() -> None:
    missing, reshaped = one(None, limits=LOOSE), one(Y[:1], limits=LOOSE)
    assert (missing["within_bound"], missing["max_rel"], missing["violated"]) == (
        False, math.inf, "the output is missing",
    )  # fmt: skip
    assert (reshaped["within_bound"], reshaped["max_rel"]) == (False, math.inf)
    assert reshaped["violated"] == "its shape is [1, 2], the reference's is [2, 2]"


def test_a_reference_that_is_not_finite_is_its_own_fault_and_said_to_be() -> None:
    broken = Y.copy()
    broken[0] = (np.nan, np.inf)
    for actual in (broken.copy(), Y, None):
        row = one(actual, broken, LOOSE)
        assert row["within_bound"] is False
        assert row["violated"] == "the reference itself is not finite (1 NaN, 1 infinite): nothing can equal it"
        assert row["max_rel"] is None
    assert one(broken.copy(), broken)["nonfinite"] == 2


def test_a_reference_of_zeros_allows_only_zeros() -> None:
    zeros = np.zeros(3, np.float32)
    same, other = one(zeros.copy(), zeros), one(np.full(3, 1e-9, np.float32), zeros)
    assert (same["within_bound"], same["max_rel"], same["cosine"]) == (True, 0.0, 1.0)
    assert (other["within_bound"], other["max_rel"], other["cosine"]) == (False, math.inf, 0.0)
    assert one(zeros, np.ones(3, np.float32))["cosine"] == 0.0


def test_only_logits_have_a_distribution_and_a_bound_on_it() -> None:
    limits = Bounds(None, None, max_kl=0.01, min_top1=None)
    expected = np.random.default_rng(0).normal(size=(2, 1, 8)).astype(np.float32)
    hidden, logits = one(-expected, expected, limits, "hidden_states"), one(-expected, expected, limits, "logits")
    assert (hidden["kl"], hidden["top1"], hidden["within_bound"]) == (None, None, True)
    assert logits["kl"] > 0.5
    assert logits["within_bound"] is False
    assert re.fullmatch(r"KL divergence \d\.\d+ nats is above 0\.01", logits["violated"])


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_every_float_type_is_compared_and_fp16_does_not_overflow(kind: Any) -> None:
    expected = np.full(1000, 60_000.0, np.float32)
    found = measure(expected.astype(kind), expected)
    assert found.max_rel is not None
    assert found.max_rel < 4e-3
    assert found.cosine is not None
    assert found.cosine > 0.999999


def test_an_output_is_named_and_rows_are_sorted_and_other_outputs_do_not_count() -> None:
    rows = compare({"b": Y, "a": Y * 2, "c": Y}, {"b": Y, "a": Y}, FP32, "approximate")
    assert [(row["output"], row["within_bound"], row["class"]) for row in rows] == [
        ("a", False, "approximate"), ("b", True, "approximate"),
    ]  # fmt: skip


CACHED = {"logits": Y, "present.0.key": Y, "present.0.value": Y}


def test_an_approximation_answers_for_its_logits_and_its_cache_is_recorded_without_a_bound() -> None:
    answer = {"logits": Y, "present.0.key": Y * 2, "present.0.value": Y.astype(np.float16)}
    tight = {row["output"]: row for row in compare(answer, CACHED, FP32, "exact")}
    loose = {row["output"]: row for row in compare(answer, CACHED, FP32, "approximate")}
    assert tight["present.0.key"]["within_bound"] is False
    for name in ("present.0.key", "present.0.value"):
        judged = [loose[name][column] for column in ("bound", "bounds", "within_bound", "violated")]
        assert judged == [None] * 4
    assert loose["present.0.key"]["max_rel"] == 1.0
    assert loose["logits"]["within_bound"] is True
    assert compare(answer | {"logits": -Y}, CACHED, FP32, "approximate")[0]["within_bound"] is False


@pytest.mark.parametrize("key", [None, Y[:1], np.zeros(Y.shape, np.int8), np.zeros(Y.shape, np.uint8)])
def test_a_cache_that_an_approximation_lacks_or_keeps_otherwise_has_no_row(key: Any) -> None:
    answer = {"logits": Y, "present.0.value": Y} | ({} if key is None else {"present.0.key": key})
    rows = compare(answer, CACHED, LOOSE, "approximate")
    assert [row["output"] for row in rows] == ["logits", "present.0.value"]
    assert [row["output"] for row in compare(answer, CACHED, LOOSE, "exact") if not row["within_bound"]] == (
        [] if key is not None and key.shape == Y.shape else ["present.0.key"]
    )


def test_logits_that_an_approximation_lacks_or_shapes_otherwise_are_wrong() -> None:
    for answer in ({}, {"logits": Y[:1]}):
        [row] = compare(answer, {"logits": Y}, LOOSE, "approximate")
        assert row["within_bound"] is False


def test_generated_tokens_are_counted_where_they_agree_and_those_of_an_fp32_rewrite_must_all() -> None:
    expected = np.array([[5, 6, 7, 8], [1, 2, 3, 4]])
    other = np.array([[5, 6, 7, 8], [1, 9, 3, 9]])
    for kind, limits, within in (
        ("exact", FP32, False),
        ("exact", BOUNDS["tf32"], True),
        ("approximate", LOOSE, None),
    ):
        [row] = compare({"tokens": other}, {"tokens": expected}, limits, kind)
        assert (row["top1"], row["within_bound"]) == (0.75, within)
        assert [row[name] for name in ("max_abs", "max_rel", "cosine", "kl")] == [None] * 4
    [row] = compare({"tokens": other}, {"tokens": expected}, FP32, "exact")
    assert row["violated"] == "2 of 8 tokens are not torch's, the first at position 1 of sequence 1"
    [same] = compare({"tokens": expected.copy()}, {"tokens": expected}, FP32, "exact")
    assert (same["top1"], same["within_bound"], same["violated"]) == (1.0, True, None)


def test_tokens_of_another_number_are_wrong_for_an_exact_rewrite_and_no_row_for_an_approximation() -> None:
    expected = np.array([[5, 6, 7, 8]])
    [row] = compare({"tokens": expected[:, :2]}, {"tokens": expected}, FP32, "exact")
    assert row["violated"] == "its shape is [1, 2], the reference's is [1, 4]"
    assert compare({"tokens": expected[:, :2]}, {"tokens": expected}, LOOSE, "approximate") == []


def test_tf32_arms_get_the_bounds_of_tf32_and_no_sweep_loosens_an_exact_rewrite() -> None:
    loose = AccuracyBounds(max_rel=0.5, min_cosine=0.1, max_kl=9.0, min_top1=0.1, max_perplexity_increase=0.3)
    tf32 = {"provider_options": {"use_tf32": "1"}}
    assert bounds("exact", tf32, loose) == BOUNDS["tf32"]
    for settings in ({"provider_options": {"use_tf32": "0"}}, {"provider_options": {}}, {}):
        assert bounds("exact", settings, loose) == FP32
    assert bounds("approximate", tf32, loose) == Bounds(0.5, 0.1, 9.0, 0.1, 0.3)


def test_exact_rewrites_are_held_tighter_than_any_approximation_is_by_default() -> None:
    default = bounds("approximate", {}, AccuracyBounds())
    for exact in BOUNDS.values():
        assert exact.max_rel is not None
        assert exact.min_cosine is not None
        assert exact.max_kl is not None
        assert exact.min_cosine > (default.min_cosine or 0)
        assert exact.max_kl < (default.max_kl or 0)
    assert (FP32.max_rel or 1) < (BOUNDS["tf32"].max_rel or 0)


def test_the_documented_bounds_are_those_that_hold() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accuracy.md").read_text(encoding="utf-8")
    documented = {
        (name, products): Bounds(*(None if cell == "–" else float(cell) for cell in cells))
        for name, products, *cells in re.findall(
            r"^\| (exact|approximate) \| (\w+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", page, re.MULTILINE
        )
    }
    of_outputs = {
        name: replace(found, max_perplexity_increase=None, same_tokens=False) for name, found in BOUNDS.items()
    }
    assert documented == {
        ("exact", "fp32"): of_outputs["fp32"],
        ("exact", "TF32"): of_outputs["tf32"],
        ("approximate", "any"): bounds("approximate", {}, AccuracyBounds()),
    }


def test_the_process_that_is_timed_imports_no_torch_for_it() -> None:
    program = "import sys, llama_bench.bench.text; print({'torch', 'scipy', 'onnx', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
