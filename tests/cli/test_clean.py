"""`clean`, on a real store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from llama_bench.cli.main import make_app
from llama_bench.results import write_run
from llama_bench.store import Store


def _save(store: Store, artifact: str, scratch: Path, weight: float) -> None:
    """Save a product with one weight of 4 KiB."""
    scratch.mkdir()
    values = numpy_helper.from_array(np.full((32, 32), weight, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [values],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), scratch / "model.onnx")
    store.save(artifact, scratch, {"label": artifact})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three artifacts; two share a weight; a run needs one of these."""
    store = Store(tmp_path / "results")
    _save(store, "needed", tmp_path / "a", 1.0)
    _save(store, "shares", tmp_path / "b", 1.0)
    _save(store, "alone", tmp_path / "c", 2.0)
    write_run(store, "sweep/20260102T030405Z-f00d", {"sweep": {}, "artifacts": ["needed"]})
    return store


def test_what_no_run_needs_goes_and_a_shared_weight_stays(store: Store) -> None:
    result = CliRunner().invoke(make_app(), ["clean", store.uri])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("removed 2 artifacts and 1 weights, ")
    assert [store.has(name) for name in ("needed", "shares", "alone")] == [True, False, False]
    assert len(store.keys("weights")) == 1
    assert (store.fetch("needed") / "model.onnx").is_file()


def test_a_dry_run_says_the_same_and_removes_nothing(store: Store) -> None:
    before = store.keys("")
    said = CliRunner().invoke(make_app(), ["clean", store.uri, "--dry-run"]).stdout
    assert store.keys("") == before
    assert said.replace("would remove", "removed") == CliRunner().invoke(make_app(), ["clean", store.uri]).stdout


def test_a_run_that_does_not_say_what_it_needs_stops_the_cleaning(store: Store) -> None:
    write_run(store, "sweep/20260102T030406Z-f00d", {"sweep": {}})
    result = CliRunner().invoke(make_app(), ["clean", store.uri])
    assert result.exit_code == 2
    assert "20260102T030406Z-f00d" in result.stderr
    assert store.has("alone")


def test_what_a_named_sweep_needs_stays(store: Store, tmp_path: Path) -> None:
    from llama_bench import versions
    from llama_bench.cli.common import read_sweep
    from llama_bench.plan import make

    file = tmp_path / "tiny.yaml"
    file.write_text(
        "name: tiny\n"
        "models: {sizes: [{hidden_size: 16, num_attention_heads: 2, vocab_size: 64}]}\n"
        "recipes: {original: {}}\n"
        "workloads: {prefill: {sequence: 8}}\n"
        "targets: {cpu: {tag: bench_cpu}}\n"
    )
    export, _ = make(read_sweep(file), versions.stages()).artifacts
    _save(store, export, tmp_path / "d", 3.0)
    assert CliRunner().invoke(make_app(), ["clean", store.uri, "--sweep", str(file)]).exit_code == 0
    assert store.has(export)
    assert CliRunner().invoke(make_app(), ["clean", store.uri]).exit_code == 0
    assert not store.has(export)


def test_a_store_that_does_not_exist_is_wrong_input_and_is_not_made(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["clean", str(tmp_path / "none")])
    assert result.exit_code == 2
    assert not (tmp_path / "none").exists()


def test_quiet_says_nothing_and_removes_all_the_same(store: Store) -> None:
    result = CliRunner().invoke(make_app(), ["clean", store.uri, "--quiet"])
    assert (result.exit_code, result.output) == (0, "")
    assert not store.has("alone")
