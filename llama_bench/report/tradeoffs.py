"""What speed costs: a table of accuracy and size beside each cell's times, and one of the arms that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_bench.plan import TORCH
from llama_bench.report.table import DASH, Table, percent, ratio

if TYPE_CHECKING:
    from llama_bench.stats.views import Frames

Row = Mapping[str, Any]
Key = tuple[str, str]
"""(cell, arm)"""

LOSS_NAMES = {
    "perplexity": "Perplexity change",
    "kl": "KL (nats)",
    "cosine": "1 − cosine",
    "tokens": "Tokens unlike torch's",
}
"""What a loss is of in the view `pareto` → the heading of its column."""

RULE = (
    "An arm is beaten by another that is not shown to be slower, loses no more accuracy, takes no more space on disk "
    "and is better in one of the three. Times whose intervals meet are equal, and so are losses and sizes that print "
    "alike; a perplexity below torch's counts as no loss. Wrong arms and no-ops have no place."
)


@dataclass(frozen=True, slots=True)
class Answers:
    """What is known of each arm besides its time, by (cell, arm): rows of the views named like the fields."""

    accuracy_by_arm: Mapping[Key, Row]
    sizes: Mapping[Key, Row]
    pareto: Mapping[Key, Row]

    @classmethod
    def of(cls, frames: Frames) -> Answers:
        """Collect the views."""
        views = (frames.accuracy_by_arm, frames.sizes, frames.pareto)
        return cls(*({(row["cell"], row["recipe"]): row for row in view.collect().to_dicts()} for view in views))


def accuracy_and_size(arms: Sequence[Row], where: str, answers: Answers, run: Row) -> Table | None:
    """Return what the `arms` of one cell (rows of `speedups`) lose and take; `where` says which cell in words.

    Columns of which no arm has a number are left out. None for a cell of exact rewrites that was asked neither about
    text nor about memory: its accuracy is said by its verdicts.
    """
    shown = [row for row in arms if not row["control"] and _key(row) in answers.accuracy_by_arm]
    right = {row["recipe"]: answers.accuracy_by_arm[_key(row)] for row in shown}
    stored = {row["recipe"]: answers.sizes.get(_key(row), {}) for row in shown}
    approximate = any(row["class"] == "approximate" for row in right.values())
    asked = any(row["perplexity"] is not None for row in right.values())
    if not (approximate or asked or any(row.get("peak_bytes") for row in stored.values())):
        return None
    cells = [
        {
            "Recipe": row["recipe"],
            "Class": right[row["recipe"]]["class"] or DASH,
            **_accuracy(right[row["recipe"]]),
            "On disk (MB)": megabytes(stored[row["recipe"]].get("disk_bytes")),
            "Memory (MB)": megabytes(stored[row["recipe"]].get("peak_bytes")),
            "GPU memory (MB)": megabytes(stored[row["recipe"]].get("device_bytes")),
            "Beaten by": _beaten_by(answers.pareto.get(_key(row))) if approximate else DASH,
        }
        for row in shown
    ]
    columns = [name for name in cells[0] if any(row[name] != DASH for row in cells)]
    lines = tuple(tuple(row[name] for name in columns) for row in cells)
    cell: Row = next((entry for entry in run["cells"] if entry["id"] == arms[0]["cell"]), {})
    against = str(cell.get("reference", TORCH))
    notes = (*_about(list(right.values()), columns, against), *source_notes(arms[0]["cell"], run))
    return Table(f"Accuracy and size: {where}", tuple(columns), lines, notes)


def unbeaten(arms: Sequence[Row], where: str, answers: Answers, run: Row) -> Table | None:
    """Return the arms of one cell that no other beats in time, accuracy and size together, the fastest first.

    None where no approximation can be placed: rewrites that lose nothing and take the same space differ in time alone.
    """
    placed = {row["recipe"]: answers.pareto[_key(row)] for row in arms if _key(row) in answers.pareto}
    if not any(row["class"] == "approximate" for row in placed.values()):
        return None
    speeds = {row["recipe"]: row for row in arms}
    on = sorted((row for row in placed.values() if row["front"]), key=lambda row: -row["speedup"])
    beaten = {name: [a for a, row in placed.items() if row["beaten_by"] == name] for name in placed}
    of = on[0]["loss_of"]
    lines = tuple(
        (
            row["recipe"],
            row["class"] or DASH,
            ratio(speeds[row["recipe"]]),
            DASH if (rate := speeds[row["recipe"]]["tokens_per_s"]) is None else f"{rate:,.0f}",
            loss(row["loss"], of),
            percent(answers.accuracy_by_arm[_key(row)]["top1"]),
            megabytes(row["disk_bytes"]),
            megabytes(answers.sizes[_key(row)]["peak_bytes"]),
            f"{len(beaten[row['recipe']])}",
        )
        for row in on
    )
    heading = LOSS_NAMES[of]
    columns = ("Recipe", "Class", "Speedup [low, high]", "Tokens/s", heading, "Top-1", "On disk (MB)", "Memory (MB)")
    notes = [f"{name} beats {', '.join(losers)}." for name, losers in beaten.items() if losers]
    told = (RULE, *notes, *source_notes(arms[0]["cell"], run))
    return Table(f"Not beaten: {where}", (*columns, "Beats"), lines, told)


def source_notes(cell: str, run: Row) -> Iterator[str]:
    """Say where the weights of a cell's baseline come from, where run.json does: a 4-bit file is no original."""
    source = next((entry.get("source") for entry in run["cells"] if entry["id"] == cell), None)
    if source:
        against = "; losses are against these numbers, not against those that were trained" * ("quantised" in source)
        yield f"The weights of the baseline: {source}{against}."


