"""What grows with a run, at a size that nobody has yet: planning, status, and tables.

    python benchmarks/scale.py plan      100,000 variants planned: seconds, and the most memory of the process
    python benchmarks/scale.py status    `status` of 100,000 pieces, nine cells in ten folded, as a whole command
    python benchmarks/scale.py rows      100 million timing rows into the tables; DuckDB on the same files beside it
    python benchmarks/scale.py parts     20,000 parts that are not folded, their footers read; DuckDB beside it

Each figure is of a fresh process; `--number N` takes another size, `--keep DIR` keeps what is written (1 GB of rows).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil

from llama_bench import parts, results
from llama_bench import plan as planning
from llama_bench.schemas import SCHEMAS
from llama_bench.store import Store
from llama_bench.sweep import Model, Pass, Recipe, Sweep, Target, Workload

RUN = "scale/20260101-000000-aaaaaaaa"

RESTARTS = 8
"""Restarts of a cell; with its examination it has nine pieces."""


def timed(command: list[str]) -> tuple[float, int, str]:
    """Run a process to its end; return its seconds, the most bytes it had resident, and what it printed."""
    begin, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as told:
        child = psutil.Popen(command, stdout=told)
        while child.poll() is None:
            try:
                peak = max(peak, child.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.01)
        if child.wait():
            raise SystemExit(f"{' '.join(command)} failed")
        told.seek(0)
        return time.perf_counter() - begin, peak, told.read().decode()


def say(what: str, seconds: float, peak: int) -> None:
    print(f"{seconds:8.2f} s {peak / 2**30:7.2f} GiB  {what}", flush=True)


# ── plan ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def sweep_of(models: int, recipes: int, depth: int = 3) -> Sweep:
    """Return a sweep of models × recipes variants; no two recipes share a prefix, so nothing is saved by sharing."""
    return Sweep(
        name="scale",
        models=tuple(Model(hidden_size=64 * (i + 1), num_attention_heads=4) for i in range(models)),
        recipes={"original": Recipe()}
        | {
            f"r{i}": Recipe(passes=tuple(Pass(family="onnxoptimizer", name=f"p{i}_{step}") for step in range(depth)))
            for i in range(1, recipes)
        },
        workloads={"prefill": Workload(sequence=128)},
        targets={"A": Target(tag="bench_gpu", provider="CUDAExecutionProvider"), "B": Target(tag="bench_cpu")},
    )


def plan_once(models: int, recipes: int) -> None:
    """In a process of its own: plan, and print the seconds that it took and the variants."""
    sweep = sweep_of(models, recipes)
    begin = time.perf_counter()
    made = planning.make(sweep, {"export": "1", "onnxoptimizer": "1"})
    seconds = time.perf_counter() - begin
    variants = {(cell.model.label, arm.name) for cell in made.cells for arm in cell.arms if not arm.control}
    print(json.dumps([seconds, len(variants)]))


def plan(number: int, folder: Path) -> None:
    side = round(number**0.5)
    for models, recipes in ((side, number // side), (1, number), (number, 1)):
        _, peak, told = timed([sys.executable, __file__, "plan_once", str(models), str(recipes)])
        seconds, variants = json.loads(told)
        say(
            f"{variants:,} variants planned: {models:,} models × {recipes:,} recipes of 3 passes, 2 targets",
            seconds,
            peak,
        )


# ── status ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def status(number: int, folder: Path) -> None:
    store = Store(folder / "store")
    begin_run(store, cells := number // 10)
    assert store.root is not None
    listed = store.root / RUN / "pieces"
    listed.mkdir()
    for n in range(cells):
        (store.root / "artifacts" / f"a{n}").mkdir(parents=True)
        for name in ("manifest.json", "model.onnx"):
            (store.root / "artifacts" / f"a{n}" / name).touch()
        (listed / f"build-a{n}.parquet").touch()
        for stem in pieces(n) if n % 10 == 0 else [f"{n:016x}"]:
            (listed / f"{stem}.parquet").touch()
    command = [sys.executable, "-m", "llama_bench", "status", store.url(RUN), "--json"]
    for _ in range(3):
        seconds, peak, told = timed(command)
        states = [cell["state"] for cell in json.loads(told)["cells"]]
        finished = states.count("finished")
        say(f"status of {number:,} pieces: {finished:,} of {len(states):,} cells finished and folded", seconds, peak)


def pieces(n: int) -> list[str]:
    """Return the stems of the pieces of a cell that is not folded."""
    return [f"{n:016x}-x", *(f"{n:016x}-r{restart:04d}" for restart in range(RESTARTS))]


def begin_run(store: Store, cells: int) -> None:
    entries = [
        {"id": f"{n:016x}", "model": f"m{n}", "workload": "prefill", "target": "cpu", "arms": ["original", "a"]}
        for n in range(cells)
    ]
    info = {"created_at": "2026-01-01T00:00:00+00:00", "artifacts": [f"a{n}" for n in range(cells)], "cells": entries}
    results.write_run(store, RUN, info)


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ARMS = ("original", "a", "b", "c")
PART_ROWS = 100_000

DUCKDB = """
import sys, duckdb
duckdb.sql("SET threads = 2; SET enable_progress_bar = false")
rows = duckdb.sql(f\"\"\"
  SELECT cell, recipe, avg(seconds), median(seconds), quantile_cont(seconds, 0.9), count(*), count(DISTINCT restart)
  FROM read_parquet('{sys.argv[1]}/*.parquet') WHERE kept AND phase = 'main' AND NOT control GROUP BY cell, recipe
\"\"\").fetchall()
print(len(rows))
"""

OURS = """
import sys
from llama_bench.results import scan
from llama_bench.stats.times import arm_times
print(arm_times(scan(sys.argv[1]).by_cell["timings"]).height)
"""


def rows(number: int, folder: Path) -> None:
    store = Store(folder / "rows")
    assert store.root is not None
    if not (store.root / RUN).is_dir():
        write_rows(store, number // PART_ROWS)
    size = sum(path.stat().st_size for path in (store.root / RUN / "timings").iterdir())
    print(f"{number:,} rows in {number // PART_ROWS:,} parts, {size / 1e9:.2f} GB")
    for name, code, where in (
        ("times of every arm", OURS, store.url(RUN)),
        ("DuckDB, the same aggregates", DUCKDB, str(store.root / RUN / "timings")),
    ):
        seconds, peak, told = timed([sys.executable, "-c", code, where])
        say(f"{name}: {int(told):,} rows", seconds, peak)


def write_rows(store: Store, cells: int) -> None:
    """Write folded parts of timings, each a cell with restarts, blocks, arms and runs in its sort order."""
    import pyarrow as pa

    begin_run(store, cells)
    blocks, runs = 5, PART_ROWS // (RESTARTS * 5 * len(ARMS))
    at = np.indices((RESTARTS, blocks, len(ARMS), runs)).reshape(4, -1)
    count = at.shape[1]
    rng = np.random.default_rng(0)
    constant = {"model": "m", "workload": "prefill", "target": "cpu", "phase": "main", "control": False, "kept": True}
    columns = {"restart": at[0], "block": at[1], "position": at[2], "run_index": at[3], "group": np.zeros(count, int)}
    recipes = pa.array(np.array(ARMS)[at[2]])
    for n in range(cells):
        stem = f"{n:016x}"
        seconds = np.exp(rng.normal(-6, 0.02, count))
        values = {
            **{name: pa.repeat(pa.scalar(value), count) for name, value in {**constant, "cell": stem}.items()},
            **{name: pa.array(array) for name, array in columns.items()},
            "recipe": recipes,
            "seconds": pa.array(seconds),
            "pid": pa.array(at[0] * 10 + at[2]),
        }
        schema = SCHEMAS["timings"]
        table = pa.table([values.get(f.name, pa.nulls(count, f.type)).cast(f.type) for f in schema], schema=schema)
        held = [f"{stem}-r{restart:04d}" for restart in range(RESTARTS)]
        store.put(f"{RUN}/timings/{stem}.parquet", parts.as_parquet("timings", table, held))
        piece = pa.Table.from_pylist(
            [{"piece": one, "kind": "restart", "cell": stem} for one in held], SCHEMAS["pieces"]
        )
        store.put(f"{RUN}/pieces/{stem}.parquet", parts.as_parquet("pieces", piece, held))


# ── parts ────────────────────────────────────────────────────────────────────────────────────────────────────────────

SMALL = ("timings", "blocks", "machines", "accuracy", "pieces")
"""Datasets of which each restart has a part."""

SCAN = """
import sys, polars as pl
from llama_bench.results import scan
print(scan(sys.argv[1])["pieces"].select(pl.len()).collect().item())
"""

DUCKDB_SCAN = """
import sys, duckdb
duckdb.sql("SET threads = 2; SET enable_progress_bar = false")
for name in sys.argv[2:]:
    found = duckdb.sql(f"SELECT count(*) FROM read_parquet('{sys.argv[1]}/{name}/*.parquet')").fetchone()
print(found[0])
"""


def small_parts(number: int, folder: Path) -> None:
    store = Store(folder / "parts")
    assert store.root is not None
    begin_run(store, 1)
    for dataset in SMALL:
        row = {"cell": f"{0:016x}", "piece": f"{0:016x}-r0000", "kind": "restart", "seconds": 0.1, "recipe": "original"}
        known = {name: value for name, value in row.items() if name in SCHEMAS[dataset].names}
        parts.write_part(store, RUN, dataset, f"{0:016x}-r0000", [known])
        first = store.root / RUN / dataset / f"{0:016x}-r0000.parquet"
        for restart in range(1, number // len(SMALL)):
            os.link(first, first.with_name(f"{0:016x}-r{restart:04d}.parquet"))
    for name, code, where in (
        ("parts scanned", SCAN, [store.url(RUN)]),
        ("DuckDB, their rows counted", DUCKDB_SCAN, [store.url(RUN), *SMALL]),
    ):
        seconds, peak, told = timed([sys.executable, "-c", code, *where])
        say(f"{number:,} {name}: {int(told):,} restarts", seconds, peak)


PARTS = {
    "plan": (plan, 100_000),
    "status": (status, 100_000),
    "rows": (rows, 100_000_000),
    "parts": (small_parts, 20_000),
}
"""What can be measured → how, and at which size unless it is said."""


def main() -> None:
    if sys.argv[1:2] == ["plan_once"]:
        plan_once(*map(int, sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("--number", type=int)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    measure, number = PARTS[options.what]
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        folder.mkdir(parents=True, exist_ok=True)
        measure(options.number or number, folder)


if __name__ == "__main__":
    main()
