"""What lands on disk: one Parquet part a finished piece, folding a cell's parts into one, and reading them back.

A part is named by its piece: `build-<artifact>`, `<cell>-x` (examination), `<cell>-r<restart>`, `<cell>` (folded).
A piece counts once its part in `pieces` exists, which is written last; the rest of an unfinished piece is left out.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, WorkError, nearest
from llama_bench.schemas import READABLE, SCHEMA_VERSION, SCHEMAS, SORT
from llama_bench.store import RESERVED, Store

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

__all__ = ["SCHEMAS", "SCHEMA_VERSION", "SORT"]

UNVOUCHED = ("failures", "ceilings")
"""Datasets whose parts always count: a failure is true even when its piece never finished."""

FOLDED = ("timings", "blocks", "accuracy", "generations", "machines", "pieces")
"""Datasets of which a finished cell's parts become one, in this order: `pieces` makes the others count."""

BY_CELL = ("timings",)
"""Datasets so large that what is made of them is made cell by cell."""

VERSION_1 = {"kept": True, "phase": "main"}
"""Columns that version 1 did not have → what they would have held."""

_VERSION, _HOLDS = b"llama_bench.schema_version", b"llama_bench.holds"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FOOTER_BYTES = 1 << 20
_TRIES = 5  # listings that a writer may spoil before we give up


@dataclass(frozen=True)
class Part:
    """One Parquet file of a dataset, and, when it is folded, the stems of the pieces that it holds."""

    key: str
    stem: str
    holds: frozenset[str]


# --- writing ----------------------------------------------------------------------------------------------------


def write_part(store: Store, run: str, dataset: str, stem: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Write `rows` as the part `stem` of `dataset` in `run` (`<sweep>/<run id>`); False when the part exists.

    Rows are sorted by `SORT`; columns that a row leaves out are null. Write `pieces` last. Raises ValueError for a
    column that the dataset does not have, WorkError when the store cannot take the part.
    """
    import pyarrow as pa

    unknown = {key for row in rows for key in row} - set(SCHEMAS[dataset].names)
    if unknown:
        raise ValueError(f"{dataset}: no column {sorted(unknown)}{nearest(min(unknown), SCHEMAS[dataset].names)}")
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMAS[dataset])
    return store.put(_key(run, dataset, stem), _parquet(dataset, table))


def write_run(store: Store, run: str, info: Mapping[str, Any]) -> bool:
    """Write `info` as the run's run.json; False when there is one, which stays as it is."""
    sweep = run.partition("/")[0]
    if sweep in RESERVED:
        raise InputError(f"a sweep cannot be named {sweep!r}: the store keeps its {sweep} there")
    return store.put(f"{_checked(run)}/run.json", json.dumps(info, indent=1, sort_keys=True).encode())


def _key(run: str, dataset: str, stem: str) -> str:
    if not _NAME.fullmatch(stem):
        raise ValueError(f"{stem!r} cannot name a part")
    return f"{_checked(run)}/{dataset}/{stem}.parquet"


def _checked(run: str) -> str:
    if not all(_NAME.fullmatch(name) for name in run.split("/")) or run.count("/") != 1:
        raise ValueError(f"{run!r} is not <sweep>/<run id>")
    return run


def _parquet(dataset: str, table: pa.Table, holds: Sequence[str] = ()) -> bytes:
    """Return `table`, sorted, as Parquet, with our schema version (and the stems that a folded part holds) inside."""
    import pyarrow.parquet as pq

    order = [(name, "ascending") for name in SORT[dataset]]
    metadata = {_VERSION: str(SCHEMA_VERSION)} | ({_HOLDS: json.dumps(sorted(holds))} if holds else {})
    buffer = io.BytesIO()
    # Without Arrow's own copy of the schema a small part is half as large, and its footer is read faster.
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="zstd",
        store_schema=False,
        sorting_columns=pq.SortingColumn.from_ordering(table.schema, order),
    ) as writer:
        writer.write_table(table.sort_by(order))
        writer.add_key_value_metadata(metadata)
    return buffer.getvalue()


# --- folding ----------------------------------------------------------------------------------------------------


def fold(store: Store, run: str, cell: str) -> None:
    """Make one part of each dataset of the parts that a finished cell's restarts wrote (failures stay as they are).

    May stop anywhere: a folded part names the pieces that it holds, counts once `pieces` has it, and then hides
    theirs, so that a reader never sees a row twice or misses one. Restarts written later stay parts of their own.
    """
    write_folded(store, run, cell)
    commit_folded(store, run, cell)
    delete_folded(store, run, cell)


def write_folded(store: Store, run: str, cell: str) -> None:
    """First step of :func:`fold`: the folded parts but `pieces`; nothing reads them yet."""
    if cell not in finished(store, run)["pieces"]:
        for dataset in FOLDED[:-1]:
            _write_folded(store, run, cell, dataset)


def commit_folded(store: Store, run: str, cell: str) -> None:
    """Second step: the folded part of `pieces`, from which on the folded parts count."""
    if cell not in finished(store, run)["pieces"]:
        _write_folded(store, run, cell, "pieces")


def delete_folded(store: Store, run: str, cell: str) -> None:
    """Third step: delete the parts that the folded ones hold, `pieces` last."""
    stems = finished(store, run)
    if cell not in stems["pieces"]:
        return
    for dataset in FOLDED:
        if cell in stems[dataset]:
            held = _part(store, _key(run, dataset, cell)).holds & stems[dataset]
            store.delete(_key(run, dataset, stem) for stem in sorted(held))


