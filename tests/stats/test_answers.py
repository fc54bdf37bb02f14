"""The worst answer of all restarts, its bound, and the room to it."""

from __future__ import annotations

import json
import math
from typing import Any

import polars as pl
import pytest

from llama_bench.stats.answers import answers

NONE = pl.DataFrame(schema={"tokens": pl.List(pl.Int64), "agreed": pl.Int64})


def row(output: str = "logits", restart: int = 0, bounds: dict[str, Any] | None = None, **found: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("max_rel", "cosine", "kl", "top1", "perplexity", "reference_perplexity", "violated"))
    rest = {"class": "exact", "nonfinite": 0, "bound": None, "within_bound": True if bounds else None}
    return {"output": output, "restart": restart, **blank, **rest, "bounds": bounds and json.dumps(bounds), **found}


def test_the_worst_of_all_restarts_counts_whichever_way_a_metric_is_bounded() -> None:
    bounds = {"max_rel": 1e-3, "min_top1": 0.9, "max_kl": None}
    rows = [
        row(restart=0, bounds=bounds, max_rel=1e-4, top1=0.99, kl=0.1),
        row(restart=1, bounds=bounds, max_rel=4e-4, top1=0.95, kl=0.3),
    ]
    found = answers(rows, NONE)
    assert found is not None
    by_metric = {one.metric: one for one in found.found}
    assert (by_metric["relative error"].worst, by_metric["relative error"].bound) == (4e-4, 1e-3)
    assert by_metric["relative error"].margin == pytest.approx(2.5)
    assert by_metric["top-1 agreement"].worst == 0.95
    assert by_metric["top-1 agreement"].margin == pytest.approx(2.0)  # a tenth may be lost, a twentieth is
    assert (by_metric["KL divergence"].worst, by_metric["KL divergence"].margin) == (0.3, None)
    assert {one.restarts for one in found.found} == {2}
    assert found.within is True


def test_a_metric_outside_its_bound_has_less_room_than_one() -> None:
    [found] = answers([row(bounds={"max_kl": 0.1}, kl=0.2, within_bound=False, violated="KL is above 0.1")], NONE).found  # type: ignore[union-attr]
    assert found.margin == pytest.approx(0.5)


def test_text_is_judged_by_the_increase_of_perplexity() -> None:
    text = row("text", bounds={"max_perplexity_increase": 0.1}, perplexity=10.5, reference_perplexity=10.0)
    found = answers([text], NONE)
    assert found is not None
    assert [(one.metric, one.worst, one.margin) for one in found.found] == [
        ("perplexity increase", pytest.approx(0.05), pytest.approx(2.0))
    ]


def test_a_perplexity_below_torchs_loses_nothing() -> None:
    text = row("text", bounds={"max_perplexity_increase": 0.1}, perplexity=9.5, reference_perplexity=10.0)
    assert answers([text], NONE).found[0].margin == math.inf  # type: ignore[union-attr]


def test_keys_and_values_are_one_output_and_rows_of_version_1_have_one_bound() -> None:
    found = answers(
        [row("present.0.key", max_rel=1e-5, bound=1e-4), row("present.1.value", max_rel=5e-5, bound=1e-4)], NONE
    )
    assert found is not None
    [one] = found.found
    assert (one.output, one.worst, one.margin) == ("present.*", 5e-5, pytest.approx(2.0))


def test_tokens_that_must_be_the_same_have_no_room() -> None:
    for top1, margin in ((1.0, math.inf), (0.75, 0.0)):
        [found] = answers([row("tokens", bounds={"same_tokens": True, "min_top1": None}, top1=top1)], NONE).found  # type: ignore[union-attr]
        assert (found.bound, found.margin) == (1.0, margin)
    [free] = answers([row("tokens", bounds={"same_tokens": False, "min_top1": 0.9}, top1=0.5)], NONE).found  # type: ignore[union-attr]
    assert (free.bound, free.margin) == (None, None)


def test_generated_tokens_are_counted_up_to_the_first_that_differs() -> None:
    made = pl.DataFrame({"tokens": [[1, 2, 3], [4, 5, 6]], "agreed": [3, 1]})
    found = answers([row("tokens", top1=0.6)], made)
    assert found is not None
    assert found.text is not None
    assert (found.text.sequences, found.text.tokens, found.text.agreed) == (2, 6, 4)
    assert answers([], NONE) is None
