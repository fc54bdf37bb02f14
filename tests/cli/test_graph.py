"""`graph`: pictures of what a sweep's recipes do, of a run's variants and of any model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from llama_bench.cli.main import make_app

SWEEP = """
name: tiny
models:
  defaults: {num_hidden_layers: 2, vocab_size: 64, head: none, exporter: torchscript, opset: 17, attention_mask: true}
  sizes:
    - {hidden_size: 16, num_attention_heads: 2, intermediate_size: 24}
    - {hidden_size: 32, num_attention_heads: 2, intermediate_size: 24}
recipes:
  original: {}
  identity: {passes: [{onnxoptimizer: eliminate_identity}]}
  packed:
    passes:
      - onnxoptimizer: eliminate_identity
      - onnxoptimizer: fuse_consecutive_transposes
      - onnxoptimizer: default
workloads: {prefill: {kind: prefill, batch: 1, sequence: 8, outputs: hidden}}
targets: {cpu: {tag: bench_cpu, provider: CPUExecutionProvider}}
measure: {restarts: 3, blocks: 2, runs: 2, budget_s: 60, seed: 7}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    file.write_text(SWEEP)
    return file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


def _graph(*words: object) -> Any:
    return CliRunner().invoke(make_app(), ["graph", *map(str, words)])


@pytest.fixture(scope="module")
def packed(sweep: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out")
    result = _graph(sweep, "--recipe", "packed", "--store", store, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout), out


def test_each_pass_of_a_recipe_is_compared_with_what_came_before_it(packed: tuple[dict[str, Any], Path]) -> None:
    said, _ = packed
    assert said["variant"] == "packed, h16-a2-l2 prefill"
    assert said["against"] == "original, h16-a2-l2 prefill"
    steps = {step["pass"].removeprefix("onnxoptimizer: "): step for step in said["steps"]}
    assert list(steps) == ["eliminate_identity", "fuse_consecutive_transposes", "default"]
    assert steps["eliminate_identity"]["removed"] == []
    fused = steps["default"]["fused"]
    assert [sorted(node["op"] for node in one["from"]) for one in fused] == [["MatMul"] * 3] * 2
    assert {"op": "MatMul", "name": "/model/layers.0/self_attn/q_proj/MatMul"}.items() <= fused[0]["from"][0].items()
    assert steps["default"]["histogram"]["Split"] == [0, 2]
    assert said["histogram"] == steps["default"]["histogram"]  # only this pass changed anything


def test_the_pictures_are_files_that_are_named(packed: tuple[dict[str, Any], Path]) -> None:
    said, out = packed
    files = [Path(file) for file in said["files"]]
    assert files == [file for file in files if file.parent == out and file.stat().st_size > 1000]
    names = {file.name for file in files}
    assert {"layer.svg", "layer.png", "operators.svg", "3-onnxoptimizer-default.png"} <= names
    assert any(name.startswith("3-onnxoptimizer-default-rewrite-") for name in names)


def test_a_pass_that_changes_nothing_is_one_line_and_no_failure(sweep: Path, store: Path, tmp_path: Path) -> None:
    result = _graph(sweep, "--recipe", "identity", "--store", store, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    first, *files = result.stdout.splitlines()
    assert first.startswith("onnxoptimizer: eliminate_identity changed nothing (0 of ")
    assert [Path(file).name for file in files] == ["layer.svg", "layer.png"]


def test_an_artifact_of_a_store_is_compared_with_its_export(
    packed: tuple[dict[str, Any], Path], store: Path, tmp_path: Path
) -> None:
    result = _graph(Path(packed[0]["model"]).parent, "--out", tmp_path, "--json")
    assert result.exit_code == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["against"] == "the export"
    assert said["steps"] == packed[0]["steps"]


def test_two_files_are_compared_in_one_step(packed: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    after = Path(packed[0]["model"])
    other = tmp_path / "other.onnx"
    other.write_bytes(after.read_bytes())
    result = _graph(other, "--against", other, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "one graph" in result.stdout or "changed nothing" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{sweep}", "--recipe", "pcked"], "not a recipe of"),
        (["{sweep}", "--recipe", "pcked"], "did you mean 'packed'?"),
        (["{sweep}", "--model", "h16-a2"], "did you mean 'h16-a2-l2'?"),
        (["{sweep}", "--workload", "decode"], "valid: prefill"),
        (["{sweep}", "--against", "orginal"], "did you mean 'original'?"),
        (["{tmp}/nothing.onnx"], "no such file"),
        (["{tmp}/nothing"], "no such file or folder"),
        (["{tmp}/text.onnx"], "not a readable ONNX model"),
        (["{tmp}/text.onnx", "--recipe", "packed"], "--recipe packed"),
        (["{tmp}"], "no run of llama_bench here"),
    ],
)
def test_wrong_words_are_wrong_input(sweep: Path, store: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    result = _graph(*(word.format(sweep=sweep, tmp=tmp_path) for word in words), "--store", store)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_a_run_without_its_graphs_says_where_they_come_from(synthetic: ModuleType, tmp_path: Path) -> None:
    from llama_bench.report.graphs.sections import of_run

    recipes = {"twice_as_fast": synthetic.Truth(ratio=0.5, executed="other", changed=3)}
    run = Path(synthetic.world(recipes).write(tmp_path))
    result = _graph(run, "--recipe", "twice_as_fast")
    assert result.exit_code == 1
    assert "name its sweep file, and they are built again" in result.stderr
    section = of_run(str(run))
    assert section.pictures == ()
    assert "no longer beside it" in section.notes[0]
    wrong = _graph(run, "--recipe", "twice_as_fst")
    assert wrong.exit_code == 2
    assert "did you mean 'twice_as_fast'?" in wrong.stderr


def test_netron_that_is_missing_is_said_with_the_command_that_brings_it(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "netron", None)
    result = _graph(sweep, "--netron")
    assert result.exit_code == 2
    assert result.stderr == "error: --netron: Netron is not installed here; pip install netron\n"


def test_netron_gets_both_models_and_is_waited_for(
    sweep: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def start(file: str) -> tuple[str, int]:
        assert Path(file).is_file()
        opened.append(file)
        return "localhost", 8080 + len(opened)

    viewer = SimpleNamespace(start=start, wait=lambda: opened.append("waited"))
    monkeypatch.setitem(sys.modules, "netron", viewer)  # type: ignore[arg-type]
    result = _graph(sweep, "--recipe", "packed", "--store", store, "--out", tmp_path, "--netron")
    assert result.exit_code == 0, result.stderr
    assert len(opened) == 3
    assert opened[0] != opened[1]
    assert opened[2] == "waited"
    assert "http://localhost:8082" in result.stdout
