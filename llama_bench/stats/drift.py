"""What a target's machine did between two runs: the changes of programs that are the same in both.

The restarts of one run cannot see what differs between days, neighbours or boots. Arms that are one program in both
runs (:func:`llama_bench.stats.alike.same_program`: mostly the baseline, its control and the no-ops) can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats import alike
from llama_bench.stats.changes import Restarts, aa_between, average, difference, shares, summary
from llama_bench.stats.controls import AATest
from llama_bench.stats.matching import CellKey, Pair, Side
from llama_bench.stats.ratios import LEVEL, Estimate
from llama_bench.stats.verdicts import margin_of

SCHEMA: dict[str, Any] = {
    "target": pl.String,
    "by": pl.String,
    "same_hardware": pl.Boolean,
    "same_code": pl.Boolean,
    "source": pl.String,
    "arms": pl.Int64,
    **dict.fromkeys(("change", "low", "high", "least", "most"), pl.Float64),
    "aa_pairs": pl.Int64,
    **dict.fromkeys(("aa_chi2", "aa_p", "inflation"), pl.Float64),
}
"""Columns of the drift, one row a target that both runs timed. `source` says whose time changed by `change`: that of
the "same programs" (their mean and its 95 % interval), or of "all arms" where none is known to be the same (their
median); `least` and `most` are the smallest and largest change among those `arms`. `same_code` is of the code that
measures. `aa_pairs` and what follows are the A/A test between the runs
(:func:`llama_bench.stats.changes.aa_between`), null where there is no pair.
"""


@dataclass(frozen=True)
class Target:
    """What the arms of a target have in common: its question, what its same programs show, and how evenly.

    `same` are those programs, by cell; `inflations` are those of the runs' own A/A tests, A's first; `margin` is what
    counts as no difference.
    """

    name: str
    arms: Sequence[Pair]
    same: Mapping[CellKey, Sequence[Pair]]
    by: str
    same_hardware: bool
    same_code: bool
    inflations: tuple[float, float]
    test: AATest
    drift: Estimate | None
    margin: float

    @property
    def timed(self) -> bool:
        """Whether both runs have times of any of its arms."""
        return any(arm.numbered for arm in self.arms)


def target(name: str, arms: Sequence[Pair], by: str | None, a: Side, b: Side) -> Target:
    """Look at a target as a whole; `by` is chosen by its hardware where it is None."""
    like = alike.same_hardware(a.hardware.get(name, ()), b.hardware.get(name, ()))
    same: dict[CellKey, list[Pair]] = {}
    for arm in arms:
        if arm.same is not None:
            same.setdefault(arm.key, []).append(arm)
    test = aa_between((_times(cell, 0), _times(cell, 1)) for cell in same.values())
    shifts = []
    for cell in same.values():
        in_a, in_b = (summary(_mean([arm.times[i] for arm in cell]), (a, b)[i].pilot) for i in (0, 1))
        if isinstance(in_a, Estimate) and isinstance(in_b, Estimate):
            shifts.append(difference(in_b, in_a, test.inflation))
    sweeps = [one.judged.known.sweep for one in (b, a)]
    provider = next(sweep.targets[name].provider for sweep in sweeps if name in sweep.targets)
    tests = [one.judged.tests.get(name, AATest()) for one in (a, b)]
    return Target(
        name=name,
        arms=arms,
        same=same,
        by=by or ("time" if like else "speedup"),
        same_hardware=like,
        same_code=a.run.get("code") == b.run.get("code"),
        inflations=(tests[0].inflation, tests[1].inflation),
        test=test,
        drift=average(shifts) if shifts else None,
        margin=margin_of(provider),
    )


def _times(cell: Sequence[Pair], run: int) -> dict[str, Restarts]:
    return {arm.recipe: arm.times[run] for arm in cell}


def _mean(arms: Sequence[Restarts]) -> dict[int, float]:
    """Return the mean of the arms in each restart that has them all."""
    return {r: sum(arm[r] for arm in arms) / len(arms) for r in sorted(arms[0]) if all(r in arm for arm in arms)}


def row(target: Target, raw: Sequence[Estimate | None]) -> dict[str, Any]:
    """Return the target's row of the view; `raw` are the changes of its arms' times as measured."""
    same = target.drift is not None
    seen = pl.Series(
        [
            shares(change, LEVEL)[0]
            for arm, change in zip(target.arms, raw, strict=True)
            if change is not None and (arm.same is not None or not same)
        ],
        dtype=pl.Float64,
    )
    change, (low, high) = shares(target.drift, LEVEL) if target.drift else (seen.median(), (None, None))
    test = target.test
    return {
        "target": target.name,
        "by": target.by,
        "same_hardware": target.same_hardware,
        "same_code": target.same_code,
        "source": "same programs" if same else "all arms",
        "arms": len(seen),
        **{"change": change, "low": low, "high": high, "least": seen.min(), "most": seen.max()},
        "aa_pairs": test.pairs,
        "aa_chi2": test.chi2 if test.pairs else None,
        "aa_p": test.p if test.pairs else None,
        "inflation": test.inflation if test.pairs else None,
    }
