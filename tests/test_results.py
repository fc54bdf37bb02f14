"""The runs of a store, however they are named, and their datasets."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from llama_bench import folding, parts, results, schemas
from llama_bench.errors import InputError
from llama_bench.store import Store

from .a_run import REPLICATED, RUN, write_restart
from .effort import calls


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_every_dataset_is_there_with_its_columns_when_nothing_was_measured(store: Store) -> None:
    results.write_run(store, RUN, {"sweep": {}})
    frames = results.scan(Path(store.uri) / RUN)
    assert set(frames) == set(schemas.SCHEMAS)
    write_restart(store, "c", 0)
    full = results.scan(Path(store.uri) / RUN)
    for name, frame in frames.items():
        assert frame.collect_schema().names() == schemas.SCHEMAS[name].names
        assert frame.collect().height == 0
        assert frame.collect_schema() == full[name].collect().schema, name


def test_a_run_is_written_once_and_runs_are_listed_newest_first(store: Store) -> None:
    names = [f"2026112{n}-131502-ab12cd34" for n in (3, 1, 2)]
    for name in names:
        assert results.write_run(store, f"sweep/{name}", {"created_at": name, "cells": []})
    assert not results.write_run(store, f"sweep/{names[0]}", {"created_at": "again"})
    assert results.runs(store, "sweep") == sorted(names, reverse=True)
    assert results.read_run(store, f"sweep/{names[0]}") == {"created_at": names[0], "cells": []}
    assert results.runs(store, "nothing") == [] and results.runs(store, "artifacts") == []
    with pytest.raises(InputError, match=rf"no such run; did you mean '{names[0]}'"):
        results.read_run(store, f"sweep/{names[0][:-1]}5")
    store.put(f"sweep/{names[0]}/run.json", b'{"cut', create=False)
    with pytest.raises(InputError, match=r"run\.json: truncated, or not JSON"):
        results.read_run(store, f"sweep/{names[0]}")
    with pytest.raises(InputError, match="a sweep cannot be named 'weights'"):
        results.write_run(store, "weights/x", {})


def test_a_path_may_be_a_run_a_sweep_or_a_store_and_means_the_newest(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(store.uri)
    old, new = "20261101-000000-aaaaaaaa", "20261102-000000-aaaaaaaa"
    for name in (new, old):
        results.write_run(store, f"a/{name}", {})
    store.put("artifacts/x/manifest.json", b"{}")
    for path, run in ((root / "a" / old, old), (f"{root}/a/{old}/", old), (root / "a", new), (root, new)):
        found, name = results.locate(path)
        assert (found.uri, name) == (store.uri, f"a/{run}")
    monkeypatch.chdir(root / "a" / old)
    assert results.locate(".")[1] == f"a/{old}"
    results.write_run(store, f"b/{old}", {})
    with pytest.raises(InputError, match=f"several sweeps: name one of {root}/a, {root}/b"):
        results.locate(root)
    with pytest.raises(InputError, match="no run of llama_bench here"):
        results.locate(root / "artifacts")
    with pytest.raises(InputError, match="no such folder"):
        results.locate(root / "nothing")


def test_results_of_a_remote_store_are_found_and_vouched_for_through_it(tmp_path: Path) -> None:
    """Without a server polars cannot scan here; everything up to that point is the same as with one."""
    store = Store("memory://bucket", cache=tmp_path)
    for restart in range(2):
        write_restart(store, "c", restart)
    write_restart(store, "c", 2, finished=False)
    assert [part.stem for part in parts.counting_parts(store, RUN)["timings"]] == ["c-r0000", "c-r0001"]
    folding.fold(store, RUN, "c")
    counting = parts.counting_parts(store, RUN)
    assert [part.stem for part in counting["timings"]] == ["c"] == [part.stem for part in counting["pieces"]]
    assert store.url(counting["timings"][0].key) == f"memory://bucket/{RUN}/timings/c.parquet"
    store.put(f"{RUN}/timings/c.parquet", b"torn", create=False)
    with pytest.raises(InputError, match=r"memory://bucket/.*/timings/c\.parquet: truncated"):
        parts.counting_parts(store, RUN)


def test_of_thousands_of_parts_each_footer_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many seconds that takes is what benchmarks/scale.py measures."""
    restarts = 400
    write_restart(store, "c", 0)
    for dataset in (*REPLICATED, "pieces"):
        first = Path(store.url(f"{RUN}/{dataset}/c-r0000.parquet"))
        for restart in range(1, restarts):
            os.link(first, first.with_name(f"c-r{restart:04d}.parquet"))
    read = []
    monkeypatch.setattr(parts, "footer", lambda store, key, of=parts.footer: (read.append(key), of(store, key))[1])
    frames = results.scan(Path(store.uri) / RUN)
    assert len(read) == len(set(read)) == restarts * (len(REPLICATED) + 1)
    assert frames["timings"].select(pl.len()).collect().item() == 3 * restarts


def test_scanning_grows_with_the_parts_and_no_faster(store: Store) -> None:
    def effort(cell: str, restarts: int) -> int:
        for restart in range(restarts):
            write_restart(store, cell, restart)
        return calls(lambda: results.scan(Path(store.uri) / RUN))

    one, both = effort("c0", 30), effort("c1", 270)
    assert both < 1.1 * 10 * one


def test_duckdb_reads_the_same_rows_from_the_files(store: Store) -> None:
    import duckdb

    write_restart(store, "c0", 0)
    write_restart(store, "c0", 1)
    found = duckdb.sql(f"SELECT restart, recipe FROM read_parquet('{store.uri}/{RUN}/timings/*.parquet')").fetchall()
    expected = results.scan(Path(store.uri) / RUN)["timings"].select("restart", "recipe").collect().rows()
    assert sorted(found) == sorted(expected)
    assert len(found) == 6


def test_one_cell_can_be_read_without_looking_at_the_parts_of_others(store: Store) -> None:
    for cell in ("c", "c2", "d"):
        write_restart(store, cell, 0)
    folding.fold(store, RUN, "d")
    assert set(results.scan(store.url(RUN), "c")["timings"].collect()["cell"]) == {"c"}
    assert set(results.scan(store.url(RUN), "d")["timings"].collect()["cell"]) == {"d"}
    counting = parts.counting_parts(store, RUN, "c")
    assert {part.stem for part in counting["timings"]} == {"c-r0000"}
    parts.write_part(store, RUN, "ceilings", "ceilings-B-0", [{"what": "read"}])
    assert results.scan(store.url(RUN), "c")["ceilings"].collect().height == 1
