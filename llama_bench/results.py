"""The runs of a store: their run.json, the one that a path means, and their datasets as LazyFrames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, nearest
from llama_bench.parts import checked, counting_parts
from llama_bench.schemas import SCHEMAS
from llama_bench.store import RESERVED, Store

if TYPE_CHECKING:
    import polars as pl

BY_CELL = ("timings",)
"""Datasets so large that what is made of them is made cell by cell."""

VERSION_1 = {"kept": True, "phase": "main"}
"""Columns that version 1 did not have → what they would have held."""


def write_run(store: Store, run: str, info: Mapping[str, Any]) -> bool:
    """Write `info` as the run's run.json; False when there is one, which stays as it is."""
    sweep = run.partition("/")[0]
    if sweep in RESERVED:
        raise InputError(f"a sweep cannot be named {sweep!r}: the store keeps its {sweep} there")
    return store.put(f"{checked(run)}/run.json", json.dumps(info, indent=1, sort_keys=True).encode())


def runs(store: Store, sweep: str) -> list[str]:
    """Return the ids of the sweep's runs, newest first (a run's id begins with its time)."""
    if sweep in RESERVED:
        return []
    return [name for name in reversed(store.folders(sweep)) if _is_run(store, f"{sweep}/{name}")]


def read_run(store: Store, run: str) -> dict[str, Any]:
    """Return the run's run.json; InputError when there is none or it is torn."""
    key = f"{checked(run)}/run.json"
    if store.length(key) is None:
        sweep, _, name = run.partition("/")
        raise InputError(f"{store.url(key)}: no such run{nearest(name, runs(store, sweep))}")
    try:
        info = json.loads(store.get(key))
        if not isinstance(info, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise InputError(f"{store.url(key)}: truncated, or not JSON ({error})") from error
    return info


def locate(path: str | Path) -> tuple[Store, str]:
    """Return the store and the run (`<sweep>/<run id>`) that `path` means: a run, a sweep's newest, a store's newest.

    Raises InputError when there is no run at `path`, or a store has several sweeps with runs, and names them.
    """
    text = str(path).rstrip("/") or "/"
    if "://" not in text:
        text = str(Path(text).expanduser().resolve())
    here = Store(text, write=False)
    if _is_run(here, ""):
        base, sweep, name = text.rsplit("/", 2)
        return Store(base or "/", write=False), f"{sweep}/{name}"
    if newest := next((name for name in reversed(here.folders("")) if _is_run(here, name)), None):
        base, sweep = text.rsplit("/", 1)
        return Store(base or "/", write=False), f"{sweep}/{newest}"
    found = {sweep: names[0] for sweep in here.folders("") if (names := runs(here, sweep))}
    if len(found) == 1:
        [(sweep, newest)] = found.items()
        return here, f"{sweep}/{newest}"
    if not found:
        raise InputError(f"{here.label}: no run of llama_bench here (a run's folder, a sweep's or a store is meant)")
    raise InputError(f"{here.label} has several sweeps: name one of {', '.join(here.url(sweep) for sweep in found)}")


class Datasets(dict[str, "pl.LazyFrame"]):
    """A LazyFrame for each dataset of a run; and for each cell alone, where that is all that is needed at a time.

    Those of a cell alone leave a null where version 1 did not have a column (`VERSION_1`): to fill it takes a pass.
    """

    def __init__(self, frames: Mapping[str, pl.LazyFrame], by_cell: Mapping[str, Sequence[pl.LazyFrame]]) -> None:
        super().__init__(frames)
        self.by_cell = by_cell


def scan(path: str | Path, cell: str | None = None) -> Datasets:
    """Return a LazyFrame for every dataset of the run at `path` (see :func:`locate`), without what did not finish.

    With `cell` only the parts of that cell and of no cell are looked at: a run of thousands has many more. Raises
    InputError for a truncated part or one of another schema version, naming the file.
    """
    store, run = locate(path)
    parts = counting_parts(store, run, cell)
    files = {dataset: {part.stem: store.url(part.key) for part in found} for dataset, found in parts.items()}
    frames = {dataset: _frame(dataset, list(found.values())) for dataset, found in files.items()}
    return Datasets(frames, {dataset: _by_cell(dataset, files[dataset]) for dataset in BY_CELL})


def _by_cell(dataset: str, files: Mapping[str, str]) -> list[pl.LazyFrame]:
    """Return a LazyFrame for each cell whose parts are among `files` (stem → file), nulls left as they are."""
    cells: dict[str, list[str]] = {}
    for stem, file in files.items():
        cells.setdefault(stem.partition("-")[0], []).append(file)
    columns = _columns(dataset)  # once: made for each cell, they would take as long as all else here
    return [_read(found, columns) for found in cells.values()]


def _frame(dataset: str, files: list[str]) -> pl.LazyFrame:
    import polars as pl

    columns = _columns(dataset)
    frame = _read(files, columns) if files else pl.LazyFrame(schema=columns)
    return frame.with_columns(
        pl.col(column).fill_null(value) for column, value in VERSION_1.items() if column in columns
    )


def _columns(dataset: str) -> pl.Schema:
    import polars as pl

    return pl.DataFrame(SCHEMAS[dataset].empty_table()).schema


def _read(files: list[str], columns: pl.Schema) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(files, schema=columns, missing_columns="insert", hive_partitioning=False, glob=False)


def _is_run(store: Store, prefix: str) -> bool:
    return bool(set(store.folders(prefix)) & set(SCHEMAS)) or (
        store.length(f"{prefix}/run.json" if prefix else "run.json") is not None
    )
