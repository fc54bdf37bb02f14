"""Where the time of a run went, as a chart: builds, examinations, and the phases of the restarts."""

from __future__ import annotations

import polars as pl

from llama_bench.report import bars
from llama_bench.report.drawing import Chart
from llama_bench.report.tables import KINDS, PHASES


def charts(pieces: pl.DataFrame) -> list[Chart]:
    """Return the chart, or nothing for a run without pieces."""
    rows = [*_kinds(pieces), *_phases(pieces)]
    total = sum(seconds for _, _, seconds in rows)
    if not total:
        return []
    found = [
        bars.Bar("", name, seconds, f"{seconds:,.1f} s ({seconds / total:.0%})", kind, f"{name}: {seconds:,.1f} s")
        for name, kind, seconds in rows
    ]
    title = "Where the time went"
    caption = (
        "Seconds of work: what was built or examined, and what the restarts spent apart from and in their timed runs."
    )
    most = max(seconds for _, _, seconds in rows) * 1.25
    return [bars.chart("seconds", title, caption, {"title": "Seconds"}, found, most)]


def _kinds(pieces: pl.DataFrame) -> list[tuple[str, str, float]]:
    wanted = sorted(set(pieces["kind"].drop_nulls()) - {"restart"})
    return [(KINDS.get(kind, kind), "besides measuring", _sum(pieces.filter(kind=kind), "wall_s")) for kind in wanted]


def _phases(pieces: pl.DataFrame) -> list[tuple[str, str, float]]:
    restarts = pieces.filter(kind="restart")
    return [(name, "restarts", _sum(restarts, column)) for column, name in PHASES]


def _sum(pieces: pl.DataFrame, column: str) -> float:
    return float(pieces[column].fill_nan(None).sum() or 0.0)
