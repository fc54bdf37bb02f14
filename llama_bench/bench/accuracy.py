"""Is the fast answer the right one? The timed session's outputs against torch's fp32 reference, by output.

numpy only, and no BLAS: the process that is timed imports this, and must not come to own threads that spin. Sums are in
float64 over pieces that fit into a cache, so that logits of any size cost next to no memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llama_bench.bench.predictions import PIECE, Array, divergence

if TYPE_CHECKING:
    from llama_bench.passes.info import Kind
    from llama_bench.sweep import AccuracyBounds

LOGITS = "logits"
"""The output whose last axis is a next-token distribution."""

TOKENS = "tokens"
"""The output of a `generate`: the new tokens [B, m], int64."""

CACHE = "present."
"""How the names of the outputs begin that are keys and values."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far an output may be from its reference; None is no bound. `max_kl` in nats.

    `max_perplexity_increase` is of predictions on text (:mod:`llama_bench.bench.text`): 0.01 is 1 % above torch's.
    `same_tokens` asks that generated tokens be torch's, all of them.
    """

    max_rel: float | None
    min_cosine: float | None
    max_kl: float | None
    min_top1: float | None
    max_perplexity_increase: float | None = None
    same_tokens: bool = False


BOUNDS: dict[str, Bounds] = {
    # fp32 rewrites reorder sums and no more: the study's models come to 2e-6 on a CPU. Sums grow with width and depth,
    # and every export is held to 1e-4 (model/export.py); the wrong graphs of docs/accuracy.md come to 2e-3 and more.
    "fp32": Bounds(1e-4, 0.999999, max_kl=1e-6, min_top1=None, max_perplexity_increase=1e-4, same_tokens=True),
    # TF32 keeps 10 bits of the mantissa in every product: 1.4e-3 on the study's models and an H200, with two layers;
    # the rest is room for deeper models.
    "tf32": Bounds(2e-2, 0.999, max_kl=1e-2, min_top1=None, max_perplexity_increase=1e-2),
}
"""Bounds of exact rewrites, by the precision of the session's products. Beside a few very large values the largest
error says little of the rest; the cosine and the divergence do. Top-1 is not bounded: where two tokens are equally
likely, rounding may rightly choose the other. A generated text is another text from there on. In fp32 that takes a tie
to the sixth digit, so the tokens must be the same; in TF32 to the third, so the predictions on text decide."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One output against its reference; None is what does not apply or cannot be known.

    `max_abs` is the largest |actual − expected|, `max_rel` the same over max |expected|, `cosine` that of the angle
    between the two as vectors, `kl` the mean divergence of the next-token distributions in nats, `top1` the share of
    tokens whose most likely successor agrees, `nan` and `infinite` count the actual values that are not finite.
    """

    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    kl: float | None = None
    top1: float | None = None
    nan: int = 0
    infinite: int = 0

    @property
    def nonfinite(self) -> int:
        return self.nan + self.infinite


Limits: TypeAlias = tuple[tuple[str, str, str, str], ...]

LIMITS: Limits = (
    ("relative error", "max_rel", "max_rel", ""),
    ("cosine", "cosine", "min_cosine", ""),
    ("KL divergence", "kl", "max_kl", " nats"),
    ("top-1 agreement", "top1", "min_top1", ""),
)
"""Words, what was measured, what bounds it (`min_`: from below), unit."""


def bounds(kind: Kind, settings: Mapping[str, Any], approximate: AccuracyBounds) -> Bounds:
    """Return the bounds of an arm whose passes are of class `kind` and whose session has these settings.

    Exact rewrites have those of `BOUNDS`, whatever the sweep says; approximations the sweep's own, `approximate`.
    """
    if kind == "approximate":
        return Bounds(
            approximate.max_rel,
            approximate.min_cosine,
            approximate.max_kl,
            approximate.min_top1,
            approximate.max_perplexity_increase,
        )
    tf32 = str(settings.get("provider_options", {}).get("use_tf32", "0")) in ("1", "True", "true")
    return BOUNDS["tf32" if tf32 else "fp32"]


def compare(
    outputs: Mapping[str, Array], reference: Mapping[str, Array], bounds: Bounds, kind: Kind
) -> list[dict[str, Any]]:
    """Compare each reference output with the session's: one row of the dataset `accuracy` an output, by name.

    `violated` says in one sentence which bounds an output is outside of and by what, and is None inside. A missing
    output and one of another shape are infinitely wrong; a value that is not finite is outside every bound, and so is
    any answer to a reference that is not finite itself.

    An exact rewrite answers for all outputs. An approximation answers for its logits or hidden states: its keys, values
    and generated tokens follow from numbers that were changed on purpose. They are recorded without bounds where they
    are numbers of the reference's shape, and left out where they are not (a pruned model has fewer heads, a quantised
    cache holds codes).
    """
    rows = []
    for name, expected in sorted(reference.items()):
        actual = outputs.get(name)
        if kind == "exact" or not (_are_tokens(name, expected) or name.startswith(CACHE)):
            rows.append(_row(name, kind, *_judge(name, actual, expected, bounds, kind), bounds))
        elif actual is not None and _comparable(name, actual, expected):
            rows.append(_row(name, kind, _judge(name, actual, expected, bounds, kind)[0], None, None))
    return rows


def measure(actual: Array, expected: Array, *, distribution: bool = False) -> Accuracy:
    """Return how far `actual` is from `expected`, two arrays of one shape; `expected` is finite.

    With `distribution` the last axis are logits: see :func:`divergence`. The cosine is ⟨a, e⟩ / (‖a‖·‖e‖); of two zero
    vectors it is 1, of a zero and another 0. Where values are not finite nothing but their number is known, and the
    error is infinite. Any type of float, and fp16 overflows nothing here.
    """
    nan, infinite = nonfinite(actual)
    if nan or infinite:
        return Accuracy(max_abs=math.inf, max_rel=math.inf, nan=nan, infinite=infinite)
    largest = scale = product = own = theirs = 0.0
    for a, e in _pieces(actual, expected):
        product += float(np.einsum("i,i->", a, e))
        own += float(np.einsum("i,i->", a, a))
        theirs += float(np.einsum("i,i->", e, e))
        scale = max(scale, float(e.max()), -float(e.min()))
        a -= e
        largest = max(largest, float(a.max()), -float(a.min()))
    relative = largest / scale if scale else math.inf if largest else 0.0
    length = math.sqrt(own) * math.sqrt(theirs)
    cosine = max(-1.0, min(1.0, product / length)) if length else float(own == theirs)
    kl, top1 = divergence(actual, expected) if distribution and actual.size else (None, None)
    return Accuracy(max_abs=largest, max_rel=relative, cosine=cosine, kl=kl, top1=top1)


def nonfinite(values: Array) -> tuple[int, int]:
    """Return how many values are NaN and how many infinite."""
    flat = values.reshape(-1)
    finite = sum(int(np.count_nonzero(np.isfinite(flat[at : at + PIECE]))) for at in range(0, flat.size, PIECE))
    if finite == flat.size:
        return 0, 0
    nan = int(np.count_nonzero(np.isnan(flat)))
    return nan, flat.size - finite - nan


def _pieces(actual: Array, expected: Array) -> Iterator[tuple[Array, Array]]:
    """Yield both arrays piece by piece, each piece a float64 copy."""
    a, e = actual.reshape(-1), expected.reshape(-1)
    for at in range(0, e.size, PIECE):
        yield a[at : at + PIECE].astype(np.float64), e[at : at + PIECE].astype(np.float64)


def _row(name: str, kind: Kind, found: Accuracy, violated: str | None, bounds: Bounds | None) -> dict[str, Any]:
    """One output's row; without `bounds` it is recorded only."""
    return {
        "output": name,
        "class": kind,
        **asdict(found),
        "nonfinite": found.nonfinite,
        "bound": bounds and bounds.max_rel,
        "bounds": bounds and json.dumps(asdict(bounds)),
        "within_bound": bounds and violated is None,
        "violated": violated,
    }


