"""Two runs, arm beside arm: what each run knows of it, and what is to be said of it before any test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats import alike
from llama_bench.stats.changes import Restarts, summary
from llama_bench.stats.judged import Judged, judge_run
from llama_bench.stats.ratios import Estimate, counting, name_arms

Row = Mapping[str, Any]
Said = tuple[str, str]
"""A word and its evidence."""

CellKey = tuple[str, str, str]
"""Model label, workload and target: what a cell is called in both runs, whatever its id."""

LACKS = ("failed", "skipped", "unserved", "void", "wrong")
"""Verdicts inside run B that are worth repeating where A lacks the arm."""


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name (A or B), run.json, and what is known of it.

    `logs` has by (cell id, arm) the mean ln(seconds) of each restart, `ratios` y of each restart, `hardware` the
    machines of each target (:func:`llama_bench.stats.alike.hardware`).
    """

    name: str
    run: Row
    judged: Judged
    logs: Mapping[tuple[str, str], Restarts]
    ratios: Mapping[tuple[str, str], Restarts]
    hardware: Mapping[str, Sequence[Row]]

    @property
    def pilot(self) -> int:
        """How many pilot restarts every arm has."""
        return self.judged.known.sweep.measure.restarts

    def problem(self, cell: Row, recipe: str) -> Said | None:
        """Return verdict and reason of an arm whose times cannot be compared, None where they can."""
        found = self.judged.known.problem(cell, recipe)
        if found is None:
            mean = summary(self.logs.get((cell["id"], recipe), {}), self.pilot)
            found = None if isinstance(mean, Estimate) else mean
        return None if found is None else (found[0], f"in {self.name} {found[0]}: {found[1]}")


@dataclass(frozen=True)
class Pair:
    """An arm in both runs: its cell in each (None where a run lacks it), and what is known before any test.

    `word` and `evidence` stand whatever the times are, empty where a test decides. `times` are empty where they cannot
    be compared. `same` is the sentence that proves it one program in both runs.
    """

    key: CellKey
    recipe: str
    cells: tuple[Row | None, Row | None]
    word: str = ""
    evidence: str = ""
    same: str | None = None
    times: tuple[Restarts, Restarts] = ({}, {})

    @property
    def numbered(self) -> bool:
        """Whether the times of both runs can be compared."""
        return bool(self.times[0] and self.times[1])

    @property
    def baselines(self) -> list[str]:
        """The baseline of its cell in each run that has it."""
        return [cell["baseline"] for cell in self.cells if cell is not None]


def side(name: str, run: Row, frames: Mapping[str, pl.LazyFrame]) -> Side:
    """Return what a comparison needs of `run` (run.json) and its datasets (:func:`llama_bench.results.scan`)."""
    judged = judge_run(run, frames)
    return Side(name, run, judged, _logs(frames["blocks"]), _ratios(judged), alike.hardware(frames["machines"]))


def _logs(blocks: pl.LazyFrame) -> dict[tuple[str, str], dict[int, float]]:
    """Return the mean of ln(seconds) over the slots of each arm and restart."""
    means = (
        name_arms(counting(blocks))
        .group_by("cell", "recipe", "restart", maintain_order=True)
        .agg(pl.col("log_seconds").mean())
        .sort("cell", "recipe", "restart")
        .collect()
    )
    found: dict[tuple[str, str], dict[int, float]] = {}
    for cell, recipe, restart, value in means.iter_rows():
        found.setdefault((cell, recipe), {})[restart] = value
    return found


