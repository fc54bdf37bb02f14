"""The views of a run: datasets as polars LazyFrames, the views made of them, and SQL over all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from llama_bench import results, schemas
from llama_bench.errors import InputError, nearest
from llama_bench.stats import accuracy, cells, efficiency, generation, kernels, pareto, sizes, speedups
from llama_bench.stats.judged import judge_run


@dataclass(frozen=True)
class Frames:
    """The results of one run. Every field but `run` is a view for :meth:`sql`; statistics are made when collected."""

    speedups: pl.LazyFrame
    cells: pl.LazyFrame
    accuracy_by_arm: pl.LazyFrame
    sizes: pl.LazyFrame
    pareto: pl.LazyFrame
    generation: pl.LazyFrame
    efficiency: pl.LazyFrame
    gpu_time: pl.LazyFrame
    timings: pl.LazyFrame
    blocks: pl.LazyFrame
    variants: pl.LazyFrame
    kernels: pl.LazyFrame
    accuracy: pl.LazyFrame
    generations: pl.LazyFrame
    machines: pl.LazyFrame
    failures: pl.LazyFrame
    pieces: pl.LazyFrame
    ceilings: pl.LazyFrame
    run: Mapping[str, Any]

    def sql(self, query: str) -> pl.DataFrame:
        """Return what `query` selects from the views (polars' SQL).

        Raises InputError for bad SQL, an unknown view or an unknown column, naming the nearest valid word.
        """
        views = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "run"}
        try:
            return pl.SQLContext(frames=views).execute(query, eager=True)
        except pl.exceptions.PolarsError as problem:
            raise InputError(_explain(str(problem), views)) from problem


def load(path: str | Path) -> Frames:
    """Return the results at `path`: a run's folder or URI, or a sweep or store whose newest run is meant.

    Raises InputError for what is no result, for another schema version and for a truncated part.
    """
    store, run = results.locate(path)
    # by the run's own name: a newer one may appear meanwhile
    return make(results.read_run(store, run), results.scan(f"{store.uri}/{run}"))


def make(run: Mapping[str, Any], datasets: Mapping[str, pl.LazyFrame]) -> Frames:
    """Return the views of `run` (run.json) over its `datasets`.

    All but the datasets are computed when the first of them is collected, from what is read then.
    """
    judged = cache(lambda: judge_run(run, datasets))
    by_arm = cache(lambda: accuracy.table(judged()))
    sized = cache(lambda: sizes.table(judged(), datasets["machines"]))
    return Frames(
        speedups=pl.defer(lambda: speedups.table(judged()), schema=speedups.SCHEMA),
        cells=pl.defer(lambda: cells.table(judged()), schema=cells.SCHEMA),
        accuracy_by_arm=pl.defer(by_arm, schema=accuracy.SCHEMA),
        sizes=pl.defer(sized, schema=sizes.SCHEMA),
        pareto=pl.defer(lambda: pareto.table(judged(), by_arm(), sized()), schema=pareto.SCHEMA),
        generation=pl.defer(lambda: generation.table(judged(), datasets["timings"]), schema=generation.SCHEMA),
        efficiency=pl.defer(lambda: efficiency.table(judged(), datasets["blocks"], sized()), schema=efficiency.SCHEMA),
        gpu_time=pl.defer(lambda: kernels.table(judged(), datasets), schema=kernels.SCHEMA),
        run=run,
        **{name: datasets[name] for name in schemas.SCHEMAS},
    )


def _explain(problem: str, views: Mapping[str, pl.LazyFrame]) -> str:
    """Return one line for a SQL error, with the nearest view or column where a name is unknown."""
    first = problem.splitlines()[0] if problem else "bad SQL"
    if found := re.search(r"relation '([^']*)' was not found", problem):
        return f"no view {found[1]!r}{nearest(found[1], views)}"
    if found := re.search(r"unable to find column \"([^\"]*)\"(?:; valid columns: \[([^\]]*)\])?", problem):
        valid = re.findall(r'"([^"]+)"', found[2] or "")
        return f"no column {found[1]!r}{nearest(found[1], valid)}"
    return f"SQL: {first}"
