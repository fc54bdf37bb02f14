"""How much of its machine's speed each arm reaches: the fraction of the speed of light."""

from __future__ import annotations

import polars as pl

from llama_bench.report import bars
from llama_bench.report.drawing import Chart


def charts(speedups: pl.DataFrame) -> list[Chart]:
    """Return one chart a target: for each arm the time that the ceilings allow, as a share of the time it took."""
    known = speedups.filter(pl.col("of_bound").is_not_null() & ~pl.col("control"))
    return [
        _chart(target, known.filter(pl.col("target") == target))
        for target in known["target"].unique(maintain_order=True)
    ]


def _chart(target: str, arms: pl.DataFrame) -> Chart:
    rows = arms.sort("hidden_size", descending=True, maintain_order=True, nulls_last=True).to_dicts()
    found = [
        bars.Bar(
            f"{row['model']} · {row['workload']}",
            row["recipe"],
            row["of_bound"],
            f"{row['of_bound']:.0%}",
            f"limited by {row['bound_by']}",
            f"{row['recipe']}: {row['of_bound']:.1%} of what {row['bound_by']} allows; {row['model']}",
        )
        for row in rows
    ]
    title = f"Share of the limit reached on target {target}"
    caption = (
        f"{title}: the time that this machine's own ceilings allow for the operations and bytes of a run, as a share "
        "of the time that it took. At 100 % nothing more can be gained without fewer operations or bytes."
    )
    most = max(1.0, *(bar.value * 1.02 for bar in found))
    return bars.chart(f"limit-{target}", title, caption, {"title": "Share of the limit", "format": "~%"}, found, most)
