"""The view `accuracy_by_arm`: one row an arm of a cell: how right its answers are, on text where it was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.bench.accuracy import CACHE
from llama_bench.bench.text import TEXT
from llama_bench.stats.judged import Judged
from llama_bench.sweep import CONTROL

Row = Mapping[str, Any]

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "control": pl.Boolean,
    "class": pl.String,
    "source": pl.String,
    "kl": pl.Float64,
    "top1": pl.Float64,
    "perplexity": pl.Float64,
    "reference_perplexity": pl.Float64,
    "perplexity_increase": pl.Float64,
    "tokens": pl.Int64,
    "window": pl.Int64,
    "stride": pl.Int64,
    "max_rel": pl.Float64,
    "cosine": pl.Float64,
    "nonfinite": pl.Int64,
    "restarts": pl.Int64,
    "within_bound": pl.Boolean,
}
"""Columns of the view. `source` says what `kl` and `top1` are of: "text", or the arm's first output where it was not
asked about text. `perplexity_increase` is a share (0.01 is 1 % above torch in fp32). `max_rel` and `cosine` are of the
first output. Of several restarts the worst counts; `within_bound` is null where nothing was judged.
"""


def table(judged: Judged) -> pl.DataFrame:
    """Return the view: every arm that has answered, in the order of the tables."""
    rows = []
    for cell in judged.known.cells:
        for name in judged.verdicts[cell["id"]]:
            if answers := judged.known.accuracy.get((cell["id"], name)):
                rows.append(_row(cell, name, answers))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def increase(row: Row) -> float | None:
    """Return by which share an arm's perplexity is above torch's, from a row of `accuracy` about text."""
    mine, reference = row.get("perplexity"), row.get("reference_perplexity")
    return None if mine is None or not reference else mine / reference - 1


def _row(cell: Row, name: str, answers: Sequence[Row]) -> dict[str, Any]:
    text = [row for row in answers if row["output"] == TEXT]
    first = [row for row in answers if row["output"] != TEXT and not row["output"].startswith(CACHE)]
    source = next((rows for rows in (text, first) if rows), [])
    about: Row = max(text, key=lambda row: increase(row) or 0.0) if text else {}
    judged = [row["within_bound"] for row in answers if row["within_bound"] is not None]
    return {
        **{key: cell[key] for key in ("model", "workload", "target")},
        "cell": cell["id"],
        "recipe": name,
        "control": name == CONTROL,
        "class": answers[0]["class"],
        "source": source[0]["output"] if source else None,
        "kl": _worst(source, "kl", max),
        "top1": _worst(source, "top1", min),
        "perplexity_increase": increase(about),
        **{key: about.get(key) for key in ("perplexity", "reference_perplexity", "tokens", "window", "stride")},
        "max_rel": _worst(first, "max_rel", max),
        "cosine": _worst(first, "cosine", min),
        "nonfinite": sum(row["nonfinite"] or 0 for row in answers),
        "restarts": len({row["restart"] for row in answers}),
        "within_bound": all(judged) if judged else None,
    }


def _worst(rows: Sequence[Row], column: str, worst: Callable[[Sequence[float]], float]) -> float | None:
    values = [row[column] for row in rows if row[column] is not None]
    return worst(values) if values else None
