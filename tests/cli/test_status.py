"""`status` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_bench import results
from llama_bench.claims import Claims
from llama_bench.cli.main import make_app
from llama_bench.store import Store

RUN = "sweep/20260101-000000-aaaaaaaa"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a run of two cells, one finished, on a target that is served and one that is not."""
    store = Store(tmp_path / "store")
    cells = [{"id": f"{n:016x}", "model": f"m{n}", "workload": "prefill", "target": "AB"[n]} for n in range(2)]
    info = {"created_at": "2026-01-01T00:00:00+00:00", "artifacts": ["a"], "cells": cells}
    results.write_run(store, RUN, {**info, "unserved": {"B": "no node offers bench_gpu"}})
    store.put(f"{RUN}/pieces/{0:016x}.parquet", b"")
    return store


def test_it_counts_cells_says_who_works_and_names_unserved_targets(store: Store) -> None:
    with Claims(store, RUN) as held:
        done = CliRunner().invoke(make_app(), ["status", store.uri, "--cells"])
        assert f"working  {held.driver}" in done.stdout
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["A", "1", "0", "0", "0"] in lines
    assert ["B", "0", "0", "0", "1"] in lines
    assert ["m0/prefill/A", "finished"] in lines
    assert "built    0 of 1 artifacts" in done.stdout
    assert "target B was not measured: no node offers bench_gpu" in done.stderr
    assert "working  nobody" in CliRunner().invoke(make_app(), ["status", store.uri]).stdout


def test_json_says_whether_anything_is_left(store: Store) -> None:
    found = json.loads(CliRunner().invoke(make_app(), ["status", store.url(RUN), "--json"]).stdout)
    assert found["finished"] is True
    assert [cell["state"] for cell in found["cells"]] == ["finished", "waiting"]


def test_a_place_without_runs_is_wrong_input(tmp_path: Path) -> None:
    done = CliRunner().invoke(make_app(), ["status", str(tmp_path)])
    assert done.exit_code == 2
    assert "no run of llama_bench here" in done.stderr