def _are_tokens(name: str, expected: Array) -> bool:
    """Whether an output is a generated text: of somebody's own model one of this name may be anything."""
    return name == TOKENS and expected.dtype.kind in "iu"


def _comparable(name: str, actual: Array, expected: Array) -> bool:
    """Whether two outputs are numbers of one kind: the codes of a quantised cache are none."""
    return actual.shape == expected.shape and (_are_tokens(name, expected) or actual.dtype.kind not in "iub")


def _judge(name: str, actual: Array | None, expected: Array, bounds: Bounds, kind: Kind) -> tuple[Accuracy, str | None]:
    """Return what was found, and the sentence about what is wrong with it."""
    nan, infinite = nonfinite(expected)
    if nan or infinite:
        counts = Accuracy() if actual is None else Accuracy(None, None, None, None, None, *nonfinite(actual))
        return counts, f"the reference itself is not finite ({nan} NaN, {infinite} infinite): nothing can equal it"
    if actual is None:
        return Accuracy(max_abs=math.inf, max_rel=math.inf), "the output is missing"
    if actual.shape != expected.shape:
        shapes = f"its shape is {list(actual.shape)}, the reference's is {list(expected.shape)}"
        return Accuracy(max_abs=math.inf, max_rel=math.inf), shapes
    if _are_tokens(name, expected):
        return _judge_tokens(actual, expected, bounds)
    if expected.dtype.kind in "iub":
        return _judge_whole(actual, expected, bounds, kind)
    found = measure(actual, expected, distribution=name == LOGITS and expected.ndim > 0)
    if found.nonfinite:
        return found, f"{found.nan} of {actual.size} values are NaN, {found.infinite} infinite"
    return found, violations(found, bounds, LIMITS)


