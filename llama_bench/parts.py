"""One Parquet part a finished piece: its name, its rows, its footer, and which parts count.

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
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, WorkError, nearest
from llama_bench.schemas import READABLE, SCHEMA_VERSION, SCHEMAS, SORT
from llama_bench.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

UNVOUCHED = ("failures", "ceilings")
"""Datasets whose parts always count: a failure is true even when its piece never finished."""

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
    return store.put(key_of(run, dataset, stem), as_parquet(dataset, table))


def key_of(run: str, dataset: str, stem: str) -> str:
    if not _NAME.fullmatch(stem):
        raise ValueError(f"{stem!r} cannot name a part")
    return f"{checked(run)}/{dataset}/{stem}.parquet"


def checked(run: str) -> str:
    if not all(_NAME.fullmatch(name) for name in run.split("/")) or run.count("/") != 1:
        raise ValueError(f"{run!r} is not <sweep>/<run id>")
    return run


def as_parquet(dataset: str, table: pa.Table, holds: Sequence[str] = ()) -> bytes:
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


def finished(store: Store, run: str) -> dict[str, set[str]]:
    """Return the stems of every dataset's parts, from listings alone; a piece is finished when `pieces` has it."""
    stems: dict[str, set[str]] = {dataset: set() for dataset in SCHEMAS}
    for key in store.keys(checked(run)):
        dataset, _, name = key.removeprefix(f"{run}/").partition("/")
        if dataset in stems and name.endswith(".parquet") and "/" not in name:
            stems[dataset].add(name.removesuffix(".parquet"))
    return stems


def stems_of(store: Store, run: str, dataset: str) -> set[str]:
    """Return the stems of one dataset's parts, from one listing."""
    names = (key.rpartition("/")[2] for key in store.keys(f"{checked(run)}/{dataset}"))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def has_part(store: Store, run: str, dataset: str, stem: str) -> bool:
    """Return whether the part `stem` of `dataset` is there."""
    return store.length(key_of(run, dataset, stem)) is not None


def counting_parts(store: Store, run: str, cell: str | None = None) -> dict[str, list[Part]]:
    """Return the parts of every dataset whose rows count, by stem; with `cell` those of that cell and of no cell."""
    for _ in range(_TRIES):
        try:
            stems = finished(store, run)
            if cell is not None:
                stems = {dataset: {stem for stem in found if _concerns(stem, cell)} for dataset, found in stems.items()}
            with ThreadPoolExecutor(8) as pool:
                keys = [key_of(run, dataset, stem) for dataset, found in stems.items() for stem in sorted(found)]
                parts = list(pool.map(lambda key: footer(store, key), keys))
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


def footer(store: Store, key: str) -> Part:
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
