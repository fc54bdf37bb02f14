"""Tables: the answer in words, the study's Tables 1 and 2 extended, and where the time went; then Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

Row = Mapping[str, Any]

DASH = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A table for any format: cells of plain text and sentences below them; `text`: no column holds numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text: bool = False


def answer(speedups: pl.DataFrame, run: Row) -> list[str]:
    """Return what was found in words, one sentence a target: the fastest recipe, or that none is faster."""
    return [_answer_for(target, speedups.filter(pl.col("target") == target), run) for target in _targets(speedups)]


def results(speedups: pl.DataFrame, run: Row) -> list[Table]:
    """Return one table a target × workload × model, the largest model first.

    None for what no node served, or what this run left out altogether (`--only`, or stopped before it).
    """
    left_out = (pl.col("verdict") == "skipped").all().over("cell")
    served = speedups.filter(pl.col("verdict") != "unserved", ~left_out)
    tables = []
    for target in _targets(served):
        part = served.filter(pl.col("target") == target)
        for workload in part["workload"].unique(maintain_order=True):
            models = part.filter(pl.col("workload") == workload).sort(
                "hidden_size", descending=True, maintain_order=True
            )
            for cell in models["cell"].unique(maintain_order=True):
                tables.append(_result(models.filter(pl.col("cell") == cell), run))
    return tables


def failures(failures: pl.DataFrame) -> Table | None:
    """Return the run's failures, equal ones counted once; None when nothing failed."""
    if failures.is_empty():
        return None
    keys = ["stage", "kind", "model", "workload", "target", "recipe", "message"]
    counted = failures.group_by(keys, maintain_order=True).len()
    rows = tuple(
        (
            row["stage"] or DASH,
            row["kind"] or DASH,
            " · ".join(row[key] for key in ("model", "workload", "target", "recipe") if row[key]) or DASH,
            str(row["len"]),
            " ".join((row["message"] or DASH).split()),
        )
        for row in counted.to_dicts()
    )
    return Table("", ("Stage", "Kind", "Where", "Times", "Message"), rows, text=True)


SHOWN = 6
"""Cells that a sentence of the answer lists; the tables have them all."""

KINDS = {"build": "builds", "examine": "examinations of what is executed"}
"""Kind of a piece that is no measuring → its name in the breakdown."""

PHASES = (
    ("start_s", "starting processes"),
    ("load_s", "loading models"),
    ("warmup_s", "warm-up"),
    ("washout_s", "washout"),
    ("timed_s", "timed runs"),
    ("other_s", "other"),
)
"""Columns of a restart's piece, and what they are called."""


def breakdown(pieces: pl.DataFrame) -> Table:
    """Return where the seconds went: builds, examinations, and the phases of the restarts.

    Restarts are the measuring time. Builds run beside each other, so their seconds are work, not the clock on the
    wall.
    """
    total = _sum(pieces, "wall_s")
    restarts = pieces.filter(pl.col("kind") == "restart")
    measuring = _sum(restarts, "wall_s")
    rows = []
    for kind in sorted(set(pieces["kind"].drop_nulls()) - {"restart"}):
        part = pieces.filter(pl.col("kind") == kind)
        rows.append((f"{KINDS.get(kind, kind)} ({len(part)})", *_seconds(_sum(part, "wall_s"), total), DASH))
    rows.append((f"restarts ({len(restarts)})", *_seconds(measuring, total), _share(measuring, measuring)))
    for column, name in PHASES:
        seconds = _sum(restarts, column)
        rows.append((f"– {name}", *_seconds(seconds, total), _share(seconds, measuring)))
    return Table(
        "",
        ("What", "Seconds", "Of all", "Of measuring"),
        tuple(rows),
        ("Seconds of work: builds run beside each other, so on the clock they took less. Measuring is the restarts.",),
    )


