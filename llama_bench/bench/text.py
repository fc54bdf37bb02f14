"""What an arm predicts on text, through the session that is timed, against what torch predicts in fp32.

numpy only, as the process that is timed imports this. Torch's logits are read from disk window by window, so that a
text of any length costs the memory of one window.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.bench.accuracy import Bounds, Limits, nonfinite, violations
from llama_bench.bench.predictions import Array, kl, predictions, slices

if TYPE_CHECKING:
    from llama_bench.engines import TimedSession
    from llama_bench.passes.info import Kind

LOGITS_FILE, ABOUT_FILE = "text.safetensors", "text.json"
"""In the folder of a reference: windows of tokens with torch's logits, and how the windows were cut."""

TEXT = "text"
"""The output of a row of `accuracy` that is about text."""

LIMITS: Limits = (
    ("KL divergence", "kl", "max_kl", " nats"),
    ("top-1 agreement", "top1", "min_top1", ""),
    ("perplexity increase", "increase", "max_perplexity_increase", ""),
)
"""Words, what was measured, what bounds it, unit: see :data:`llama_bench.bench.accuracy.LIMITS`."""


@dataclass(frozen=True, slots=True)
class Found:
    """Mean divergence, agreement and perplexity increase, as they are judged; None is what cannot be known."""

    kl: float | None = None
    top1: float | None = None
    increase: float | None = None


@dataclass(slots=True)
class _Tally:
    """Sums over the predictions so far: of divergences, agreements, and −ln of what the true next tokens were given."""

    tokens: int = 0
    kl: float = 0.0
    agreed: int = 0
    own: float = 0.0
    theirs: float = 0.0
    nan: int = 0
    infinite: int = 0

    def add(self, actual: Array, expected: Array, targets: Array) -> None:
        """Take in the logits [tokens, vocabulary] of both, and the tokens that came next."""
        self.tokens += len(targets)
        nan, infinite = nonfinite(actual)
        self.nan, self.infinite = self.nan + nan, self.infinite + infinite
        if self.nan or self.infinite:
            return
        for at in slices(*expected.shape):
            a, e = predictions(actual[at]), predictions(expected[at])
            self.kl += float(kl(a, e).sum())
            self.agreed += int(np.count_nonzero(a.first == e.first))
            true = np.arange(len(a.sums)), targets[at]
            self.own += float((np.log(a.sums) - a.logits[true]).sum())
            self.theirs += float((np.log(e.sums) - e.logits[true]).sum())


def score(session: TimedSession, folder: Path, bounds: Bounds, kind: Kind) -> dict[str, Any] | None:
    """Return the arm's row of the dataset `accuracy` about text, None where the reference in `folder` has none.

    Every prediction that the reference scores is compared with torch's: the divergence as in
    :func:`llama_bench.bench.predictions.divergence`, the share of equal most likely tokens, and the perplexity of both,
    exp(−mean ln p(next token)) (Jelinek et al. 1977). An approximation may be as much worse than torch as `bounds`
    say, and better as it likes; the perplexity of an exact rewrite must not move either way.

    Raises WorkError when the session cannot be run.
    """
    if not (folder / LOGITS_FILE).exists():
        return None
    from safetensors import safe_open

    about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
    tally, problem, at = _Tally(), None, 0
    with safe_open(folder / LOGITS_FILE, framework="numpy") as file:
        windows, scored = file.get_tensor("windows"), file.get_tensor("scored")
        windows, scored, logits = windows[scored > 0], scored[scored > 0].tolist(), file.get_slice("logits")
        for window, count, answer in zip(windows, scored, session.score(windows), strict=True):
            expected = logits[at : at + count]
            at += count
            problem = _unfit(answer, expected, window)
            if problem is not None:
                break
            # of the W − 1 predictions of a window the last ones count: position t is about the token at t + 1
            first = len(window) - count
            tally.add(answer[first - 1 : -1], expected, window[first:])
    return _row(tally, problem, about, bounds, kind) if at else None


def _unfit(answer: Array, expected: Array, window: Array) -> str | None:
    """Return why these logits cannot be compared, None where they can."""
    if sum(nonfinite(expected)):
        return "the reference itself is not finite: nothing can equal it"
    shape = (len(window), expected.shape[1])
    return None if answer.shape == shape else f"the logits of a window are {list(answer.shape)}, not {list(shape)}"


def _row(tally: _Tally, problem: str | None, about: dict[str, Any], bounds: Bounds, kind: Kind) -> dict[str, Any]:
    known = problem is None and not tally.nan and not tally.infinite
    mine, reference = (_perplexity(total, tally.tokens) if known else None for total in (tally.own, tally.theirs))
    found = Found()
    if mine is not None and reference is not None:
        increase = mine / reference - 1
        found = Found(
            tally.kl / tally.tokens, tally.agreed / tally.tokens, abs(increase) if kind == "exact" else increase
        )
    elif problem is None:
        problem = f"{tally.nan} of the logits are NaN, {tally.infinite} infinite"
    violated = problem or violations(found, bounds, LIMITS)
    return {
        "output": TEXT,
        "class": kind,
        "kl": found.kl,
        "top1": found.top1,
        "nan": tally.nan,
        "infinite": tally.infinite,
        "nonfinite": tally.nan + tally.infinite,
        "perplexity": mine,
        "reference_perplexity": reference,
        "tokens": tally.tokens,
        "window": about["window"],
        "stride": about["stride"],
        "bounds": json.dumps(asdict(bounds)),
        "within_bound": violated is None,
        "violated": violated,
    }


def _perplexity(surprise: float, tokens: int) -> float:
    """Return exp of the mean, infinite beyond what a float holds."""
    mean = surprise / tokens
    return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf
