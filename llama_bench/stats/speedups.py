"""The view `speedups`: one row an arm of a cell, from raw rows to times, ratio, interval, verdict and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from llama_bench.stats.executed import placed
from llama_bench.stats.judged import Judged, judge_run
from llama_bench.stats.ratios import saved
from llama_bench.stats.verdicts import Verdict
from llama_bench.sweep import CONTROL

Row = Mapping[str, Any]

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
    "bound_s": pl.Float64,
    "bound_by": pl.String,
    "of_bound": pl.Float64,
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
    "cpu_nodes": pl.Int64,
    "memcpy_nodes": pl.Int64,
    "kernel_launches": pl.Float64,
    "no_op": pl.Boolean,
    "evidence": pl.String,
    "confirmed": pl.String,
    "confirmed_speedup": pl.Float64,
    "confirmed_low": pl.Float64,
    "confirmed_high": pl.Float64,
    "dropped_blocks": pl.Int64,
    "flagged_blocks": pl.Int64,
}
"""Columns of the view. Seconds; `saved` and `smallest_effect` are shares (0.02 is 2 %); `level` is the interval's.

`confirmed` and what follows it are filled for the recipe that fresh restarts were made for: "confirmed" or "not
confirmed", and its speedup and 90 % interval in those restarts alone. `dropped_blocks` (disturbed, and timed again) and
`flagged_blocks` (disturbed, and kept) are the cell's. `bound_s` is the least time that the machine's own ceilings allow
a run, `bound_by` whether "compute" or "memory" sets it, `of_bound` the share of that speed the arm reaches. `cpu_nodes`
and `memcpy_nodes` are what a GPU's graph leaves to the CPU and copies for it, `kernel_launches` its kernels a run.
"""


def speedups(run: Row, frames: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """Return the view: every arm of every cell in `run` (run.json), with or without numbers.

    `frames` are the datasets of :func:`llama_bench.results.scan`. The baseline's own row has speedup 1 by definition
    and no interval; what cannot be said honestly is null, and `verdict` and `evidence` say why.
    """
    return table(judge_run(run, frames))


def table(judged: Judged) -> pl.DataFrame:
    """Return the view of a run that is judged already."""
    rows = [
        _row(cell, name, verdict, judged)
        for cell in judged.known.cells
        for name, verdict in judged.verdicts[cell["id"]].items()
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _row(cell: Row, name: str, verdict: Verdict, judged: Judged) -> dict[str, Any]:
    known, key = judged.known, (cell["id"], name)
    times = known.times.get(key, {})
    shown = {} if cell["id"] in known.machines else times
    low, high = verdict.interval or (None, None)
    mean_s = shown.get("mean_s")
    blocks = known.blocks.get(cell["id"], {})
    confirmed = _confirmed(cell["id"], name, judged)
    bound = known.bounds.get(key) if shown else None
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
        **{column: shown.get(column) for column in _TIMES},
        "tokens_per_s": cell["tokens"] / mean_s if mean_s else None,
        "bound_s": bound.seconds if bound else None,
        "bound_by": bound.by if bound else None,
        "of_bound": bound.share if bound else None,
        "speedup": verdict.speedup,
        "low": low,
        "high": high,
        "level": verdict.level,
        "saved": None if verdict.speedup is None else saved(verdict.speedup),
        "saved_low": None if low is None else saved(low),
        "saved_high": None if high is None else saved(high),
        "verdict": verdict.word,
        "smallest_effect": verdict.smallest_effect,
        "nodes_changed": known.variants.get(key, {}).get("nodes_changed"),
        **placed(known.variants.get(key, {}), known.sweep.targets[cell["target"]].needs_gpu),
        "kernel_launches": known.variants.get(key, {}).get("kernel_launches"),
        "no_op": verdict.word == "no-op",
        "evidence": "; ".join(filter(None, (verdict.evidence, confirmed.pop("sentence")))),
        **confirmed,
        "dropped_blocks": blocks.get("dropped_blocks", 0),
        "flagged_blocks": blocks.get("flagged_blocks", 0),
    }


_TIMES = ("mean_s", "median_s", "p90_s", "time_s", "time_low_s", "time_high_s")


def _confirmed(cell: str, name: str, judged: Judged) -> dict[str, Any]:
    """What fresh restarts say about this arm: columns, and the sentence for its evidence."""
    found = judged.headlines.get(cell)
    if found is None or found.recipe != name:
        return dict.fromkeys(("sentence", "confirmed", "confirmed_speedup", "confirmed_low", "confirmed_high"))
    return {
        "sentence": found.sentence,
        "confirmed": found.word,
        "confirmed_speedup": found.speedup,
        "confirmed_low": found.low,
        "confirmed_high": found.high,
    }
