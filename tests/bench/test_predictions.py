"""Divergence and agreement of next-token distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from llama_bench.bench.predictions import divergence


def test_the_divergence_is_kullback_and_leiblers_from_the_reference_to_the_answer() -> None:
    expected, actual = np.log([[[0.5, 0.5]]]), np.log([[[0.25, 0.75]]])
    kl, top1 = divergence(actual, expected)
    assert np.isclose(kl, 0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert top1 == 0.0  # of two equal tokens the first counts


@pytest.mark.parametrize("shift", [0.0, 3e4, -3e4])
def test_the_divergence_agrees_with_scipy_and_no_logit_is_too_large_for_it(shift: float) -> None:
    rng = np.random.default_rng(0)
    expected = rng.normal(size=(2, 3, 50_000)) * 4
    actual = expected + rng.normal(size=expected.shape)
    truth = rel_entr(softmax(expected, -1), softmax(actual, -1)).sum(-1).mean()
    kl, top1 = divergence(actual + shift, expected)
    assert np.isclose(kl, truth, rtol=1e-9)
    assert top1 == np.mean(actual.argmax(-1) == expected.argmax(-1))
    assert divergence(expected + shift, expected)[0] < 1e-9
