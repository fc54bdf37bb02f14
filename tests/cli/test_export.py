"""`export`: a variant of a sweep, built here and written as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_bench.cli.main import make_app

SWEEP = """
name: tiny
models:
  defaults: {num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 24, vocab_size: 32, head: none,
    exporter: torchscript, opset: 17}
  sizes: [{hidden_size: 16}]
recipes: {original: {}, nop: {passes: [{onnxoptimizer: nop}]}}
workloads: {prefill: {batch: 1, sequence: 8, outputs: hidden}}
targets: {cpu: {tag: bench_cpu, threads: 1}}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SWEEP)
    return file


def test_the_files_of_the_variant_are_written_and_named_as_json(sweep: Path, tmp_path: Path) -> None:
    words = ["export", str(sweep), "--recipe", "original", "--store", str(tmp_path / "store")]
    result = CliRunner().invoke(make_app(), [*words, "--out", str(tmp_path / "a"), "--json"])
    assert result.exit_code == 0, result.output
    assert {Path(file).name for file in json.loads(result.stdout)} >= {"model.onnx", "README.md"}
    assert all(Path(file).is_file() for file in json.loads(result.stdout))
    assert "building export" in result.stderr
    quiet = CliRunner().invoke(make_app(), [*words, "--out", str(tmp_path / "b"), "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert (tmp_path / "b" / "model.onnx").is_file()


def test_an_unknown_recipe_is_wrong_input_and_names_the_nearest(sweep: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["export", str(sweep), "--recipe", "orginal", "--out", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert "did you mean 'original'?" in result.stderr
