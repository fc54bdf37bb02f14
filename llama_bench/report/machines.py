"""The machines and versions of a run, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from llama_bench.report.document import Block
from llama_bench.report.table import DASH, Table

Row = Mapping[str, Any]

COLUMNS = {
    "target": "Target",
    "hostname": "Node",
    "cpu": "CPU",
    "physical_cores": "Cores",
    "logical_cores": "Threads",
    "memory_bytes": "Memory",
    "gpu": "GPU",
    "provider": "Provider",
    "threads": "Threads of an arm",
}
"""Columns of `machines` that tell nodes and arms' processes apart → their headings."""

FACTS = ("kernel", "libc", "governor", "hypervisor", "cpu_quota", "smt", "boost")
"""What else run.json knows of its nodes and is shown where it says anything."""


def blocks(machines: pl.DataFrame, run: Row) -> list[Block]:
    """Return the nodes that timed, from the dataset, what the run knows of them, and the versions that shaped it."""
    measure = run["sweep"]["measure"]
    differ = any(cell.get(key, measure[key]) != measure[key] for cell in run["cells"] for key in ("blocks", "runs"))
    unless = " unless a cell has its own" if differ else ""
    about = (
        f"Started {run.get('created_at', 'at an unknown time')}; {measure['restarts']} pilot restarts × "
        f"{measure['blocks']} blocks × {measure['runs']} runs an arm{unless}, seed {measure['seed']}; "
        f"fingerprint {run.get('fingerprint', 'unknown')}."
    )
    found: list[Block] = [about]
    if len(machines):
        found.append(_processes(machines))
    for facts in run.get("machines") or []:
        rows = tuple((key, _said(facts[key])) for key in FACTS if facts.get(key) is not None)
        if rows:
            found.append(Table(f"Node {facts.get('hostname', '')}", ("Fact", "Value"), rows, text=True))
    if versions := run.get("versions"):
        found.append(Table("Versions", ("Package", "Version"), tuple(sorted(versions.items())), text=True))
    return found


def _processes(machines: pl.DataFrame) -> Table:
    keys = list(COLUMNS)
    counted = machines.group_by(keys, maintain_order=True).agg(pl.len(), pl.col("restart").n_unique().alias("restarts"))
    rows = tuple(
        (*(_value(key, row[key]) for key in keys), f"{row['len']}", f"{row['restarts']}") for row in counted.to_dicts()
    )
    notes = ("One process an arm and restart; of a target whose nodes differ in hardware nothing is pooled.",)
    return Table("Nodes", (*COLUMNS.values(), "Processes", "Restarts"), rows, notes, text=True)


def _value(key: str, value: Any) -> str:
    if value is None:
        return DASH
    return f"{value / 2**30:.0f} GiB" if key == "memory_bytes" else str(value)


def _said(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
