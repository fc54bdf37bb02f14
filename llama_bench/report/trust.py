"""What a sceptic asks first: do equal programs differ here, what disturbed the blocks, how fast could it go at most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from llama_bench.report.question import noise_floor
from llama_bench.report.table import DASH, Table, percent
from llama_bench.stats.controls import VOID_P

Row = Mapping[str, Any]


def noise(cells: pl.DataFrame, speedups: pl.DataFrame) -> Table | None:
    """Return one row a target: its A/A pairs, what they say, and the blocks that were disturbed; None without cells.

    The noise floor is the largest difference in time that the view `speedups` has of programs equal to the baseline.
    """
    timed = cells.filter(pl.col("restarts") > 0)
    if timed.is_empty():
        return None
    rows = []
    for target in timed["target"].unique(maintain_order=True):
        mine = timed.filter(pl.col("target") == target)
        first = mine.to_dicts()[0]
        rows.append(
            (
                target,
                percent(noise_floor(speedups, target)),
                f"{first['aa_pairs']}",
                DASH if first["aa_chi2"] is None else f"{first['aa_chi2']:.1f}",
                DASH if first["aa_p"] is None else f"{first['aa_p']:.2g}",
                DASH if first["inflation"] is None else f"{first['inflation']:.2f}×",
                f"{mine['blocks'].sum()}",
                f"{mine['dropped_blocks'].sum()}",
                f"{mine['flagged_blocks'].sum()}",
                "no: void" if first["aa_p"] is not None and first["aa_p"] < VOID_P else "yes",
            )
        )
    columns = (
        "Target",
        "Noise floor",
        "A/A pairs",
        "χ²",
        "p",
        "Intervals widened",
        "Blocks",
        "Timed again",
        "Flagged",
        "Verdicts stand",
    )
    notes = (
        "The noise floor is the largest difference in time that equal programs show here.",
        "A/A pairs are programs that are the same: the baseline against its control and against no-ops. χ², with as "
        f"many degrees of freedom as pairs, says whether they differ by more than chance; below p = {VOID_P} the "
        "target has no verdicts, above it every interval is as much wider as the pairs ask for.",
    )
    return Table("", columns, tuple(rows), notes)


def strangers(blocks: pl.DataFrame) -> list[str]:
    """Return one sentence a target on whose GPU other processes were seen: in how many blocks, and whose."""
    found = []
    for target in blocks["target"].unique(maintain_order=True):
        mine = blocks.filter(pl.col("target") == target).unique(["cell", "restart", "group", "block"])
        seen = mine.filter(pl.col("foreign").is_not_null())
        if seen.is_empty():
            continue
        names = seen["foreign"].value_counts(sort=True)["foreign"].to_list()
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        kept = seen.filter("kept").height
        counted = f"its verdicts count {kept} of these blocks and may be off" if kept else "none of these blocks counts"
        found.append(
            f"Another process was on the GPU of {target} in {seen.height} of {mine.height} blocks "
            f"({'; '.join(names[:MOST_NAMED])}{more}): {counted}."
        )
    return found


MOST_NAMED = 3
"""Processes that are named; of more the number is told."""

UNITS = {"matmul": ("T operations/s", 1e12), "copy": ("GB/s", 1e9), "read": ("GB/s", 1e9)}
"""What a ceiling is of → its unit, and how many per second are one of it."""


def ceilings(ceilings: pl.DataFrame) -> Table | None:
    """Return the measured ceilings of each target; None when none were measured."""
    if ceilings.is_empty():
        return None
    rows = []
    for row in ceilings.sort("target", "hardware", "what", "dtype").to_dicts():
        unit, one = UNITS.get(row["what"], ("/s", 1.0))
        name = f"{row['what']} {row['dtype'] or ''}".strip()
        rows.append(
            (row["target"], name, f"{row['per_second'] / one:,.2f} {unit}", f"{row['threads']}", row["how"] or DASH)
        )
    notes = (
        "Measured on the node before its first cell. “Of limit” in the tables is the time that these ceilings allow "
        "for the operations and bytes of a run, as a share of the time it took.",
    )
    return Table("", ("Target", "Ceiling", "At most", "Threads", "Measured with"), tuple(rows), notes, text=True)