def _ratios(judged: Judged) -> dict[tuple[str, str], dict[int, float]]:
    """Return y of each arm and restart; of an arm in several groups of a restart their mean."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for cell, groups in judged.known.together.items():
        for arms in groups.values():
            for arm, values in arms.items():
                for restart, y in values.items():
                    found.setdefault((cell, arm), {}).setdefault(restart, []).append(y)
    return {key: {r: sum(y) / len(y) for r, y in sorted(of_arm.items())} for key, of_arm in found.items()}


def cells(one: Side) -> dict[CellKey, Row]:
    """Return the cells of a run by what they are called in any run."""
    return {(cell["model"], cell["workload"], cell["target"]): cell for cell in one.judged.known.cells}


def pairs(a: Side, b: Side) -> Iterator[Pair]:
    """Yield every arm of either run, in the order of B's tables; what only A has comes after what B has of its cell."""
    in_a, in_b = cells(a), cells(b)
    for key in [*in_b, *(key for key in in_a if key not in in_b)]:
        of_a, of_b = in_a.get(key), in_b.get(key)
        arms_a = a.judged.verdicts[of_a["id"]] if of_a else {}
        arms_b = b.judged.verdicts[of_b["id"]] if of_b else {}
        for recipe in [*arms_b, *(recipe for recipe in arms_a if recipe not in arms_b)]:
            yield _pair(key, recipe, a, of_a if recipe in arms_a else None, b, of_b if recipe in arms_b else None)


def _pair(key: CellKey, recipe: str, a: Side, of_a: Row | None, b: Side, of_b: Row | None) -> Pair:
    if of_a is None or of_b is None:
        verdict = None if of_b is None else b.judged.verdicts[of_b["id"]][recipe]
        evidence = f"in B {verdict.word}: {verdict.evidence}" if verdict and verdict.word in LACKS else ""
        return Pair(key, recipe, (of_a, of_b), "gone" if verdict is None else "new", evidence)
    said = _no_comparison(key, recipe, a, of_a, b, of_b)
    if said is not None:
        return Pair(key, recipe, (of_a, of_b), *said)
    ids = (of_a["id"], recipe), (of_b["id"], recipe)
    same = None
    if alike.same_hardware(a.hardware.get(key[2], ()), b.hardware.get(key[2], ())):
        variants = a.judged.known.variants.get(ids[0]), b.judged.known.variants.get(ids[1])
        same = alike.same_program(*variants, a.run, b.run)
    word, evidence = _wrong(a, of_a, b, of_b, recipe)
    return Pair(key, recipe, (of_a, of_b), word, evidence, same, (a.logs[ids[0]], b.logs[ids[1]]))


def _wrong(a: Side, of_a: Row, b: Side, of_b: Row, recipe: str) -> Said:
    """An arm that answers wrongly in either run is not ranked; that it became so asks for the same judge in both."""
    in_a, in_b = a.judged.known.wrong(of_a, recipe), b.judged.known.wrong(of_b, recipe)
    if in_a is None and in_b is None:
        return "", ""
    judges = [(one.judged.known.sweep.measure.accuracy, one.judged.known.sweep.measure.text) for one in (a, b)]
    if judges[0] != judges[1]:
        said = [f"in {run} {why}" for run, why in (("A", in_a), ("B", in_b)) if why is not None]
        return "wrong", f"{'; '.join(said)} (bounds of accuracy or text are not those of the other run)"
    if in_b is not None:
        return ("wrong" if in_a is not None else "now wrong"), in_b
    return "now right", f"in A {in_a}"


def _no_comparison(key: CellKey, recipe: str, a: Side, of_a: Row, b: Side, of_b: Row) -> Said | None:
    """Why an arm that is in both runs has no times to compare, None where it has."""
    if question := alike.other_question(a.judged.known.sweep, b.judged.known.sweep, *key[:2]):
        return "void", question
    in_a, in_b = a.problem(of_a, recipe), b.problem(of_b, recipe)
    if in_a is not None and in_b is not None:
        return in_b[0], f"{in_a[1]}; {in_b[1]}"
    for said in (in_a, in_b):
        if said is not None and said[0] in ("void", "inconclusive"):
            return "void", said[1]
    if in_a is not None:
        return "new", in_a[1]
    if in_b is not None:
        return ("now failed" if in_b[0] == "failed" else "gone"), in_b[1]
    for one in (a, b):
        test = one.judged.tests[key[2]]
        if test.void:
            return "void", f"in {one.name} {test.words(key[2])}"
    return None
