"""Tokens a second of every arm, and for each watt and gigabyte, as charts and a table a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report import bars
from llama_bench.report.document import Block, Figure
from llama_bench.report.drawing import Chart
from llama_bench.report.table import DASH, Table
from llama_bench.report.tradeoffs import megabytes
from llama_bench.stats.efficiency import ENERGY_S, POWER_S

Row = Mapping[str, Any]

COLUMNS = {
    "Tokens/s": "tokens_per_s",
    "Power (W)": "power_w",
    "Tokens/J": "tokens_per_joule",
    "J a token": "joules_per_token",
    "Memory (MB)": "memory_bytes",
    "Tokens/s a GB": "tokens_per_s_per_gb",
}
"""Heading → column of the view `efficiency`; those that no arm has are left out."""


def blocks(efficiency: pl.DataFrame) -> list[Block]:
    """Return one chart and one table a target, from the view."""
    found: list[Block] = []
    for target in efficiency["target"].unique(maintain_order=True):
        mine = efficiency.filter((pl.col("target") == target) & ~pl.col("control"))
        found += [Figure.of(_chart(target, mine.to_dicts())), _table(target, mine)]
    return found


def _chart(target: str, rows: Sequence[Row]) -> Chart:
    found = [
        bars.Bar(
            f"{row['model']} · {row['workload']}",
            row["recipe"],
            row["tokens_per_s"],
            _number(row["tokens_per_s"]),
            "wrong: never ranked" if row["verdict"] == "wrong" else "tokens a second",
            f"{row['recipe']}: {_number(row['tokens_per_s'])} tokens/s; {row['verdict']}; {row['model']}",
        )
        for row in sorted(rows, key=lambda row: row["verdict"] == "wrong")
    ]
    order = list(dict.fromkeys(f"{row['model']} · {row['workload']}" for row in rows))
    found.sort(key=lambda bar: (order.index(bar.panel), -bar.value))
    found.sort(key=lambda bar: order.index(bar.panel))
    title = f"Tokens a second on target {target}"
    caption = f"{title}: all tokens of all sequences of a run, prompts included, over its mean time; the fastest first."
    most = max(bar.value for bar in found) * 1.15
    return bars.chart(f"tokens-{target}", title, caption, {"title": "Tokens/s"}, found, most)


def _table(target: str, arms: pl.DataFrame) -> Table:
    shown = {name: column for name, column in COLUMNS.items() if arms[column].is_not_null().any()}
    rows = tuple(
        (row["model"], row["workload"], row["recipe"], *(_cell(row, column) for column in shown.values()))
        for row in arms.to_dicts()
    )
    notes = []
    if "Power (W)" in shown:
        notes.append(
            f"Power is the whole GPU's: its energy counter's joules over slots of at least {ENERGY_S:g} s, washout and "
            f"timed runs together; in older runs its reading in slots of at least {POWER_S:.0f} s. Tokens/J are "
            "tokens/s a watt."
        )
    else:
        notes.append("Power was not measured: it needs an NVIDIA GPU and slots of at least 0.3 s.")
    if "Memory (MB)" in shown:
        where = " and ".join(sorted(set(arms["memory_of"].drop_nulls())))
        notes.append(f"Memory is the most that an arm held ({where}).")
    return Table(f"Target {target}", ("Model", "Workload", "Recipe", *shown), rows, tuple(notes))


def _cell(row: Row, column: str) -> str:
    if row[column] is None:
        return DASH
    return megabytes(row[column]) if column == "memory_bytes" else _number(row[column])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
