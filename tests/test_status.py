"""How far a run is, by what lies in its store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_bench import status
from llama_bench.claims import Claims
from llama_bench.errors import InputError
from llama_bench.store import Store

RUN = "sweep/20260101-000000-aaaaaaaa"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def begin(store: Store, cells: int = 4, **more: Any) -> None:
    """Write the run.json of a run of `cells` cells and three artifacts."""
    from llama_bench import results

    entries = [{"id": f"{n:016x}", "model": f"m{n}", "workload": "prefill", "target": "cpu"} for n in range(cells)]
    info = {"created_at": "2026-01-01T00:00:00+00:00", "artifacts": ["a", "b", "c"], "cells": entries}
    results.write_run(store, RUN, {**info, **more})


def part(store: Store, dataset: str, stem: str) -> None:
    store.put(f"{RUN}/{dataset}/{stem}.parquet", b"never opened")


def test_a_cell_is_what_its_parts_say(store: Store) -> None:
    begin(store)
    part(store, "pieces", f"{0:016x}")
    part(store, "pieces", f"{0:016x}-x")
    part(store, "pieces", f"{1:016x}-x")
    part(store, "pieces", f"{1:016x}-r0000")
    part(store, "pieces", f"{1:016x}-r0001")
    part(store, "timings", f"{1:016x}-r0002")  # a restart that has not finished
    part(store, "failures", f"{1:016x}-f0000")
    part(store, "failures", f"{2:016x}-c0000")
    found = status.read(store, RUN)
    assert [(cell.state, cell.restarts, cell.failures) for cell in found.cells] == [
        ("finished", 0, 0), ("measuring", 2, 1), ("failed", 0, 1), ("waiting", 0, 0)
    ]  # fmt: skip
    assert [found.count(state) for state in status.STATES] == [1, 1, 1, 1]
    assert found.count("finished", "cpu") == 1
    assert found.count("finished", "gpu") == 0
    assert not found.finished


def test_an_artifact_is_built_when_its_manifest_is_there(store: Store) -> None:
    begin(store)
    store.put("artifacts/a/manifest.json", b"{}")
    store.put("artifacts/b/model.onnx", b"half saved")
    store.put("artifacts/of_another_sweep/manifest.json", b"{}")
    part(store, "failures", "build-c-0")
    found = status.read(store, RUN)
    assert (found.built, found.artifacts, found.build_failures) == (1, 3, 1)


def test_a_run_is_finished_without_the_targets_that_nobody_serves(store: Store) -> None:
    begin(store, cells=1, unserved={"cpu": "no node offers bench_cpu"})
    assert status.read(store, RUN).finished
    assert status.read(store, RUN).unserved == {"cpu": "no node offers bench_cpu"}


def test_who_works_on_it_is_said(store: Store) -> None:
    begin(store)
    with Claims(store, RUN) as held:
        assert status.read(store, RUN).drivers == (held.driver,)
    assert status.read(store, RUN).drivers == ()


def test_what_is_no_run_is_said(store: Store) -> None:
    begin(store)
    with pytest.raises(InputError, match="no such run"):
        status.read(store, "sweep/20260101-000000-bbbbbbbb")