def _write_folded(store: Store, run: str, cell: str, dataset: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stems = finished(store, run)
    wanted = sorted(stem for stem in stems["pieces"] & stems[dataset] if _is_restart(stem, cell))
    if not wanted:
        return
    tables = []
    for stem in wanted:
        _part(store, _key(run, dataset, stem))  # says so when it is truncated or of another version
        tables.append(pq.read_table(io.BytesIO(store.get(_key(run, dataset, stem)))).cast(SCHEMAS[dataset]))
    # An interrupted fold may have left a part with fewer restarts: it stays, and the others stay beside it.
    store.put(_key(run, dataset, cell), _parquet(dataset, pa.concat_tables(tables), wanted))


def _is_restart(stem: str, cell: str) -> bool:
    return re.fullmatch(re.escape(cell) + r"-r\d+", stem) is not None


# --- reading ----------------------------------------------------------------------------------------------------


def finished(store: Store, run: str) -> dict[str, set[str]]:
    """Return the stems of every dataset's parts, from listings alone; a piece is finished when `pieces` has it."""
    stems: dict[str, set[str]] = {dataset: set() for dataset in SCHEMAS}
    for key in store.keys(_checked(run)):
        dataset, _, name = key.removeprefix(f"{run}/").partition("/")
        if dataset in stems and name.endswith(".parquet") and "/" not in name:
            stems[dataset].add(name.removesuffix(".parquet"))
    return stems


def stems_of(store: Store, run: str, dataset: str) -> set[str]:
    """Return the stems of one dataset's parts, from one listing."""
    names = (key.rpartition("/")[2] for key in store.keys(f"{_checked(run)}/{dataset}"))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def has_part(store: Store, run: str, dataset: str, stem: str) -> bool:
    """Return whether the part `stem` of `dataset` is there."""
    return store.length(_key(run, dataset, stem)) is not None


def runs(store: Store, sweep: str) -> list[str]:
    """Return the ids of the sweep's runs, newest first (a run's id begins with its time)."""
    if sweep in RESERVED:
        return []
    return [name for name in reversed(store.folders(sweep)) if _is_run(store, f"{sweep}/{name}")]


def read_run(store: Store, run: str) -> dict[str, Any]:
    """Return the run's run.json; InputError when there is none or it is torn."""
    key = f"{_checked(run)}/run.json"
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


def counting_parts(store: Store, run: str, cell: str | None = None) -> dict[str, list[Part]]:
    """Return the parts of every dataset whose rows count, by stem; with `cell` those of that cell and of no cell."""
    for _ in range(_TRIES):
        try:
            stems = finished(store, run)
            if cell is not None:
                stems = {dataset: {stem for stem in found if _concerns(stem, cell)} for dataset, found in stems.items()}
            with ThreadPoolExecutor(8) as pool:
                keys = [_key(run, dataset, stem) for dataset, found in stems.items() for stem in sorted(found)]
                parts = list(pool.map(lambda key: _part(store, key), keys))
        except FileNotFoundError:  # folded since it was listed
            continue
        # A listing is no snapshot: only when no piece came or went meanwhile do its datasets belong together.
        now = {key.rpartition("/")[2].removesuffix(".parquet") for key in store.keys(f"{run}/pieces")}
        if stems["pieces"] == {stem for stem in now if cell is None or _concerns(stem, cell)}:
            return _counting(run, parts)
    raise WorkError(f"{store.url(run)}: its parts change faster than they can be listed; try again when it rests")


def _concerns(stem: str, cell: str) -> bool:
    """Whether a part is of this cell (`<cell>` folded, `<cell>-…`) or of no cell at all (`build-…`, `ceilings-…`)."""
    return stem == cell or stem.startswith((f"{cell}-", "build-", "ceilings-"))


def _counting(run: str, parts: Sequence[Part]) -> dict[str, list[Part]]:
    by_dataset: dict[str, list[Part]] = {dataset: [] for dataset in SCHEMAS}
    for part in parts:
        by_dataset[part.key.removeprefix(f"{run}/").partition("/")[0]].append(part)
    pieces = {part.stem for part in by_dataset["pieces"]}
    vouched = pieces.union(*(part.holds for part in by_dataset["pieces"]))
    counting = {}
    for dataset, found in by_dataset.items():
        hidden = {stem for part in found if part.stem in pieces for stem in part.holds}
        counting[dataset] = [
            part for part in found if dataset in UNVOUCHED or (part.stem in vouched and part.stem not in hidden)
        ]
    return counting


def _part(store: Store, key: str) -> Part:
    """Read the footer of a part. Raises InputError: truncated, or not of this schema version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = store.url(key)
    try:
        # A footer is some kilobytes, and all that is looked at; what is not local comes over the network.
        source = name if store.root is not None else io.BytesIO(store.tail(key, _FOOTER_BYTES))
        metadata = pq.read_metadata(source).metadata or {}
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{name}: truncated, or not a Parquet part: {str(error).splitlines()[0]}") from error
    version = metadata.get(_VERSION, b"none").decode()
    if version not in map(str, READABLE):
        able = " and ".join(map(str, READABLE))
        raise InputError(f"{name}: schema version {version}, but this llama_bench reads versions {able}")
    stem = key.rpartition("/")[2].removesuffix(".parquet")
    return Part(key, stem, frozenset(json.loads(metadata.get(_HOLDS, b"[]"))))


def _is_run(store: Store, prefix: str) -> bool:
    return bool(set(store.folders(prefix)) & set(SCHEMAS)) or (
        store.length(f"{prefix}/run.json" if prefix else "run.json") is not None
    )
