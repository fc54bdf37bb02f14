"""The view `speedups`: one row an arm of a cell, from raw rows to times, ratio, interval, verdict and evidence."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats import evidence
from llama_bench.stats.ratios import arm_times, name_arms, restart_ratios, saved
from llama_bench.stats.verdicts import Comparison, Verdict, judge, margin_of
from llama_bench.sweep import CONTROL, Sweep

Row = Mapping[str, Any]
Key = tuple[str, str]

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "hidden_size": pl.Int64,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "control": pl.Boolean,
    "baseline": pl.Boolean,
    "restarts": pl.Int64,
    "runs": pl.Int64,
    "mean_s": pl.Float64,
    "median_s": pl.Float64,
    "p90_s": pl.Float64,
    "time_s": pl.Float64,
    "time_low_s": pl.Float64,
    "time_high_s": pl.Float64,
    "tokens_per_s": pl.Float64,
    "speedup": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "level": pl.Float64,
    "saved": pl.Float64,
    "saved_low": pl.Float64,
    "saved_high": pl.Float64,
    "verdict": pl.String,
    "smallest_effect": pl.Float64,
    "nodes_changed": pl.Int64,
    "no_op": pl.Boolean,
    "evidence": pl.String,
}
"""Columns of the view. Seconds; `saved` and `smallest_effect` are shares (0.02 is 2 %); `level` is the interval's."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a run's datasets say, by (cell, arm)."""

    times: Mapping[Key, Row]
    ratios: Mapping[Key, tuple[float, ...]]
    variants: Mapping[Key, Row]
    accuracy: Mapping[Key, list[Row]]
    failures: Sequence[Row]
    unserved: Mapping[str, str]


def speedups(run: Row, frames: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """Return the view: every arm of every cell in `run` (run.json), with or without numbers.

    `frames` are the datasets of :func:`llama_bench.results.scan`. The baseline's own row has speedup 1 by definition
    and no interval; what cannot be said honestly is null, and `verdict` and `evidence` say why.
    """
    sweep = Sweep.model_validate(run["sweep"])
    order = list(sweep.targets)
    cells = sorted([*run["cells"], *_cells_of_unserved(run, sweep)], key=lambda cell: order.index(cell["target"]))
    baselines = {cell["id"]: cell["baseline"] for cell in cells}
    known = Known(
        times=_by_arm(arm_times(frames["timings"])),
        ratios=_ratios(restart_ratios(frames["blocks"], baselines)),
        variants=_by_arm(name_arms(frames["variants"]).collect()),
        accuracy=_grouped(name_arms(frames["accuracy"]).collect()),
        failures=frames["failures"].sort("at", nulls_last=False).collect().to_dicts(),
        unserved=evidence.unserved_targets(run),
    )
    rows = [row for cell in cells for row in _cell_rows(cell, sweep, known)]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _cell_rows(cell: Row, sweep: Sweep, known: Known) -> Iterator[dict[str, Any]]:
    """One row an arm: the baseline first, the control last, the others in the sweep's order."""
    base = cell["baseline"]
    others = [name for name in cell["arms"] if name not in (base, CONTROL)]
    margin = margin_of(sweep.targets[cell["target"]].provider)
    compared = {name: _comparison(cell, name, known) for name in [*others, CONTROL]}
    verdicts = {base: _baseline_verdict(cell, known)} | judge(compared, pilot=sweep.measure.restarts, margin=margin)
    return (_row(cell, name, verdict, known) for name, verdict in verdicts.items())


def _comparison(cell: Row, name: str, known: Known) -> Comparison:
    key = (cell["id"], name)
    base = known.variants.get((cell["id"], cell["baseline"]))
    control = name == CONTROL
    return Comparison(
        y=known.ratios.get(key, ()),
        control=control,
        no_op=None if control else evidence.no_op(known.variants.get(key), base, cell["baseline"]),
        wrong=evidence.wrong(known.accuracy.get(key, [])),
        problem=_problem(cell, name, known),
    )


