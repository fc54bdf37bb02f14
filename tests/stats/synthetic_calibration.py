"""Calibrations whose spread is known: the sweep and cells of a real design, and rows as measuring them would write."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llama_bench import calibration, plan
from llama_bench.calibration import Design
from llama_bench.parts import write_part
from llama_bench.results import write_run
from llama_bench.schemas import SCHEMAS
from llama_bench.stats import views
from llama_bench.store import Store
from llama_bench.sweep import CONTROL

MACHINE = {
    "hostname": "host",
    "cpu": "A CPU",
    "physical_cores": 2,
    "logical_cores": 4,
    "memory_bytes": 2**34,
    "gpus": [],
}

Rows = dict[str, pl.DataFrame]


def measured(
    design: Design, *, spread: float = 0.01, noise: float = 0.01, seed: int = 1
) -> tuple[dict[str, Any], Rows]:
    """Return run.json and the datasets of a finished calibration.

    `spread` is the standard deviation of ln seconds between processes, `noise` that between the runs of one; blocks
    drift by 2 %, for all arms alike.
    """
    rng = np.random.default_rng(seed)
    sweep = calibration.sweep(design)
    cells = plan.make(sweep, {}).cells
    shares = {calibration.slowed(share): share for share in design.slowdowns}
    timings, blocks = [], []
    for number, cell in enumerate(cells, 1):
        names = calibration.arms(design, number)
        size = (len(names), design.restarts, design.blocks, design.runs)
        level = rng.normal(0, spread, size[:2])[:, :, None, None] + rng.normal(0, 0.02, (1, *size[1:3]))[..., None]
        own = 1e-3 * np.exp(level + rng.normal(0, noise, size))
        share = np.array([shares.get(name, 0.0) for name in names])[:, None, None, None]
        # a loop of a share of the median, which ends a little late
        busy = share * np.median(own, axis=(2, 3), keepdims=True) * rng.uniform(1, 1.05, size)
        arm, restart, block, run = (axis.ravel() for axis in np.indices(size))
        where = {
            "cell": cell.id,
            "model": cell.model.label,
            "workload": cell.workload_name,
            "target": cell.target_name,
            "group": 0,
            "phase": "main",
            "kept": True,
        }
        timed = pl.DataFrame(
            {
                "arm": np.array(names)[arm],
                "restart": restart,
                "block": block,
                "position": arm,
                "run_index": run,
                "seconds": (own + busy).ravel(),
                "busy_s": busy.ravel(),
            }
        ).with_columns(
            *(pl.lit(value).alias(key) for key, value in where.items()),
            recipe=pl.when(pl.col("arm") == CONTROL).then(pl.lit(calibration.BASELINE)).otherwise(pl.col("arm")),
            control=pl.col("arm") == CONTROL,
            busy_s=pl.when(pl.col("busy_s") > 0).then(pl.col("busy_s")),
        )
        timings.append(timed)
        slot = [*where, "restart", "block", "position", "recipe", "control"]
        blocks.append(timed.group_by(slot, maintain_order=True).agg(log_seconds=pl.col("seconds").log().mean()))
    machines = (
        pl.concat(blocks)
        .select("cell")
        .unique(maintain_order=True)
        .with_columns(hostname=pl.lit("host"), load_1m=pl.lit(1.5))
    )
    run = {
        "sweep": sweep.model_dump(mode="json"),
        "created_at": "2026-01-02T03:04:05+00:00",
        "fingerprint": "f00d",
        "versions": {"onnxruntime": "1.31.1", "llama_bench": "0.1.0"},
        "machines": [MACHINE],
        "cells": [
            {**cell.entry, "arms": list(calibration.arms(design, number))} for number, cell in enumerate(cells, 1)
        ],
        "unserved": {},
    }
    return run, {"timings": pl.concat(timings), "blocks": pl.concat(blocks), "machines": machines}


def frames(run: Mapping[str, Any], rows: Rows) -> views.Frames:
    """Return the views over `rows`; datasets that are not there are empty."""
    return views.make(run, {name: _whole(name, rows.get(name)).lazy() for name in SCHEMAS})


def write(folder: Path, run: Mapping[str, Any], rows: Rows, name: str = "20260102-030405-f00d") -> Path:
    """Write a calibration into a store as its runner would, pieces last; return the run's folder."""
    store, path = Store(folder), f"{calibration.NAME}/{name}"
    for dataset in sorted(SCHEMAS, key=lambda dataset: dataset == "pieces"):
        for cell in run["cells"]:
            piece = {"cell": cell["id"], "piece": f"{cell['id']}-r0000", "kind": "restart", "wall_s": 1.0}
            table = _whole(dataset, pl.DataFrame([piece]) if dataset == "pieces" else rows.get(dataset))
            if found := table.filter(pl.col("cell") == cell["id"]).to_dicts() if len(table) else []:
                assert write_part(store, path, dataset, f"{cell['id']}-r0000", found)
    assert write_run(store, path, run)
    return folder / path


def failure(cell: Mapping[str, Any] | None, kind: str, message: str) -> pl.DataFrame:
    """Return one row of `failures`: of a cell's control, or of a build that all cells need."""
    row = {"stage": "build" if cell is None else "slot", "kind": kind, "message": message}
    row |= {"recipe": CONTROL, "cell": cell["id"]} if cell is not None else {}
    return pl.DataFrame([{**row, "at": datetime(2026, 1, 2, tzinfo=UTC)}])


def _whole(dataset: str, rows: pl.DataFrame | None) -> pl.DataFrame:
    empty = pl.DataFrame(SCHEMAS[dataset].empty_table())
    if rows is None:
        return empty
    kept = rows.select(name for name in rows.columns if name in empty.columns)
    return pl.concat([empty, kept], how="diagonal_relaxed").cast(dict(empty.schema))
