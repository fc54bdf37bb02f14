"""The view `efficiency`: tokens a second of every arm, and for each watt and gigabyte where those were measured."""

from __future__ import annotations

from typing import Any

import polars as pl

from llama_bench.stats.judged import Judged
from llama_bench.stats.ratios import counting, name_arms
from llama_bench.sweep import CONTROL

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "control": pl.Boolean,
    "verdict": pl.String,
    "tokens_per_s": pl.Float64,
    "power_w": pl.Float64,
    "tokens_per_joule": pl.Float64,
    "joules_per_token": pl.Float64,
    "memory_bytes": pl.Float64,
    "memory_of": pl.String,
    "tokens_per_s_per_gb": pl.Float64,
}
"""Columns of the view. `power_w` is the GPU's mean over the arm's slots: by its energy counter in those of at least
`ENERGY_S`, else by its own reading in those of at least `POWER_S` that end a block. `tokens_per_joule` is tokens a
second for each watt of it, `joules_per_token` the inverse. `memory_bytes` is what the arm holds on the GPU, or where it
uses none the most that its process had (`memory_of` says "GPU" or "host"); a gigabyte is 10⁹ bytes.
"""

ENERGY_S = 0.3
"""A slot on a GPU is at least so long. The energy counter lags by 40 ms (fitted to 700 slots on an H200), so a seventh
of what it says of one so short is the arm's before it, of which the random order makes an average over all arms."""

POWER_S = 1.0
"""Power is the mean of a second (NVML, Ampere and newer), so in a shorter slot it is also the arm's before it."""


def table(judged: Judged, blocks: pl.LazyFrame, sizes: pl.DataFrame) -> pl.DataFrame:
    """Return the view: every arm that was timed, in the tables' order; `blocks` is the dataset, `sizes` the view."""
    powers = _powers(blocks)
    memory = {(row["cell"], row["recipe"]): row for row in sizes.to_dicts()}
    rows = []
    for cell in judged.known.cells:
        for name, verdict in judged.verdicts[cell["id"]].items():
            mean_s = judged.known.times.get((cell["id"], name), {}).get("mean_s")
            if not mean_s or cell["id"] in judged.known.machines:
                continue
            rate, power = cell["tokens"] / mean_s, powers.get((cell["id"], name))
            held, of = _held(memory.get((cell["id"], name), {}))
            rows.append(
                {
                    **{key: cell[key] for key in ("model", "workload", "target")},
                    "cell": cell["id"],
                    "recipe": name,
                    "control": name == CONTROL,
                    "verdict": verdict.word,
                    "tokens_per_s": rate,
                    "power_w": power,
                    "tokens_per_joule": rate / power if power else None,
                    "joules_per_token": power / rate if power else None,
                    "memory_bytes": held,
                    "memory_of": of,
                    "tokens_per_s_per_gb": rate / (held / 1e9) if held else None,
                }
            )
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _powers(blocks: pl.LazyFrame) -> dict[tuple[str, str], float]:
    """(cell, arm) → the GPU's mean power in watts over the slots that are long enough to be the arm's alone.

    The energy counter's joules of a slot are those of its washout, its timed runs and the milliseconds around them, and
    their power is that of all its seconds. Where it was not looked at, power was seen at the end of each block, so that
    it is the last slot's.
    """
    counted = pl.col("energy_j").is_not_null() & (pl.col("energy_s") >= ENERGY_S)
    last = pl.col("position") == pl.col("position").max().over("cell", "restart", "group", "block")
    long = pl.col("washout_s").fill_null(0.0) + pl.col("timed_s").fill_null(0.0) >= POWER_S
    found = (
        name_arms(counting(blocks))
        .with_columns(read=pl.when(last & long & pl.col("energy_j").is_null()).then(pl.col("power_w")))
        .group_by("cell", "recipe")
        .agg(
            counted=pl.col("energy_j").filter(counted).sum() / pl.col("energy_s").filter(counted).sum(),
            read=pl.col("read").mean(),
        )
        .with_columns(power=pl.coalesce(pl.col("counted").fill_nan(None), "read"))
        .filter(pl.col("power").is_not_null())
        .select("cell", "recipe", "power")
        .collect()
    )
    return {(cell, recipe): power for cell, recipe, power in found.iter_rows()}


def _held(row: dict[str, Any]) -> tuple[float | None, str | None]:
    if row.get("device_bytes"):
        return row["device_bytes"], "GPU"
    return (row["peak_bytes"], "host") if row.get("peak_bytes") else (None, None)
