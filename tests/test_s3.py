"""A store in an S3 of this machine: what a folder is trusted with, it is trusted with too."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llama_bench import folding, parts, results, status
from llama_bench.claims import Claims
from llama_bench.errors import InputError, StoreError, WorkError
from llama_bench.store import Store, clean, weight_key

RUN = "sweep/20260101-000000-aaaaaaaa"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Serve S3 on the loopback address; yield its address."""
    from moto.server import ThreadedMotoServer

    found = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    found.start()
    host, port = found.get_host_and_port()
    yield f"http://{host}:{port}"
    found.stop()


@pytest.fixture
def place(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket of the test's own; credentials are in the environment, as users have them."""
    import urllib.request

    bucket = f"test{abs(hash(tmp_path)):x}"
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_REGION": "us-east-1",
        "LLAMA_BENCH_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{server}/{bucket}", method="PUT"), timeout=60).close()
    return f"s3://{bucket}/results"


def test_a_key_is_made_once_and_the_second_writer_is_told(place: str) -> None:
    store, other = Store(place), Store(place)
    assert store.put("a/b", b"first")
    assert not other.put("a/b", b"second")
    assert other.get("a/b") == b"first"
    assert store.put("a/b", b"third", create=False)
    assert other.get("a/b") == b"third"
    assert store.keys("a") == ["a/b"]


def test_of_many_writers_at_once_one_wins(place: str) -> None:
    won: list[int] = []

    def write(number: int) -> None:
        if Store(place).put("contested", bytes([number])):
            won.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(won) == 1
    assert Store(place).get("contested") == bytes(won)


def test_claims_are_kept_apart_and_let_go(place: str) -> None:
    store = Store(place)
    with Claims(store, RUN) as first, Claims(Store(place), RUN) as second:
        assert first.take("cell") is None
        assert second.take("cell") == first.driver
        first.release(["cell"])
        assert second.take("cell") is None
    assert store.keys(RUN) == []


def test_an_artifact_is_fetched_whole_and_one_that_was_altered_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import TensorProto, helper, numpy_helper, save_model

    weight = np.arange(4096, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096])],
        [numpy_helper.from_array(weight, "w")],
    )
    (tmp_path / "made").mkdir()
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "made/model.onnx")
    store = Store(place)
    manifest = store.save("artifact", tmp_path / "made", {"label": "a"})
    [(sha, length)] = manifest["weights"]
    folder = Store(place).fetch("artifact")
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / sha).stat().st_size == length == weight.nbytes
    assert np.array_equal(np.fromfile(folder / sha, np.float32), weight)
    store.put(weight_key(sha), bytes(length), create=False)
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(tmp_path / "another_node"))
    with pytest.raises(WorkError, match="truncated or altered"):
        Store(place).fetch("artifact")
    assert clean(store, set()).artifacts == 1
    assert store.keys("artifacts") == store.keys("weights") == []


def test_parts_are_read_back_and_a_run_is_looked_at_from_anywhere(place: str) -> None:
    store = Store(place)
    cell = f"{1:016x}"
    info = {"created_at": "2026-01-01T00:00:00+00:00", "artifacts": ["a"], "sweep": {}, "cells": []}
    entry = {"id": cell, "model": "m", "workload": "prefill", "target": "cpu"}
    results.write_run(store, RUN, {**info, "cells": [entry]})
    for restart in range(2):
        stem = f"{cell}-r{restart:04d}"
        row = {"cell": cell, "restart": restart}
        assert parts.write_part(store, RUN, "blocks", stem, [{**row, "recipe": "original", "log_seconds": 0.0}])
        assert parts.write_part(store, RUN, "pieces", stem, [{**row, "piece": stem, "kind": "restart"}])
        assert not parts.write_part(store, RUN, "pieces", stem, [{"piece": "another"}])
    assert status.read(store, RUN).cells[0].restarts == 2
    folding.fold(store, RUN, cell)
    assert store.keys(f"{RUN}/pieces") == [f"{RUN}/pieces/{cell}.parquet"]
    frames = results.scan(f"{place}/{RUN}")
    assert frames["blocks"].select("restart").collect()["restart"].to_list() == [0, 1]
    [timings] = results.locate(place)[1:]
    assert timings == RUN
    assert status.read(store, RUN).cells[0].state == "finished"


def test_a_bucket_that_is_not_there_or_an_s3_that_is_gone_is_said_in_a_line_without_secrets(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError) as missing:
        Store("s3://no-such-bucket/results")
    assert "cannot be written" in str(missing.value)
    assert "hush" not in str(missing.value)
    assert "\n" not in str(missing.value)
    store = Store(place)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError) as gone:
        Store(place, write=False).get("x")
    # what --debug prints too: every error that this one came from
    assert "hush" not in "".join(traceback.format_exception(missing.value) + traceback.format_exception(gone.value))
    assert "hush" not in os.fsdecode(b"".join(store.get(key) for key in store.keys("")))


def written_secrets(store: Store, run: str) -> list[str]:
    """Return where the credentials of the test stand: in a file as it is, or in what a part, compressed, says."""
    kept = [key for key in store.keys("") if b"hush" in store.get(key)]
    frames = results.scan(store.url(run))
    said = {name: repr(frame.collect().rows()) for name, frame in frames.items()}
    assert len(said["variants"]) > 100
    return kept + [name for name, rows in said.items() if "hush" in rows]


@pytest.mark.ray
def test_a_sweep_runs_into_it_and_nothing_secret_is_written(
    place: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import llama_bench
    from llama_bench.cluster import driver
    from llama_bench.sweep import Sweep

    from .cluster.conftest import TINY

    store = Store(place)
    result = driver.run(Sweep.model_validate(TINY), store)
    assert (result.measured, result.failures) == (1, [])
    assert llama_bench.load(place).speedups.collect().height == 4
    again = driver.run(Sweep.model_validate(TINY), store)
    assert (again.run, again.measured, again.reused) == (result.run, 0, 1)
    assert written_secrets(store, result.run) == []
    assert "hush" not in "".join(capfd.readouterr())
    assert not [key for key in store.keys(result.run) if "/claims/" in key or "/drivers/" in key]
