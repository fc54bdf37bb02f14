"""Parts on disk: written once, folded without a moment of doubt, and read back whole or with a message."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_bench import folding, parts, results, schemas
from llama_bench.errors import InputError
from llama_bench.store import Store

RUN = "sweep/20261123-131502-ab12cd34"
REPLICATED = ("timings", "blocks", "accuracy", "machines")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def rows(cell: str, restart: int, count: int = 3) -> list[dict[str, Any]]:
    return [{"cell": cell, "restart": restart, "group": 0, "recipe": f"r{n}"} for n in range(count)]


def write_restart(store: Store, cell: str, restart: int, *, finished: bool = True, run: str = RUN) -> None:
    stem = f"{cell}-r{restart:04d}"
    for dataset in REPLICATED:
        parts.write_part(store, run, dataset, stem, rows(cell, restart))
    if finished:
        piece = {"piece": stem, "kind": "restart", "cell": cell, "restart": restart, "wall_s": 1.5}
        parts.write_part(store, run, "pieces", stem, [piece])


def contents(store: Store, run: str = RUN) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that scan gives, in one order."""
    frames = results.scan(Path(store.uri) / run)
    return {name: sorted(frame.collect().rows(), key=repr) for name, frame in frames.items()}


def lengths(store: Store, run: str = RUN) -> Mapping[str, int]:
    return {name: len(found) for name, found in contents(store, run).items() if found}


# --- writing and reading ----------------------------------------------------------------------------------------


def test_a_part_comes_back_sorted_typed_and_with_its_version(store: Store) -> None:
    at = datetime(2026, 11, 23, 13, 15, 2, 123456, tzinfo=UTC)
    given_rows = [
        {"cell": "c", "restart": 0, "group": 0, "block": b, "position": p, "seconds": 0.5, "process_started_at": at}
        for b, p in ((1, 0), (0, 1), (0, 0))
    ]
    assert parts.write_part(store, RUN, "timings", "c-r0000", given_rows)
    parts.write_part(store, RUN, "pieces", "c-r0000", [{"piece": "c-r0000"}])
    frame = results.scan(Path(store.uri) / RUN)["timings"].collect()
    assert frame.select("block", "position").rows() == [(0, 0), (0, 1), (1, 0)]
    assert frame["process_started_at"].to_list() == [at] * 3 and frame["recipe"].to_list() == [None] * 3
    written = pq.read_metadata(store.url(f"{RUN}/timings/c-r0000.parquet"))
    assert written.metadata[b"llama_bench.schema_version"] == b"3"
    assert written.row_group(0).column(0).compression == "ZSTD"


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


def test_only_one_of_two_writers_of_a_part_wins(store: Store) -> None:
    def write(n: int) -> bool:
        return parts.write_part(store, RUN, "failures", "build-a", [{"message": f"writer {n}"}])

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(write, range(8)))
    assert won.count(True) == 1
    assert results.scan(Path(store.uri) / RUN)["failures"].collect()["message"].to_list() == [
        f"writer {won.index(True)}"
    ]


def test_a_column_that_a_dataset_does_not_have_is_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match=r"timings: no column \['second'\]; did you mean 'seconds'\?"):
        parts.write_part(store, RUN, "timings", "c-r0000", [{"second": 1.0}])
    for run, stem in (("sweep", "c"), ("../x", "c"), ("a/b/c", "c"), (RUN, "../c"), (RUN, "a/b"), (RUN, "")):
        with pytest.raises(ValueError, match=r"is not <sweep>/<run id>|cannot name a part"):
            parts.write_part(store, run, "timings", stem, [])
    assert store.keys("") == []


def test_what_no_finished_piece_vouches_for_is_left_out(store: Store) -> None:
    write_restart(store, "c", 0)
    write_restart(store, "c", 1, finished=False)
    parts.write_part(store, RUN, "variants", "c-x", [{"cell": "c", "recipe": "r"}])
    parts.write_part(store, RUN, "failures", "c-r0001", [{"cell": "c", "message": "killed"}])
    expected = dict.fromkeys(REPLICATED, 3) | {"pieces": 1, "failures": 1}
    assert lengths(store) == expected, "half a restart and an unfinished examination do not count; a failure does"
    parts.write_part(store, RUN, "pieces", "c-x", [{"piece": "c-x"}])
    assert lengths(store) == expected | {"pieces": 2, "variants": 1}
    assert parts.finished(store, RUN)["pieces"] == {"c-r0000", "c-x"}
    assert parts.finished(store, RUN)["timings"] == {"c-r0000", "c-r0001"}


# --- folding ----------------------------------------------------------------------------------------------------


def test_a_fold_that_stops_after_any_step_shows_the_same_rows(store: Store) -> None:
    for cell in ("c", "c-r", "cc"):  # names that begin alike
        for restart in range(3):
            write_restart(store, cell, restart)
    write_restart(store, "c", 3, finished=False)
    parts.write_part(store, RUN, "failures", "c-r0003", [{"cell": "c", "message": "killed"}])
    before = contents(store)
    for _ in range(2):  # the second time, everything is done already
        for step in (folding.write_folded, folding.commit_folded, folding.delete_folded):
            step(store, RUN, "c")
            assert contents(store) == before, step.__name__
    assert {stem for stem in parts.finished(store, RUN)["timings"] if stem.startswith("c-r0")} == {"c-r0003"}
    assert "c" in parts.finished(store, RUN)["pieces"]