def _judge_tokens(actual: Array, expected: Array, bounds: Bounds) -> tuple[Accuracy, str | None]:
    """Tokens are the same or not: `top1` is the share of positions that agree."""
    differ = np.argwhere(actual != expected)
    found = Accuracy(top1=1 - len(differ) / expected.size if expected.size else None)
    if not len(differ) or not bounds.same_tokens:
        return found, None
    sequence, position = differ[0].tolist()
    where = f"the first at position {position} of sequence {sequence}"
    return found, f"{len(differ)} of {expected.size} tokens are not torch's, {where}"


def _judge_whole(actual: Array, expected: Array, bounds: Bounds, kind: Kind) -> tuple[Accuracy, str | None]:
    """Whole numbers and truth values are the same or not: `top1` is the share that is.

    Of an exact rewrite all must be; of an approximation as many as the bound on top-1 agreement says, since such
    outputs are choices (a class, a token, a place).
    """
    differ = np.argwhere(actual != expected)
    found = Accuracy(top1=1 - len(differ) / expected.size if expected.size else None)
    if kind == "approximate" or not len(differ):
        return found, violations(found, bounds, LIMITS)
    where = f"the first at {differ[0].tolist()}"
    return found, f"{len(differ)} of {expected.size} whole numbers are not the reference's, {where}"


def violations(found: Any, bounds: Bounds, limits: Limits) -> str | None:
    """Return the sentence about the `limits` that the numbers of `found` are outside of, None inside all of them."""
    outside = [
        text for words, value, bound, unit in limits if (text := _outside(words, found, bounds, value, bound, unit))
    ]
    return "; ".join(outside) or None


def _outside(words: str, found: Any, bounds: Bounds, value: str, bound: str, unit: str) -> str | None:
    """Return "relative error 0.8 is above 0.0001" for what is outside its bound, None for all else."""
    is_, may_be, least = getattr(found, value), getattr(bounds, bound), bound.startswith("min_")
    if is_ is None or may_be is None or _inside(is_, may_be, least):
        return None
    # as many digits as it takes: a value must not read as if it were inside
    texts = (f"{is_:.{digits}g}" for digits in (3, 6, 9, 17))
    text = next(text for text in texts if not _inside(float(text), may_be, least))
    return f"{words} {text}{unit} is {'below' if least else 'above'} {may_be:g}"


def _inside(value: float, bound: float, least: bool) -> bool:
    return value >= bound if least else value <= bound