def markdown(table: Table) -> str:
    """Return `table` as Markdown; text that Markdown or HTML would interpret is escaped."""
    lines = [f"### {escape(table.title)}", ""] if table.title else []
    lines += [
        _line(table.columns),
        _line([":--", *[":--" if table.text else "--:"] * (len(table.columns) - 1)], raw=True),
    ]
    lines += [_line(row) for row in table.rows]
    if table.notes:
        lines += ["", *(f"* {escape(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return `text` so that Markdown shows it as it is."""
    return re.sub(r"([\\`*|]|(?<=\])\()", r"\\\1", html.escape(text, quote=False))


def duration(seconds: float | None, unit: str) -> str:
    """Return seconds as a number in `unit` (s or ms) with four significant digits."""
    if seconds is None:
        return DASH
    value = seconds * 1000 if unit == "ms" else seconds
    if value >= 1000:
        return f"{value:,.0f}"
    text = f"{value:#.4g}"
    return text.removesuffix(".")


def ratio(row: Row) -> str:
    """Return `1.120× [1.101, 1.139]`, or the ratio alone, or a dash."""
    if row["speedup"] is None or row["baseline"]:
        return DASH
    text = f"{row['speedup']:.3f}×"
    return text if row["low"] is None else f"{text} [{row['low']:.3f}, {row['high']:.3f}]"


COLUMNS = (
    "Recipe",
    "Mean",
    "Median",
    "p90",
    "Tokens/s",
    "Saved",
    "Speedup [low, high]",
    "Verdict",
    "Nodes changed",
    "Restarts",
)


def _result(arms: pl.DataFrame, run: Row) -> Table:
    rows = arms.to_dicts()
    first = rows[0]
    baseline = next(row for row in rows if row["baseline"])
    slowest = max((row["mean_s"] for row in rows if row["mean_s"] is not None), default=0.0)
    unit = "s" if slowest >= 1 else "ms"
    columns = tuple(f"{c} ({unit})" if c in ("Mean", "Median", "p90") else c for c in COLUMNS)
    title = f"Target {first['target']} · {first['model']} · {first['workload']}{_workload(run, first['workload'])}"
    lines = tuple(_result_row(row, baseline["recipe"], unit) for row in rows)
    return Table(title, columns, lines, tuple(_notes(rows)))


def _result_row(row: Row, baseline: str, unit: str) -> tuple[str, ...]:
    name = f"control ({baseline} again)" if row["control"] else row["recipe"]
    compared = row["speedup"] is not None and not row["baseline"]
    return (
        name,
        *(duration(row[column], unit) for column in ("mean_s", "median_s", "p90_s")),
        DASH if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
        f"{row['saved']:+.1%}" if compared else DASH,
        ratio(row),
        row["verdict"],
        DASH if row["nodes_changed"] is None or row["control"] else f"{row['nodes_changed']}",
        f"{row['restarts']}",
    )


def _notes(rows: Sequence[Row]) -> Iterable[str]:
    """The evidence below a table, arms with the same sentence together, and the level of the intervals."""
    same: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["evidence"] and not row["control"]:
            same.setdefault((row["verdict"], row["evidence"]), []).append(row["recipe"])
    for (verdict, sentence), recipes in same.items():
        yield f"{', '.join(recipes)} ({verdict}): {sentence}."
    level = next((row["level"] for row in rows if row["level"] and not row["control"] and not row["no_op"]), None)
    if level is not None:
        yield (
            f"Intervals of the compared recipes are at {level:.1%}, the level that agrees with a false-discovery rate "
            "of 5 % over the table; those of no-ops and the control at 95.0%."
        )
    elif any(row["level"] for row in rows):
        yield "Intervals are at 95.0%; no recipe executes anything other than the baseline does."


def _answer_for(target: str, arms: pl.DataFrame, run: Row) -> str:
    if (arms["verdict"] == "unserved").all():
        return f"On target {target} nothing was measured: {arms['evidence'][0]}."
    baseline = arms.filter(pl.col("baseline"))["recipe"][0]
    recipes = arms.filter(~pl.col("baseline") & ~pl.col("control"))
    if recipes.is_empty():
        return f"On target {target} only {baseline} was measured: there is no recipe to compare it with."
    n = recipes["recipe"].n_unique()
    compared = recipes.filter(pl.col("speedup").is_not_null())
    if compared.is_empty():
        reason = recipes["evidence"][0]
        return f"On target {target} no recipe can be compared with {baseline}: {reason}."
    best = (
        recipes.filter(pl.col("verdict") == "faster")
        .sort("speedup", descending=True)
        .unique("cell", keep="first", maintain_order=True)
        .sort("hidden_size", descending=True, maintain_order=True)
    )
    idle = recipes.group_by("recipe").agg(pl.col("no_op").all()).filter("no_op").height
    noops = f" {idle} of {n} execute{'s' if idle == 1 else ''} exactly what {baseline} does (no-op)." if idle else ""
    if best.is_empty():
        which = "the one recipe is not" if n == 1 else f"none of the {n} recipes is"
        return f"On target {target} {which} faster than {baseline} beyond its interval.{noops}"
    cells = recipes["cell"].n_unique()
    shown = [f"{row['recipe']} {ratio(row)} ({row['model']}, {row['workload']})" for row in best.head(SHOWN).to_dicts()]
    found = "; ".join(shown) + (f"; and so on in {len(best) - SHOWN} more cells" if len(best) > SHOWN else "")
    rest = (
        f"; in {cells - len(best)} of {cells} cells nothing is faster beyond its interval" if len(best) < cells else ""
    )
    return f"On target {target} the fastest recipe, against {baseline}, is {found}{rest}.{noops}"


def _workload(run: Row, name: str) -> str:
    """Return ` (2×1024 tokens, hidden)` for the workload `name` of the sweep."""
    found = run["sweep"]["workloads"].get(name, {})
    if "sequence" not in found:
        return ""
    return f" ({found.get('batch', 1)}×{found['sequence']} tokens, {found.get('outputs', 'logits')} out)"


def _targets(speedups: pl.DataFrame) -> list[str]:
    return speedups["target"].unique(maintain_order=True).to_list()


def _line(cells: Iterable[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cell if raw else escape(cell) for cell in cells) + " |"


def _sum(pieces: pl.DataFrame, column: str) -> float:
    return float(pieces[column].fill_nan(None).sum() or 0.0)


def _seconds(seconds: float, total: float) -> tuple[str, str]:
    return f"{seconds:,.1f}", _share(seconds, total)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else DASH
