"""A finished cell's parts become one: few large files are read faster than many small ones, and listed faster."""

from __future__ import annotations

import io
import re

from llama_bench.parts import as_parquet, finished, footer, key_of
from llama_bench.schemas import SCHEMAS
from llama_bench.store import Store

FOLDED = ("timings", "blocks", "accuracy", "generations", "machines", "pieces")
"""Datasets of which a finished cell's parts become one, in this order: `pieces` makes the others count."""


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
            held = footer(store, key_of(run, dataset, cell)).holds & stems[dataset]
            store.delete(key_of(run, dataset, stem) for stem in sorted(held))


def _write_folded(store: Store, run: str, cell: str, dataset: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stems = finished(store, run)
    wanted = sorted(stem for stem in stems["pieces"] & stems[dataset] if _is_restart(stem, cell))
    if not wanted:
        return
    tables = []
    for stem in wanted:
        footer(store, key_of(run, dataset, stem))  # says so when it is truncated or of another version
        tables.append(pq.read_table(io.BytesIO(store.get(key_of(run, dataset, stem)))).cast(SCHEMAS[dataset]))
    # An interrupted fold may have left a part with fewer restarts: it stays, and the others stay beside it.
    store.put(key_of(run, dataset, cell), as_parquet(dataset, pa.concat_tables(tables), wanted))


def _is_restart(stem: str, cell: str) -> bool:
    return re.fullmatch(re.escape(cell) + r"-r\d+", stem) is not None
