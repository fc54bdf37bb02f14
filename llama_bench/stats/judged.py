"""A run, judged: the A/A test of each target, the verdicts of each cell, and the headlines that were confirmed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats.controls import AATest, aa_test
from llama_bench.stats.headline import Headline, headlines
from llama_bench.stats.known import Known, gather
from llama_bench.stats.verdicts import Comparison, Verdict, judge, margin_of
from llama_bench.sweep import CONTROL

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the views show: by cell id the arms with their comparisons and verdicts, by target its A/A test.

    The order of a cell's arms is that of the tables: the baseline, the recipes as the sweep lists them, the control.
    """

    known: Known
    comparisons: Mapping[str, Mapping[str, Comparison]]
    verdicts: Mapping[str, Mapping[str, Verdict]]
    tests: Mapping[str, AATest]
    headlines: Mapping[str, Headline]


def judge_run(run: Row, frames: Mapping[str, pl.LazyFrame]) -> Judged:
    """Judge all cells of `run` (run.json) by its datasets (:func:`llama_bench.results.scan`)."""
    known = gather(run, frames)
    comparisons = {cell["id"]: _comparisons(cell, known) for cell in known.cells}
    tests = {target: _aa_test(target, known, comparisons) for target in known.sweep.targets}
    verdicts = {}
    for cell in known.cells:
        target, test = cell["target"], tests[cell["target"]]
        found = judge(
            comparisons[cell["id"]],
            pilot=known.sweep.measure.restarts,
            margin=margin_of(known.sweep.targets[target].provider),
            inflation=test.inflation,
            void=test.words(target) if test.void else None,
        )
        verdicts[cell["id"]] = {cell["baseline"]: _baseline_verdict(cell, known)} | found
    return Judged(known, comparisons, verdicts, tests, _headlines(known, comparisons, verdicts, tests))


def _comparisons(cell: Row, known: Known) -> dict[str, Comparison]:
    others = [name for name in cell["arms"] if name not in (cell["baseline"], CONTROL)]
    return {name: known.comparison(cell, name) for name in [*others, CONTROL]}


def _aa_test(target: str, known: Known, comparisons: Mapping[str, Mapping[str, Comparison]]) -> AATest:
    """The test over the target's controls and no-ops that were timed properly."""
    groups = []
    for cell in known.cells:
        if cell["target"] != target:
            continue
        same = [
            name
            for name, arm in comparisons[cell["id"]].items()
            if arm.problem is None and (arm.control or arm.no_op is not None)
        ]
        for by_arm in known.together.get(cell["id"], {}).values():
            groups.append({name: by_arm[name] for name in same if name in by_arm})
    return aa_test(groups)


def _baseline_verdict(cell: Row, known: Known) -> Verdict:
    """The baseline is compared with nothing, but it too can fail or answer wrongly."""
    problem = known.problem(cell, cell["baseline"])
    if problem is not None:
        return Verdict(*problem)
    wrong = known.wrong(cell, cell["baseline"])
    return Verdict("wrong" if wrong else "baseline", wrong or "", 1.0)


def _headlines(
    known: Known,
    comparisons: Mapping[str, Mapping[str, Comparison]],
    verdicts: Mapping[str, Mapping[str, Verdict]],
    tests: Mapping[str, AATest],
) -> dict[str, Headline]:
    """Cell → its headline, target by target; a target whose A/A pairs differ has none."""
    found: dict[str, Headline] = {}
    for target, test in tests.items():
        fresh, standing = {}, set()
        for cell in known.cells:
            chosen = None if test.void or cell["target"] != target else _chosen(cell["id"], known, comparisons)
            if chosen is not None:
                fresh[cell["id"]] = (chosen, known.fresh[cell["id"], chosen])
                if verdicts[cell["id"]][chosen].word == "faster":
                    standing.add(cell["id"])
        found |= headlines(fresh, inflation=test.inflation, standing=standing)
    return found


def _chosen(cell: str, known: Known, comparisons: Mapping[str, Mapping[str, Comparison]]) -> str | None:
    """The recipe that fresh restarts were made for; of several (chosen anew after a retry) the fastest.

    One with a problem, or found wrong since, is no headline.
    """
    able = [
        name
        for name, arm in comparisons[cell].items()
        if (cell, name) in known.fresh and not arm.control and arm.no_op is None
        if arm.wrong is None and arm.problem is None and arm.y
    ]
    return min(able, key=lambda name: sum(comparisons[cell][name].y) / len(comparisons[cell][name].y), default=None)
