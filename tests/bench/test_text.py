"""Predictions on text: a real tiny model in windows, against torch's own numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from llama_bench.bench import text
from llama_bench.bench.accuracy import BOUNDS, Bounds
from llama_bench.bench.predictions import divergence
from llama_bench.model import inputs, llama
from llama_bench.schemas import SCHEMAS
from llama_bench.sweep import Model, Workload

MODEL = Model(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=48, vocab_size=100, seed=3)
WINDOW, SCORED = 12, (11, 7, 3, 0)
LOOSE = Bounds(None, None, None, None)
FP32 = BOUNDS["fp32"]


class Session:
    """torch itself, one window a run; `change` what comes out before it is answered."""

    def __init__(self, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] = lambda logits: logits) -> None:
        workload = Workload(kind="prefill", batch=1, sequence=WINDOW, outputs="logits", kv_out=False)
        self.network, self.change, self.asked = llama.build(MODEL, workload), change, 0
        self.network.lm_head.weight *= 20  # as sure of itself as a trained model

    def score(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        for window in windows:
            self.asked += 1
            given = torch.from_numpy(window[None]), torch.from_numpy(inputs.positions(1, 0, len(window)))
            with torch.inference_mode():
                [logits] = self.network(*given)
            yield self.change(logits[0].numpy().copy())


@pytest.fixture(scope="module")
def windows() -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).integers(0, MODEL.vocab_size, (len(SCORED), WINDOW))


@pytest.fixture(scope="module")
def reference(windows: np.ndarray[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("reference"), windows, expected(windows))


def expected(windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Torch's logits of the scored predictions, in the order of windows and positions."""
    answers = zip(Session().score(windows), SCORED, strict=True)
    return np.concatenate([logits[WINDOW - 1 - count : WINDOW - 1] for logits, count in answers])


def write(folder: Path, windows: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> Path:
    scored = np.array(SCORED, dtype=np.int64)
    save_file({"windows": windows, "scored": scored, "logits": logits}, folder / "text.safetensors")
    (folder / "text.json").write_text(json.dumps({"window": WINDOW, "stride": 7, "source": "random words"}))
    return folder


def scored(session: Session, folder: Path, bounds: Bounds = FP32, kind: Any = "exact") -> dict[str, Any]:
    row = text.score(session, folder, bounds, kind)  # type: ignore[arg-type]
    assert row is not None
    return row


def test_the_same_predictions_lose_nothing_and_their_perplexity_is_torchs(
    reference: Path, windows: np.ndarray[Any, Any]
) -> None:
    row = scored(Session(), reference)
    targets = np.concatenate([window[WINDOW - count :] for window, count in zip(windows, SCORED, strict=True)])
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(expected(windows)), torch.from_numpy(targets))
    assert row["perplexity"] == row["reference_perplexity"] == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert (row["kl"], row["top1"], row["tokens"], row["window"], row["stride"]) == (0.0, 1.0, 21, 12, 7)
    assert (row["within_bound"], row["violated"], row["class"], row["output"]) == (True, None, "exact", "text")
    assert set(row) <= set(SCHEMAS["accuracy"].names)
    assert Bounds(**json.loads(row["bounds"])) == FP32


