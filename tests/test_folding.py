"""Folding a cell's parts: at no moment is a row missing or there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_bench import folding, parts, results
from llama_bench.store import Store

from .a_run import REPLICATED, RUN, contents, lengths, write_restart


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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
