"""The view `sizes`: one row an arm of a cell: what it takes on disk, and in the memory of host and GPU."""

from __future__ import annotations

from typing import Any

import polars as pl

from llama_bench.stats.judged import Judged
from llama_bench.stats.ratios import name_arms
from llama_bench.sweep import CONTROL

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "control": pl.Boolean,
    "graph_bytes": pl.Int64,
    "weight_bytes": pl.Int64,
    "disk_bytes": pl.Int64,
    "peak_bytes": pl.Float64,
    "device_bytes": pl.Float64,
    "restarts": pl.Int64,
}
"""Columns of the view. `disk_bytes` are the graph's and its weights'. `peak_bytes` is the most memory that the arm's
process ever had on the host, `device_bytes` what it holds on the GPU: medians over `restarts`, null where no restart
says.
"""


def table(judged: Judged, machines: pl.LazyFrame) -> pl.DataFrame:
    """Return the view: every arm that was examined, in the order of the tables; `machines` is the dataset."""
    measured = (
        name_arms(machines)
        .group_by("cell", "recipe")
        .agg(pl.col("peak_bytes", "device_bytes").median(), restarts=pl.col("restart").n_unique().cast(pl.Int64))
        .collect()
    )
    memory = {(row["cell"], row["recipe"]): row for row in measured.to_dicts()}
    rows = []
    for cell in judged.known.cells:
        for name in judged.verdicts[cell["id"]]:
            variant = judged.known.variants.get((cell["id"], name))
            if variant is None:
                continue
            stored = variant["graph_bytes"], variant["weight_bytes"]
            rows.append(
                {
                    **{key: cell[key] for key in ("model", "workload", "target")},
                    "cell": cell["id"],
                    "recipe": name,
                    "control": name == CONTROL,
                    "graph_bytes": stored[0],
                    "weight_bytes": stored[1],
                    "disk_bytes": None if None in stored else sum(stored),
                    **{"peak_bytes": None, "device_bytes": None, "restarts": 0},
                    **memory.get((cell["id"], name), {}),
                }
            )
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")
