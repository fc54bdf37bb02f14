"""The view `pareto`: which arms of a cell are beaten in time, accuracy and size together, and which are not.

An arm is beaten by another that is not shown to be slower, loses no more accuracy, takes no more space, and is better
in at least one of the three:

* **time**: an arm is faster than another when their intervals do not meet (the baseline's is 1), slower likewise, and
  else neither: noise gives no arm a place, and takes none.
* **accuracy**: by how much perplexity on text rose; where the baseline was not asked about text, KL; without logits
  1 − cosine, of generated tokens the share that differs. No more than an exact fp32 rewrite may lose counts as nothing,
  and so does a perplexity below torch's; beyond, numbers count as they are printed, to two digits.
* **size**: bytes on disk, as they are printed, to three digits.

An arm is on the front unless an arm on the front beats it. "Not slower" is not transitive, so what a beaten arm beats
need not be beaten by its own conqueror; with this rule every arm off the front can name one on it that beats it, and
an arm that is beaten by the front changes nothing when it is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.bench.accuracy import BOUNDS
from llama_bench.stats.judged import Judged
from llama_bench.stats.verdicts import FROM_RATIOS, Verdict
from llama_bench.sweep import CONTROL

Row = Mapping[str, Any]

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "baseline": pl.Boolean,
    "class": pl.String,
    "engine": pl.String,
    "verdict": pl.String,
    "speedup": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "loss_of": pl.String,
    "loss": pl.Float64,
    "disk_bytes": pl.Int64,
    "front": pl.Boolean,
    "beaten_by": pl.String,
}
"""Columns of the view. Only arms with a speedup, a right answer and something to execute besides the baseline's are
placed, in cells whose baseline is among them. `loss_of` names what `loss` is: "perplexity" (its increase, a share),
"kl", "cosine" (1 − it) or "tokens" (the share that differs). `beaten_by` is the fastest arm on the front that beats
this one.
"""

PLACED = (*FROM_RATIOS, "baseline")
"""Verdicts of arms that are compared here: the control and no-ops are the baseline again, a wrong one has no place."""

_FP32 = BOUNDS["fp32"]

LOSSES: dict[str, float] = {
    "perplexity": _FP32.max_perplexity_increase or 0.0,
    "kl": _FP32.max_kl or 0.0,
    "cosine": 1 - (_FP32.min_cosine or 1.0),
    "tokens": 0.0,
}
"""What a loss is of, the first that is known counts → how much of it an exact fp32 rewrite may lose."""

LOSS_DIGITS, SIZE_DIGITS = 2, 3


@dataclass(frozen=True, slots=True)
class Point:
    """An arm: the interval of its speedup and the speedup, what it loses and what it takes, in any unit."""

    speedup: float
    low: float
    high: float
    loss: float
    size: float


def faster(one: Point, other: Point) -> bool:
    """Return whether `one` is shown to be faster: its interval lies above the other's."""
    return one.low > other.high


def beats(one: Point, other: Point) -> bool:
    """Return whether `one` is nowhere worse than `other` (not shown slower, in time) and somewhere better.

    There is no circle of arms that beat each other: losses and sizes could not grow along it, so each arm would be
    faster than the next, and intervals that lie above each other have a highest one.
    """
    if faster(other, one) or one.loss > other.loss or one.size > other.size:
        return False
    return faster(one, other) or one.loss < other.loss or one.size < other.size


def front(points: Mapping[str, Point]) -> dict[str, str | None]:
    """Return arm → None on the front, else the fastest arm on the front that beats it, in the order of `points`.

    The kernel of the graph "beats" (von Neumann & Morgenstern 1944): no arm on the front beats another on it, and every
    arm off it is beaten by one on it. A graph without circles has exactly one, and it is not empty.
    """
    on: list[str] = []
    left = dict(points)
    while left:
        # what beats these is beaten itself, and gone
        standing = [a for a, one in left.items() if not any(beats(other, one) for other in left.values())]
        on += standing
        left = {a: one for a, one in left.items() if not any(b == a or beats(points[b], one) for b in standing)}
    return {name: None if name in on else _victor(one, on, points) for name, one in points.items()}