def test_a_fold_that_stops_between_two_parts_shows_the_same_rows(store: Store) -> None:
    for restart in range(3):
        write_restart(store, "c", restart)
    before = contents(store)
    operations = 0

    class Stops(Store):
        """A store whose process dies at the n-th change."""

        left = 0

        def _count(self) -> None:
            nonlocal operations
            operations += 1
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1

        def put(self, key: str, data: bytes | memoryview, *, create: bool = True) -> bool:
            self._count()
            return super().put(key, data, create=create)

        def delete(self, keys: Any) -> None:
            for key in keys:
                self._count()
                super().delete([key])

    for n in range(100):
        stopping = Stops(store.uri)
        stopping.left = n % 7
        try:
            folding.fold(stopping, RUN, "c")
        except KeyboardInterrupt:
            assert contents(store) == before
            continue
        break
    assert contents(store) == before
    assert operations > 15 and parts.finished(store, RUN)["timings"] == {"c"}


def test_restarts_that_come_after_an_interrupted_or_a_finished_fold_count_once(store: Store) -> None:
    write_restart(store, "c", 0)
    write_restart(store, "c", 1)
    folding.write_folded(store, RUN, "c")
    write_restart(store, "c", 2)
    before = contents(store)
    folding.fold(store, RUN, "c")
    assert contents(store) == before
    write_restart(store, "c", 3)
    assert lengths(store) == dict.fromkeys(REPLICATED, 12) | {"pieces": 4}
    folding.fold(store, RUN, "c")
    assert lengths(store) == dict.fromkeys(REPLICATED, 12) | {"pieces": 4}


def test_a_folded_part_is_sorted(store: Store) -> None:
    for restart in (10, 9, 11):
        write_restart(store, "c", restart)
    folding.fold(store, RUN, "c")
    table = pl.read_parquet(store.url(f"{RUN}/timings/c.parquet"))
    assert table["restart"].to_list() == [9] * 3 + [10] * 3 + [11] * 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["restart", "half", "write", "commit", "delete", "fold"]), max_size=14))
def test_no_order_of_writing_and_folding_loses_or_doubles_a_row(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    results.write_run(store, RUN, {})
    finished = 0
    for number, step in enumerate(steps):
        if step in ("restart", "half"):
            write_restart(store, "c", number, finished=step == "restart")
            finished += step == "restart"
        else:
            name = "fold" if step == "fold" else f"{step}_folded"
            if step == "commit" and "c" not in parts.finished(store, RUN)["pieces"]:
                folding.write_folded(store, RUN, "c")  # the step that comes before it
            getattr(folding, name)(store, RUN, "c")
        expected = dict.fromkeys(REPLICATED, 3 * finished) | {"pieces": finished} if finished else {}
        assert lengths(store) == expected


# --- what is wrong on disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 3, -1, -100], ids=["empty", "stub", "one byte", "footer"])
def test_a_truncated_part_is_named(store: Store, keep: int) -> None:
    write_restart(store, "c", 0)
    part = Path(store.url(f"{RUN}/blocks/c-r0000.parquet"))
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"blocks/c-r0000\.parquet: truncated, or not a Parquet part"):
        results.scan(Path(store.uri) / RUN)
    with pytest.raises(InputError, match=r"blocks/c-r0000\.parquet: truncated"):
        folding.fold(store, RUN, "c")
    assert part.exists(), "what was measured stays untouched"


def test_a_part_of_another_schema_version_is_named(store: Store) -> None:
    write_restart(store, "c", 0)
    part = store.url(f"{RUN}/timings/c-r0000.parquet")
    table = pq.read_table(part)
    pq.write_table(table.replace_schema_metadata({"llama_bench.schema_version": "99"}), part)
    with pytest.raises(
        InputError, match=r"c-r0000\.parquet: schema version 99, but this llama_bench reads versions 1 and 2"
    ):
        results.scan(Path(store.uri) / RUN)
    pq.write_table(table.replace_schema_metadata(None), part)
    with pytest.raises(InputError, match="schema version none"):
        results.scan(Path(store.uri) / RUN)


# --- runs -------------------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_twenty_thousand_parts_scan_in_seconds(store: Store) -> None:
    write_restart(store, "c", 0)
    for dataset in (*REPLICATED, "pieces"):
        first = Path(store.url(f"{RUN}/{dataset}/c-r0000.parquet"))
        for restart in range(1, 4000):
            os.link(first, first.with_name(f"c-r{restart:04d}.parquet"))
    start = time.perf_counter()
    frames = results.scan(Path(store.uri) / RUN)
    assert frames["timings"].select(pl.len()).collect().item() == 12_000
    assert time.perf_counter() - start < 15


# --- other readers ----------------------------------------------------------------------------------------------


def test_duckdb_reads_the_same_rows_from_the_files(store: Store) -> None:
    import duckdb

    write_restart(store, "c0", 0)
    write_restart(store, "c0", 1)
    found = duckdb.sql(f"SELECT restart, recipe FROM read_parquet('{store.uri}/{RUN}/timings/*.parquet')").fetchall()
    expected = results.scan(Path(store.uri) / RUN)["timings"].select("restart", "recipe").collect().rows()
    assert sorted(found) == sorted(expected)
    assert len(found) == 6


def test_a_part_of_version_1_is_read_with_what_its_missing_columns_would_have_held(store: Store) -> None:
    write_restart(store, "c", 0)
    for dataset in ("timings", "blocks", "pieces"):
        part = store.url(f"{RUN}/{dataset}/c-r0000.parquet")
        table = pq.read_table(part)
        older = table.drop_columns([name for name in ("phase", "kept", "busy_s") if name in table.column_names])
        pq.write_table(older.replace_schema_metadata({"llama_bench.schema_version": "1"}), part)
    frames = results.scan(store.url(RUN))
    timings = frames["timings"].collect()
    assert timings["kept"].to_list() == [True] * len(timings)
    assert set(timings["phase"]) == {"main"}
    assert timings["busy_s"].null_count() == len(timings)


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
