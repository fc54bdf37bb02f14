"""The view `generation`: one row an arm of a cell that generates text: the first token, the later ones, their rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from llama_bench.stats.judged import Judged
from llama_bench.stats.ratios import DIGITS, IN_ORDER, LEVEL, counting, name_arms, t_quantile
from llama_bench.sweep import CONTROL

Row = Mapping[str, Any]

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "control": pl.Boolean,
    "batch": pl.Int64,
    "prompt": pl.Int64,
    "new_tokens": pl.Int64,
    "restarts": pl.Int64,
    "runs": pl.Int64,
    "first_s": pl.Float64,
    "first_low_s": pl.Float64,
    "first_high_s": pl.Float64,
    "token_s": pl.Float64,
    "token_low_s": pl.Float64,
    "token_high_s": pl.Float64,
    "token_p50_s": pl.Float64,
    "token_p90_s": pl.Float64,
    "token_p99_s": pl.Float64,
    "tokens_per_s": pl.Float64,
    "decode_tokens_per_s": pl.Float64,
}
"""Columns of the view. `first_s` is the time to the first token, prompt included; `token_s` that of each later token of
a sequence. Both are geometric means with 95 % t intervals over restarts (null for one restart); the percentiles are
over all later tokens of all runs. `tokens_per_s` counts all new tokens of all sequences over the whole run, as the view
`speedups` does; `decode_tokens_per_s` those after the first ones.
"""

PERCENTILES = {"token_p50_s": 0.5, "token_p90_s": 0.9, "token_p99_s": 0.99}

ARM = ["cell", "recipe"]


def table(judged: Judged, timings: pl.LazyFrame) -> pl.DataFrame:
    """Return the view: every arm that generated, in the order of the tables; `timings` is the dataset."""
    runs = name_arms(counting(timings)).filter(pl.col("token_s").list.len() > 0)
    later = pl.col("token_s").list.slice(1)
    restarts = (
        runs.group_by(*ARM, "restart", maintain_order=True)
        .agg(
            runs=pl.len(),
            first=pl.col("token_s").list.first().log().mean(),
            later=later.explode().log().mean(),
        )
        .collect(optimizations=IN_ORDER)
    )
    if restarts.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    pooled = (
        runs.select(*ARM, later.alias("later"))
        .explode("later")
        .group_by(*ARM)
        .agg(pl.col("later").quantile(share, "linear").alias(name) for name, share in PERCENTILES.items())
        .collect()
    )
    by_arm: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in restarts.to_dicts():
        by_arm[row["cell"], row["recipe"]].append(row)
    percentiles = {(row["cell"], row["recipe"]): row for row in pooled.to_dicts()}
    rows = [
        _row(cell, name, by_arm[cell["id"], name], percentiles.get((cell["id"], name), {}), judged)
        for cell in judged.known.cells
        for name in judged.verdicts[cell["id"]]
        if (cell["id"], name) in by_arm and _usable(cell["id"], name, judged)
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def geometric(logs: Sequence[float | None]) -> tuple[float | None, float | None, float | None]:
    """Return exp of the mean of `logs`, one a restart, and the ends of its 95 % t interval (Student 1908).

    None for what is not there: all of it where a value is missing, the interval of one restart.
    """
    values = np.array([math.nan if value is None else value for value in logs])
    if not len(values) or not np.isfinite(values).all():
        return None, None, None
    mean = float(values.mean())
    if len(values) == 1:
        return _rounded(math.exp(mean)), None, None
    half = t_quantile(0.5 + LEVEL / 2, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return _rounded(math.exp(mean)), _rounded(math.exp(mean - half)), _rounded(math.exp(mean + half))


def _row(cell: Row, name: str, restarts: Sequence[Row], percentiles: Row, judged: Judged) -> dict[str, Any]:
    workload = judged.known.sweep.workloads[cell["workload"]]
    first, first_low, first_high = geometric([row["first"] for row in restarts])
    token, token_low, token_high = geometric([row["later"] for row in restarts])
    mean_s = judged.known.times[cell["id"], name]["mean_s"]
    return {
        **{key: cell[key] for key in ("model", "workload", "target")},
        "cell": cell["id"],
        "recipe": name,
        "control": name == CONTROL,
        **{key: getattr(workload, key) for key in ("batch", "prompt", "new_tokens")},
        "restarts": len(restarts),
        "runs": sum(row["runs"] for row in restarts),
        **{"first_s": first, "first_low_s": first_low, "first_high_s": first_high},
        **{"token_s": token, "token_low_s": token_low, "token_high_s": token_high},
        **{name: value and _rounded(value) for name in PERCENTILES for value in (percentiles.get(name),)},
        "tokens_per_s": cell["tokens"] / mean_s if mean_s else None,
        "decode_tokens_per_s": workload.batch / token if token else None,
    }


def _usable(cell: str, name: str, judged: Judged) -> bool:
    """Whether the arm's times may be shown: none of its runs is unusable, and its cell ran on one machine."""
    times = judged.known.times.get((cell, name))
    return times is not None and not times["unusable"] and cell not in judged.known.machines


def _rounded(value: float) -> float:
    """As many digits as do not depend on the order of a sum."""
    return float(f"{value:.{DIGITS}g}")
