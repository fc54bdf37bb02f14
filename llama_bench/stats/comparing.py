"""Two runs, compared arm by arm: what became faster or slower from A to B beyond noise, and what the machine did.

Two questions can be asked of an arm; both have their numbers in every row.

* `time`: did its own time change? A mean of ln(seconds) over restarts in each run, and Welch's t for their difference.
  The restarts of one run cannot see what differs between days. Arms that are the same program in both runs
  (:func:`llama_bench.stats.alike.same_program`: mostly the baseline, its control and the no-ops) can: what their time
  does is the machine's *drift*. It is taken off the other arms of the cell, restart by restart, and where these arms
  differ from one another by more than chance every standard error is widened until it explains that (Birge 1932).
  Where no arm is the same program in both runs (another ONNX Runtime, say), the drift cannot be told from a change:
  nothing is taken off, and the answer has to say so.
* `speedup`: did its time over the baseline's change? The difference of the mean log ratios of the two runs. The
  machine's speed cancels in each of them.

The headline is the time where the hardware is the same, since that is what is waited for, and the speedup where it is
not, since another machine is no change of an arm. Each row with a headline is a hypothesis; all rows are one family for
Benjamini–Hochberg.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats import drift
from llama_bench.stats.changes import Finding, Restarts, beside, difference, judge, shares, summary
from llama_bench.stats.drift import Target
from llama_bench.stats.matching import Pair, Row, Side, pairs
from llama_bench.stats.ratios import LEVEL, Estimate
from llama_bench.stats.verdicts import Q
from llama_bench.sweep import CONTROL

BY = ("time", "speedup")

SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("model", "workload", "target", "recipe"), pl.String),
    "control": pl.Boolean,
    "by": pl.String,
    "verdict": pl.String,
    "regression": pl.Boolean,
    **dict.fromkeys(("change", "low", "high", "level", "threshold"), pl.Float64),
    **dict.fromkeys(("time_a_s", "time_b_s", "time_change", "time_low", "time_high", "drift"), pl.Float64),
    **dict.fromkeys(("speedup_a", "speedup_b", "relative_change", "relative_low", "relative_high"), pl.Float64),
    **dict.fromkeys(("restarts_a", "restarts_b"), pl.Int64),
    "same_program": pl.Boolean,
    "evidence": pl.String,
}
"""Columns of the rows, one an arm of either run. Changes are shares of time from A to B: 0.1 takes 10 % longer.

`by` says which question `verdict`, `change`, `low` and `high` (at `level`) answer. `time_a_s` and `time_b_s` are
geometric means, `time_change` is as measured; `drift` is what the same programs show and `change` is without.
`relative_change` is that of the time over the baseline's. The intervals of these two are at 95 %.

`verdict` is faster, slower, equivalent or inconclusive; same (one program in both runs), baseline, control or no-op
where there is nothing to test; wrong, now wrong, now right; and new, gone, now failed, failed, skipped, unserved, void
for what has no number.
"""

TESTED = ("faster", "slower", "equivalent", "inconclusive")
"""Verdicts that a test decides."""

REGRESSIONS = ("now wrong", "now failed")
"""Verdicts that are a regression whatever the times are."""


@dataclass(frozen=True)
class Compared:
    """The rows (:data:`SCHEMA`) and the drift of each target (:data:`llama_bench.stats.drift.SCHEMA`)."""

    rows: pl.DataFrame
    drift: pl.DataFrame


@dataclass(frozen=True)
class _Changes:
    """The changes of an arm: of its time as measured, without the drift, and of its time over the baseline's."""

    raw: Estimate | None = None
    own: Estimate | None = None
    relative: Estimate | None = None

    def asked(self, by: str) -> Estimate | None:
        """Return the one that answers the question."""
        return self.own if by == "time" else self.relative


def compare(a: Side, b: Side, *, by: str | None = None, threshold: float | None = None, q: float = Q) -> Compared:
    """Compare run `b` with run `a`, cell by cell of the same model label, workload and target, arm by arm.

    `by` is the question (:data:`BY`), chosen for each target by its hardware when left out. A regression is an arm
    that is slower beyond noise and by more than `threshold` (a share), which is what counts as no difference on its
    target when left out (2 % on a CPU, 1 % on a GPU); also one that was right and is wrong, or was timed and fails.
    """
    by_target: dict[str, list[Pair]] = {}
    for pair in pairs(a, b):
        by_target.setdefault(pair.key[2], []).append(pair)
    targets = {name: drift.target(name, arms, by, a, b) for name, arms in by_target.items()}
    every = [(pair, target) for target in targets.values() for pair in target.arms]
    changes = [_changes(pair, target, a, b) for pair, target in every]
    said = [_said(pair, target, change, a, b) for (pair, target), change in zip(every, changes, strict=True)]
    asked = {
        i: estimate
        for i, ((_, target), change) in enumerate(zip(every, changes, strict=True))
        if not said[i][0] and (estimate := change.asked(target.by)) is not None
    }
    found = judge(asked, {i: every[i][1].margin for i in asked}, q)
    rows = []
    raw: dict[str, list[Estimate | None]] = {name: [] for name in targets}
    for i, (pair, target) in enumerate(every):
        over = target.margin if threshold is None else threshold
        rows.append(_row(pair, target.by, changes[i], said[i], found.get(i), over) | _seen(pair, a, b))
        raw[target.name].append(changes[i].raw)
    drifts = [drift.row(target, raw[name]) for name, target in targets.items() if target.timed]
    return Compared(
        pl.DataFrame(rows, schema=SCHEMA, orient="row"), pl.DataFrame(drifts, schema=drift.SCHEMA, orient="row")
    )


