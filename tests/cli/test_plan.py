"""`plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_bench.cli.main import make_app

SWEEP = """
name: tiny
models:
  defaults: {num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 32, vocab_size: 64}
  sizes: [{hidden_size: 16}, {hidden_size: 32}]
recipes:
  original: {}
  eliminate_identity: {passes: [{onnxoptimizer: eliminate_identity}]}
workloads: {prefill: {kind: prefill, batch: 1, sequence: 8}}
targets: {cpu: {tag: bench_cpu}}
measure: {restarts: 3, blocks: 2, runs: 4}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SWEEP)
    return path


def test_plan_shows_cells_disk_and_time_and_touches_nothing(sweep: Path, tmp_path: Path) -> None:
    store = tmp_path / "results"
    result = CliRunner().invoke(make_app(), ["plan", str(sweep), "--store", str(store)])
    assert result.exit_code == 0, result.stderr
    for expected in ("h16-a2-l1/prefill/cpu", "h32-a2-l1/prefill/cpu", "2 exports, 2 passes", "free", "about"):
        assert expected in result.stdout
    assert not store.exists()


def test_plan_as_json_counts_what_the_sweep_asks_for(sweep: Path) -> None:
    planned = json.loads(CliRunner().invoke(make_app(), ["plan", str(sweep), "--json"]).stdout)
    assert [cell["timed_runs"] for cell in planned["needs"]["cells"]] == [24, 24]
    assert [cell["arms"] for cell in planned["needs"]["cells"]] == [3, 3]
    assert [artifact["kind"] for artifact in planned["artifacts"]].count("export") == 2
    assert planned["needs"]["disk_bytes"] > planned["needs"]["weight_bytes"] > 0


def test_only_cuts_the_plan_down(sweep: Path) -> None:
    result = CliRunner().invoke(make_app(), ["plan", str(sweep), "--only", "model=h16*", "--artifacts"])
    assert "1 exports, 1 passes" in result.stdout
    assert "h32-a2-l1" not in result.stdout
    assert "eliminate_identity on h16-a2-l1" in result.stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("eliminate_identity}]", "eliminate_identify}]", "eliminate_identity"),
        ("tag: bench_cpu", "tagg: bench_cpu", "'tag'"),
        ("hidden_size: 16", "hidden_size: 17", "does not divide"),
        ("name: tiny", "name: tiny\n  - :", "tiny.yaml"),
    ],
)
def test_a_wrong_sweep_is_two_lines_at_most_that_name_the_file(sweep: Path, old: str, new: str, said: str) -> None:
    sweep.write_text(SWEEP.replace(old, new, 1))
    result = CliRunner().invoke(make_app(), ["plan", str(sweep)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "tiny.yaml" in result.stderr
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2


def test_a_file_that_does_not_exist_is_wrong_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["plan", str(tmp_path / "none.yaml")])
    assert result.exit_code == 2
    assert "none.yaml" in result.stderr
