"""`schema`."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from llama_bench.cli.main import make_app


def test_schema_goes_to_stdout_as_json_with_the_keys_of_a_sweep() -> None:
    result = CliRunner().invoke(make_app(), ["schema"])
    assert result.exit_code == 0
    assert {"models", "recipes", "workloads", "targets", "measure"} <= set(json.loads(result.stdout)["properties"])
    assert "eliminate_identity" in result.stdout


def test_schema_goes_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    assert CliRunner().invoke(make_app(), ["schema", "--output", str(file)]).exit_code == 0
    assert json.loads(file.read_text()) == json.loads(CliRunner().invoke(make_app(), ["schema"]).stdout)


def test_a_file_that_cannot_be_written_is_wrong_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["schema", "--output", str(tmp_path / "no" / "such" / "folder.json")])
    assert result.exit_code == 2
    assert "folder.json cannot be written" in result.stderr


def test_the_columns_of_the_results_are_printed_and_written() -> None:
    listed = CliRunner().invoke(make_app(), ["schema", "--results"])
    assert listed.exit_code == 0
    for name in ("timings", "speedups", "run_index", "confirmed_speedup"):
        assert name in listed.stdout
    page = CliRunner().invoke(make_app(), ["schema", "--results", "--markdown"]).stdout
    assert page.startswith("### `pieces` (dataset)")


def test_markdown_of_the_sweep_files_schema_is_wrong_input() -> None:
    result = CliRunner().invoke(make_app(), ["schema", "--markdown"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--results" in result.stderr