def _victor(beaten: Point, on: Sequence[str], points: Mapping[str, Point]) -> str:
    """The fastest arm on the front that beats this one; of equally fast ones the first by name."""
    victors = sorted(name for name in on if beats(points[name], beaten))
    return max(victors, key=lambda name: points[name].speedup)


def graded(loss: float, none: float) -> float:
    """Return a loss as it counts: nothing up to `none`, else two significant digits."""
    return 0.0 if loss <= none else float(f"{loss:.{LOSS_DIGITS}g}")


@dataclass(frozen=True, slots=True)
class _Placed:
    """An arm that can be placed: its verdict, where it counts as being, and its loss and size as measured."""

    verdict: Verdict
    point: Point
    loss: float
    size: int


def table(judged: Judged, accuracy: pl.DataFrame, sizes: pl.DataFrame) -> pl.DataFrame:
    """Return the view from two others, `accuracy_by_arm` and `sizes`: the arms of each cell that can be placed."""
    right = {(row["cell"], row["recipe"]): row for row in accuracy.to_dicts()}
    stored = {(row["cell"], row["recipe"]): row["disk_bytes"] for row in sizes.to_dicts()}
    rows: list[dict[str, Any]] = []
    for cell in judged.known.cells:
        losses = {name: losses_of(right.get((cell["id"], name), {})) for name in judged.verdicts[cell["id"]]}
        of = next((name for name in LOSSES if losses[cell["baseline"]][name] is not None), None)
        if of is None:
            continue
        placed = {}
        for name, verdict in judged.verdicts[cell["id"]].items():
            found = _placed(verdict, losses[name][of], LOSSES[of], stored.get((cell["id"], name)))
            if found is not None and name != CONTROL:
                placed[name] = found
        if cell["baseline"] not in placed:  # what everything here is measured against
            continue
        beaten_by = front({name: one.point for name, one in placed.items()})
        rows += [_row(cell, name, one, of, beaten_by[name], judged) for name, one in placed.items()]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _placed(verdict: Verdict, loss: float | None, none: float, size: int | None) -> _Placed | None:
    """The arm as it counts, None where it has no place; the baseline, compared with nothing, is at exactly 1."""
    if verdict.word not in PLACED or verdict.speedup is None or loss is None or size is None:
        return None
    low, high = verdict.interval or (verdict.speedup, verdict.speedup)
    point = Point(verdict.speedup, low, high, graded(loss, none), float(f"{size:.{SIZE_DIGITS}g}"))
    return _Placed(verdict, point, loss, size)


def _row(cell: Row, name: str, one: _Placed, of: str, beaten_by: str | None, judged: Judged) -> dict[str, Any]:
    variant = judged.known.variants[cell["id"], name]
    return {
        **{key: cell[key] for key in ("model", "workload", "target")},
        "cell": cell["id"],
        "recipe": name,
        "baseline": name == cell["baseline"],
        **{key: variant[key] for key in ("class", "engine")},
        "verdict": one.verdict.word,
        **{key: getattr(one.point, key) for key in ("speedup", "low", "high")},
        "loss_of": of,
        "loss": one.loss,
        "disk_bytes": one.size,
        "front": beaten_by is None,
        "beaten_by": beaten_by,
    }


def losses_of(row: Row) -> dict[str, float | None]:
    """Return what an arm loses by every measure of `LOSSES`, from its row of `accuracy_by_arm`; None is not known."""
    tokens = row.get("top1") if row.get("source") == "tokens" else None
    found = {
        "perplexity": row.get("perplexity_increase"),
        "kl": row.get("kl"),
        "cosine": _less(row.get("cosine")),
        "tokens": _less(tokens),
    }
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}


def _less(share: float | None) -> float | None:
    return None if share is None else 1 - share