def test_the_divergence_is_torchs_over_the_arms_and_agreement_counts_equal_choices(
    reference: Path, windows: np.ndarray[Any, Any]
) -> None:
    def noisy(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return logits + np.random.default_rng(1).normal(0, 0.3, logits.shape).astype(np.float32)

    row = scored(Session(noisy), reference, LOOSE, "approximate")
    truth = expected(windows)
    answers = zip(Session(noisy).score(windows), SCORED, strict=True)
    actual = np.concatenate([logits[WINDOW - 1 - count : WINDOW - 1] for logits, count in answers])
    assert (row["kl"], row["top1"]) == pytest.approx(divergence(actual, truth))
    assert row["kl"] > 0.01
    assert row["top1"] < 1
    assert row["perplexity"] != row["reference_perplexity"]
    assert row["within_bound"] is True


def sharpened(to: float) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    return lambda logits: logits * np.float32(to)


def test_an_approximation_is_bounded_by_how_much_worse_it_predicts_and_may_predict_better(reference: Path) -> None:
    # a model of random weights on random words predicts the better the less sure it is
    worse, better = Session(sharpened(1.02)), Session(sharpened(0.5))
    limits = replace(LOOSE, max_perplexity_increase=0.001)
    row = scored(worse, reference, limits, "approximate")
    increase = row["perplexity"] / row["reference_perplexity"] - 1
    assert increase > 0.001
    assert row["violated"].startswith("perplexity increase 0.")
    assert row["violated"].endswith(" is above 0.001")
    assert scored(worse, reference, LOOSE, "approximate")["within_bound"] is True
    found = scored(better, reference, limits, "approximate")
    assert found["perplexity"] < found["reference_perplexity"]
    assert found["within_bound"] is True
    # an exact rewrite must not move at all
    assert scored(better, reference, limits, "exact")["within_bound"] is False


def test_every_bound_of_text_is_judged(reference: Path) -> None:
    limits = Bounds(max_rel=1e-9, min_cosine=None, max_kl=1e-6, min_top1=0.999, max_perplexity_increase=1e-6)
    row = scored(Session(lambda logits: -2 * logits), reference, limits, "approximate")
    parts = row["violated"].split("; ")
    assert [part.split(" is ")[0].rsplit(" ", 1)[0] for part in parts][1:] == ["top-1 agreement", "perplexity increase"]
    assert parts[0].startswith("KL divergence ")


def test_rounding_is_inside_the_bounds_of_an_exact_rewrite_and_bf16_is_not(reference: Path) -> None:
    def rounded(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return logits * np.float32(1 + 1e-6) + np.float32(1e-6)

    def bf16(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return torch.from_numpy(logits).to(torch.bfloat16).to(torch.float32).numpy()

    assert scored(Session(rounded), reference)["within_bound"] is True
    assert scored(Session(bf16), reference)["within_bound"] is False
    assert scored(Session(bf16), reference, BOUNDS["tf32"])["within_bound"] is True


def test_logits_that_are_not_finite_are_wrong_and_counted_where_they_are_scored(reference: Path) -> None:
    def spoiled(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits[-1] = np.nan  # the last position predicts beyond the window
        logits[-2, :3] = (np.nan, np.inf, -np.inf)
        return logits

    row = scored(Session(spoiled), reference, LOOSE, "approximate")
    assert (row["nan"], row["infinite"], row["nonfinite"]) == (3, 6, 9)  # of four windows one scores nothing
    assert [row[name] for name in ("kl", "top1", "perplexity", "reference_perplexity")] == [None] * 4
    assert (row["within_bound"], row["violated"]) == (False, "3 of the logits are NaN, 6 infinite")


def test_a_certain_and_wrong_model_has_a_perplexity_beyond_any_float(reference: Path) -> None:
    row = scored(Session(lambda logits: logits * np.float32(1e6)), reference, FP32, "exact")
    assert row["perplexity"] == math.inf
    assert "perplexity increase inf is above 0.0001" in row["violated"]


def test_logits_of_another_shape_are_wrong_and_nothing_more_is_asked(reference: Path) -> None:
    session = Session(lambda logits: logits[:, :50])
    row = scored(session, reference, LOOSE, "approximate")
    assert row["violated"] == "the logits of a window are [12, 50], not [12, 100]"
    assert (row["kl"], row["within_bound"], session.asked) == (None, False, 1)


def test_a_reference_that_is_not_finite_is_its_own_fault(windows: np.ndarray[Any, Any], tmp_path: Path) -> None:
    logits = expected(windows)
    logits[0, 0] = np.inf
    row = scored(Session(), write(tmp_path, windows, logits))
    assert row["violated"] == "the reference itself is not finite: nothing can equal it"


def test_a_reference_without_text_asks_nothing(windows: np.ndarray[Any, Any], tmp_path: Path) -> None:
    session = Session()
    assert text.score(session, tmp_path, FP32, "exact") is None  # type: ignore[arg-type]
    assert session.asked == 0
    empty = np.zeros((0, MODEL.vocab_size), np.float32)
    save_file({"windows": windows[:0], "scored": np.zeros(0, np.int64), "logits": empty}, tmp_path / "text.safetensors")
    (tmp_path / "text.json").write_text('{"window": 12, "stride": 11, "source": ""}')
    assert text.score(session, tmp_path, FP32, "exact") is None  # type: ignore[arg-type]