def loss(value: float, of: str) -> str:
    """Return a loss of the view `pareto` as it is printed: see :data:`LOSS_NAMES`."""
    if of == "perplexity":
        return change(value)
    return percent(value) if of == "tokens" else f"{value:.2g}"


def change(share: float | None) -> str:
    """Return by how much a number rose, in three digits or so: `+1.20%`, `+35.0%`; from tenfold on `12×`."""
    if share is None:
        return DASH
    if not math.isfinite(share):
        return "∞"
    if share >= 9:
        return f"{share + 1:,.0f}×" if share >= 99 else f"{share + 1:.3g}×"
    digits = 2 if abs(share) < 0.1 else 1 if abs(share) < 1 else 0
    return f"{round(share, digits + 2) + 0.0:+.{digits}%}"  # + 0.0: no minus before a zero


def megabytes(size: float | None) -> str:
    """Return bytes as megabytes (10⁶), with three digits and all before the point."""
    if size is None:
        return DASH
    value = size / 1e6
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _accuracy(row: Row) -> dict[str, str]:
    perplexity = row["perplexity"]
    return {
        "Perplexity": DASH if perplexity is None else f"{perplexity:,.2f}" if perplexity < 1e4 else f"{perplexity:.3g}",
        "Change": change(row["perplexity_increase"]),
        "KL (nats)": DASH if row["kl"] is None else f"{row['kl']:.2g}",
        "Top-1": percent(row["top1"]),
        "Largest error": DASH if row["max_rel"] is None else f"{row['max_rel']:.1e}",
    }


def _beaten_by(row: Row | None) -> str:
    """Who beats an arm, "–" for one that has no place."""
    if row is None:
        return DASH
    return "nothing" if row["front"] else str(row["beaten_by"])


def _about(answers: Sequence[Row], columns: Sequence[str], reference: str) -> Iterator[str]:
    """Say what the columns are of, and what the answers are checked against."""
    about = next((row for row in answers if row["perplexity"] is not None), None)
    if about is not None:
        yield (
            f"Perplexity, KL and top-1 are of {about['tokens']:,} predictions on text, in windows of {about['window']} "
            f"tokens, {about['stride']} apart; torch in fp32 has a perplexity of {about['reference_perplexity']:,.2f}."
        )
    elif sources := sorted({str(row["source"]) for row in answers if row["top1"] is not None}):
        yield f"KL and top-1 are of the timed output ({', '.join(sources)}), against {reference}."
    if "Memory (MB)" in columns:
        yield "On disk are graph and weights; memory is the most that the arm's process ever had (medians of restarts)."


def _key(row: Row) -> Key:
    return row["cell"], row["recipe"]
