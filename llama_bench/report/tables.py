"""Tables: the study's Tables 1 and 2 extended, what failed, and where the time went."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.document import Sortable
from llama_bench.report.table import DASH, Table, duration, percent, plural, ratio
from llama_bench.report.tradeoffs import Answers, accuracy_and_size, source_notes, unbeaten

Row = Mapping[str, Any]


def results(speedups: pl.DataFrame, cells: pl.DataFrame, run: Row, answers: Answers | None = None) -> list[Table]:
    """Return one table a target × workload × model, the largest model first; `cells` is the view of that name.

    With `answers` a table of accuracy and size follows each that has approximations, or was scored on text. None for
    what no node served, or what this run left out altogether (`--only`, or stopped before it).
    """
    tables = []
    for arms in _cells(speedups):
        found = cells.filter(pl.col("cell") == arms[0]["cell"]).to_dicts()
        tables.append(_result(arms, found[0] if found else None, run))
        second = accuracy_and_size(arms, where(arms[0]), answers, run) if answers else None
        tables += [second] if second else []
    return tables


def by_target(speedups: pl.DataFrame, cells: pl.DataFrame, run: Row) -> list[Sortable]:
    """Return one long table a target: every arm of its cells, with what must be said of each cell below it."""
    found = []
    ended = {cell["cell"]: cell for cell in cells.to_dicts()}
    for target in _targets(speedups):
        measured = list(_cells(speedups.filter(pl.col("target") == target)))
        if not measured:
            continue
        unit = _unit([row for arms in measured for row in arms])
        facets = [_facets(row) for arms in measured for row in arms]
        rows = [_long_row(row, _baseline(arms), unit) for arms in measured for row in arms]
        shared = [name for name in ("Model", "Workload") if len({row[name] for row in rows}) == 1]
        columns = [name for name in rows[0] if name not in shared and any(row[name] != DASH for row in rows)]
        title = " · ".join([f"Target {target}", *(rows[0][name] for name in shared)])
        notes = [
            (
                {key: arms[0][key] for key in ("target", "model", "workload")},
                _result(arms, ended.get(arms[0]["cell"]), run),
            )
            for arms in measured
        ]
        table = Table(title, tuple(columns), tuple(tuple(row[name] for name in columns) for row in rows))
        found.append(Sortable(table, facets, notes))
    return found


def accuracy(speedups: pl.DataFrame, run: Row, answers: Answers) -> list[Table]:
    """Return for each cell that has approximations, or was scored on text, what its arms lose and take."""
    found = (accuracy_and_size(arms, where(arms[0]), answers, run) for arms in _cells(speedups))
    return [table for table in found if table is not None]


def _facets(row: Row) -> dict[str, str]:
    return {key: str(row[key]) for key in ("target", "model", "workload", "recipe", "verdict")}


def tradeoffs(speedups: pl.DataFrame, run: Row, answers: Answers) -> list[Table]:
    """Return for each cell with approximations the arms that nothing beats in time, accuracy and size together."""
    found = (unbeaten(arms, where(arms[0]), answers, run) for arms in _cells(speedups))
    return [table for table in found if table is not None]


def where(row: Row) -> str:
    """Return which cell a row of a view belongs to, in words."""
    return f"target {row['target']} · {row['model']} · {row['workload']}"


def _cells(speedups: pl.DataFrame) -> Iterator[Sequence[Row]]:
    """The arms of each cell that was measured, in the order of the tables."""
    left_out = (pl.col("verdict") == "skipped").all().over("cell")
    served = speedups.filter(pl.col("verdict") != "unserved", ~left_out)
    for target in _targets(served):
        part = served.filter(pl.col("target") == target)
        for workload in part["workload"].unique(maintain_order=True):
            models = part.filter(pl.col("workload") == workload).sort(
                "hidden_size", descending=True, maintain_order=True, nulls_last=True
            )
            for cell in models["cell"].unique(maintain_order=True):
                yield models.filter(pl.col("cell") == cell).to_dicts()


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


KINDS = {"build": "builds", "ceilings": "ceilings of the nodes", "examine": "examinations of what is executed"}
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


COLUMNS = (
    "Recipe",
    "Mean",
    "Median",
    "p90",
    "Tokens/s",
    "Of limit",
    "Saved",
    "Speedup [low, high]",
    "Verdict",
    "Nodes changed",
    "Restarts",
)


def _result(rows: Sequence[Row], cell: Row | None, run: Row) -> Table:
    first, unit = rows[0], _unit(rows)
    title = f"Target {first['target']} · {first['model']} · {first['workload']}{_workload(run, first)}"
    lines = tuple(_result_row(row, _baseline(rows), unit) for row in rows)
    notes = (*source_notes(first["cell"], run), *_notes(rows), *(_cell_notes(cell) if cell else ()))
    return Table(title, _columns(unit), lines, notes)


FIRST = ("Recipe", "Verdict", "Speedup [low, high]", "Saved")
"""Columns of a long table that stand before the others, so that they are seen without scrolling."""


def _long_row(row: Row, baseline: str, unit: str) -> dict[str, str]:
    """Heading → cell, for a table of several cells."""
    cells = dict(zip(_columns(unit), _result_row(row, baseline, unit), strict=True))
    return {"Model": row["model"], "Workload": row["workload"], **{name: cells[name] for name in FIRST}, **cells}


def _unit(rows: Sequence[Row]) -> str:
    slowest = max((row["mean_s"] for row in rows if row["mean_s"] is not None), default=0.0)
    return "s" if slowest >= 1 else "ms"


def _columns(unit: str) -> tuple[str, ...]:
    return tuple(f"{c} ({unit})" if c in ("Mean", "Median", "p90") else c for c in COLUMNS)


def _baseline(rows: Sequence[Row]) -> str:
    return str(next(row["recipe"] for row in rows if row["baseline"]))


def _result_row(row: Row, baseline: str, unit: str) -> tuple[str, ...]:
    name = f"control ({baseline} again)" if row["control"] else row["recipe"]
    compared = row["speedup"] is not None and not row["baseline"]
    return (
        name,
        *(duration(row[column], unit) for column in ("mean_s", "median_s", "p90_s")),
        DASH if row["tokens_per_s"] is None else f"{row['tokens_per_s']:,.0f}",
        percent(row["of_bound"]),
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


def _cell_notes(cell: Row) -> Iterable[str]:
    """What ended the cell, and what disturbed it."""
    restarts = plural(cell["restarts"], "restart")
    width, wanted = percent(cell["half_width"]), percent(cell["wanted_half_width"])
    ends = {
        "half-width": f"every 95 % interval is ±{width} or narrower, as wanted",
        "budget": f"the budget ended it; the widest 95 % interval is ±{width}, ±{wanted} was wanted",
        "pilot only": f"the sweep asks for the pilot alone; the widest 95 % interval is ±{width}",
        "unfinished": "not finished: the same command goes on",
    }
    if cell["half_width"] is None and cell["ended_by"] in ("half-width", "pilot only"):
        ends = dict.fromkeys(ends, "no recipe asks for an interval")
    yield f"{restarts}: {ends[cell['ended_by']]}."
    dropped, flagged, blocks = cell["dropped_blocks"] or 0, cell["flagged_blocks"] or 0, cell["blocks"]
    if dropped:
        yield f"{dropped} of {plural(blocks, 'block')} were disturbed, left out for all arms, and timed again."
    if flagged:
        yield (
            f"{flagged} of {plural(blocks, 'block')} were disturbed and count all the same, "
            "since a fifth had been left out before."
        )


def _workload(run: Row, row: Row) -> str:
    """Return ` (2×1024 tokens, hidden out)` for the workload of a row; what an own model gives out is its own."""
    found = run["sweep"]["workloads"].get(row["workload"], {})
    batch = found.get("batch", 1)
    if found.get("sequence"):
        given = "" if row["hidden_size"] is None else f", {found.get('outputs', 'logits')} out"
        return f" ({batch}×{found['sequence']} tokens{given})"
    if found.get("context"):
        return f" (batch {batch}, one token after {found['context']})"
    return f" (batch {batch}, {found['new_tokens']} tokens after {found['prompt']})" if found.get("prompt") else ""


def _targets(speedups: pl.DataFrame) -> list[str]:
    return speedups["target"].unique(maintain_order=True).to_list()


def _sum(pieces: pl.DataFrame, column: str) -> float:
    return float(pieces[column].fill_nan(None).sum() or 0.0)


def _seconds(seconds: float, total: float) -> tuple[str, str]:
    return f"{seconds:,.1f}", _share(seconds, total)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else DASH