def _baseline_verdict(cell: Row, known: Known) -> Verdict:
    """The baseline is compared with nothing, but it too can fail or answer wrongly."""
    name = cell["baseline"]
    problem = _problem(cell, name, known)
    if problem is not None:
        return Verdict(*problem)
    wrong = evidence.wrong(known.accuracy.get((cell["id"], name), []))
    return Verdict("wrong" if wrong else "baseline", wrong or "", 1.0)


def _problem(cell: Row, name: str, known: Known) -> tuple[str, str] | None:
    """Why the arm has no number: no timings at all, or timings that are no times."""
    times = known.times.get((cell["id"], name))
    if times is None:
        variant = known.variants.get((cell["id"], name))
        return evidence.without_number(
            cell, name, variant["variant"] if variant else None, known.failures, known.unserved.get(cell["target"])
        )
    if times["unusable"]:
        return "failed", f"{times['unusable']} of {times['runs']} timed runs have no positive, finite seconds"
    return None


def _row(cell: Row, name: str, verdict: Verdict, known: Known) -> dict[str, Any]:
    key = (cell["id"], name)
    times = known.times.get(key, {})
    variant = known.variants.get(key, {})
    low, high = verdict.interval or (None, None)
    mean_s = times.get("mean_s")
    return {
        "cell": cell["id"],
        "model": cell["model"],
        "hidden_size": cell["hidden_size"],
        "workload": cell["workload"],
        "target": cell["target"],
        "recipe": name,
        "control": name == CONTROL,
        "baseline": name == cell["baseline"],
        # a restart counts for an arm when it gave a ratio; the baseline has none
        "restarts": times.get("restarts", 0) if name == cell["baseline"] else len(known.ratios.get(key, ())),
        "runs": times.get("runs", 0),
        **{column: times.get(column) for column in _TIMES},
        "tokens_per_s": cell["tokens"] / mean_s if mean_s else None,
        "speedup": verdict.speedup,
        "low": low,
        "high": high,
        "level": verdict.level,
        "saved": None if verdict.speedup is None else saved(verdict.speedup),
        "saved_low": None if low is None else saved(low),
        "saved_high": None if high is None else saved(high),
        "verdict": verdict.word,
        "smallest_effect": verdict.smallest_effect,
        "nodes_changed": variant.get("nodes_changed"),
        "no_op": verdict.word == "no-op",
        "evidence": verdict.evidence,
    }


_TIMES = ("mean_s", "median_s", "p90_s", "time_s", "time_low_s", "time_high_s")


def _cells_of_unserved(run: Row, sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Cells of targets that no node serves, where run.json has none: their arms are rows too."""
    present = {cell["target"] for cell in run["cells"]}
    for target in evidence.unserved_targets(run):
        if target in present or target not in sweep.targets:
            continue
        for model in sweep.models:
            for name, workload in sweep.workloads.items():
                yield {
                    "id": f"{model.label}/{name}/{target}",
                    "model": model.label,
                    "hidden_size": model.hidden_size,
                    "workload": name,
                    "target": target,
                    "tokens": workload.tokens,
                    "arms": list(sweep.recipes),
                    "baseline": sweep.measure.baseline,
                }


def _by_arm(table: pl.DataFrame) -> dict[Key, Row]:
    return {(row["cell"], row["recipe"]): row for row in table.to_dicts()}


def _grouped(table: pl.DataFrame) -> dict[Key, list[Row]]:
    groups: defaultdict[Key, list[Row]] = defaultdict(list)
    for row in table.to_dicts():
        groups[row["cell"], row["recipe"]].append(row)
    return groups


def _ratios(table: pl.DataFrame) -> dict[Key, tuple[float, ...]]:
    grouped = table.group_by("cell", "recipe", maintain_order=True).agg("y")
    return {(cell, recipe): tuple(values) for cell, recipe, values in grouped.iter_rows()}
