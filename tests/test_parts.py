"""Parts on disk: written once, and read back whole or with a message."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llama_bench import folding, parts, results
from llama_bench.errors import InputError
from llama_bench.store import Store

from .a_run import REPLICATED, RUN, lengths, write_restart


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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