def _changes(pair: Pair, target: Target, a: Side, b: Side) -> _Changes:
    """Make the numbers of an arm, with what is wrong about the errors of each run and between them put right."""
    of_a, of_b = pair.cells
    if not pair.numbered or of_a is None or of_b is None:
        return _Changes()

    def change(in_a: Restarts, in_b: Restarts) -> Estimate | None:
        first, last = summary(in_a, a.pilot, target.inflations[0]), summary(in_b, b.pilot, target.inflations[1])
        if isinstance(first, Estimate) and isinstance(last, Estimate):
            return difference(last, first, target.test.inflation)
        return None

    raw = own = change(*pair.times)
    if pair.same is None and target.drift is not None and raw is not None:
        others = _beside(pair, target)
        own = change(*(beside(pair.times[i], [o.times[i] for o in others]) for i in (0, 1))) if others else None
        own = own or difference(raw, target.drift)  # its cell has no such arm: the drift of the target's others
    relative = None
    if of_a["baseline"] == of_b["baseline"] != pair.recipe:
        ids = (of_a["id"], pair.recipe), (of_b["id"], pair.recipe)
        relative = change(a.ratios.get(ids[0], {}), b.ratios.get(ids[1], {}))
    return _Changes(raw, own, relative)


def _beside(pair: Pair, target: Target) -> Sequence[Pair]:
    """The same programs of the arm's cell: those that were timed in all of its restarts, or all where none was."""
    others = target.same.get(pair.key, ())
    covering = [o for o in others if all(pair.times[i].keys() <= o.times[i].keys() for i in (0, 1))]
    return covering or others


def _said(pair: Pair, target: Target, changes: _Changes, a: Side, b: Side) -> tuple[str, str]:
    """Return the word and evidence of an arm that is not tested, empty for one that is."""
    if pair.word or not pair.numbered:
        return pair.word, pair.evidence
    base, by_time = pair.recipe in pair.baselines, target.by == "time"
    same_base = any(other.recipe in pair.baselines for other in target.same.get(pair.key, ()))
    if pair.same is not None and (by_time or same_base):
        return "same", f"one program in both runs ({pair.same}): what its time does is the machine's doing"
    if pair.recipe == CONTROL:
        return "control", "the baseline a second time (A/A)"
    if not by_time and len(set(pair.baselines)) > 1:
        return "void", "the speedups are over {} in A and over {} in B".format(*pair.baselines)
    if not by_time and base:
        return "baseline", "speedups are over its time"
    if not by_time and all(_no_op(one, cell, pair.recipe) for one, cell in zip((a, b), pair.cells, strict=True)):
        return "no-op", "the baseline's own program in both runs"
    if changes.asked(target.by) is None:
        return "void", "too few restarts timed it beside what it is compared with"
    return "", ""


def _no_op(one: Side, cell: Row | None, recipe: str) -> bool:
    return cell is not None and one.judged.comparisons[cell["id"]][recipe].no_op is not None


def _row(
    pair: Pair, by: str, changes: _Changes, said: tuple[str, str], found: Finding | None, threshold: float
) -> dict[str, Any]:
    """The columns that the comparison makes."""
    word, evidence = (found.word, found.evidence) if found else said
    low, high = found.interval if found else (None, None)
    raw, relative = (None if one is None else shares(one, LEVEL) for one in (changes.raw, changes.relative))
    off = None
    if changes.raw is not None and changes.own is not None and changes.own is not changes.raw:
        off = math.expm1(changes.raw.mean - changes.own.mean)
    return {
        **dict(zip(("model", "workload", "target"), pair.key, strict=True)),
        "recipe": pair.recipe,
        "control": pair.recipe == CONTROL,
        "by": by,
        "verdict": word,
        "regression": word in REGRESSIONS or (found is not None and word == "slower" and found.change > threshold),
        "change": found.change if found else None,
        "low": low,
        "high": high,
        "level": found.level if found else None,
        "threshold": threshold,
        "time_change": raw[0] if raw else None,
        "time_low": raw[1][0] if raw else None,
        "time_high": raw[1][1] if raw else None,
        "drift": off,
        "relative_change": relative[0] if relative else None,
        "relative_low": relative[1][0] if relative else None,
        "relative_high": relative[1][1] if relative else None,
        "same_program": pair.same is not None,
        "evidence": evidence,
    }


def _seen(pair: Pair, a: Side, b: Side) -> dict[str, Any]:
    """The columns that each run has by itself."""
    found: dict[str, Any] = {}
    for one, cell, name in zip((a, b), pair.cells, "ab", strict=True):
        key = None if cell is None else (cell["id"], pair.recipe)
        shown = key is not None and key[0] not in one.judged.known.machines
        found[f"time_{name}_s"] = one.judged.known.times.get(key, {}).get("time_s") if key and shown else None
        found[f"speedup_{name}"] = one.judged.verdicts[key[0]][key[1]].speedup if key else None
        found[f"restarts_{name}"] = len(one.logs.get(key, ())) if key else 0
    return found
