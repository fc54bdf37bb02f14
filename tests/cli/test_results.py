"""`query` and `report`, on a run whose true ratios are known."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest
from typer.testing import CliRunner

from llama_bench.cli.main import make_app


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipes = {"twice_as_fast": synthetic.Truth(ratio=0.5, executed="other", changed=3), "nothing": synthetic.Truth()}
    return Path(synthetic.world(recipes).write(tmp_path_factory.mktemp("store")))


def _query(run: Path, sql: str, *options: str) -> str:
    result = CliRunner().invoke(make_app(), ["query", str(run), sql, *options])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_a_query_prints_verdicts_as_a_table(run: Path) -> None:
    lines = _query(run, "SELECT recipe, speedup, verdict FROM speedups ORDER BY recipe").splitlines()
    assert lines[0].split() == ["recipe", "speedup", "verdict"]
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert cells["nothing"][-1] == "no-op"
    assert cells["twice_as_fast"][-1] == "faster"
    assert float(cells["twice_as_fast"][0]) == pytest.approx(2, rel=0.02)


def test_csv_json_and_parquet_hold_the_same_rows(run: Path, tmp_path: Path) -> None:
    sql = "SELECT recipe, restart, seconds FROM timings ORDER BY recipe, restart, block, run_index"
    csv = pl.read_csv(io.StringIO(_query(run, sql, "--format", "csv")))
    rows = json.loads(_query(run, sql, "-f", "json"))
    file = tmp_path / "timings.parquet"
    _query(run, sql, "--format", "parquet", "--output", str(file))
    assert len(csv) > 100
    assert csv["seconds"].to_list() == pytest.approx([row["seconds"] for row in rows])
    assert pl.read_parquet(file).to_dicts() == rows


@pytest.mark.parametrize(
    ("sql", "said"), [("SELECT * FROM speedup", "speedups"), ("SELECT recipee FROM speedups", "recipe")]
)
def test_a_wrong_name_in_a_query_is_answered_with_the_nearest(run: Path, sql: str, said: str) -> None:
    result = CliRunner().invoke(make_app(), ["query", str(run), sql])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) <= 2


def test_a_folder_without_results_is_wrong_input(tmp_path: Path) -> None:
    for command in (["query", str(tmp_path), "SELECT 1"], ["report", str(tmp_path)]):
        result = CliRunner().invoke(make_app(), command)
        assert result.exit_code == 2
        assert str(tmp_path) in result.stderr


def test_a_table_does_not_go_into_a_file(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["query", str(run), "SELECT 1", "--output", str(tmp_path / "x")])
    assert result.exit_code == 2
    assert "--format" in result.stderr


def test_report_names_the_files_that_it_wrote(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["report", str(run), "--out", str(tmp_path / "first-look")])
    assert result.exit_code == 0, result.stderr
    written = [Path(line) for line in result.stdout.splitlines()]
    assert {".html", ".md", ".svg", ".png"} <= {file.suffix for file in written}
    assert all(file.is_file() and file.is_relative_to(tmp_path / "first-look") for file in written)


def test_report_is_silent_when_that_is_asked_for_by_option_word_or_environment(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_BENCH_QUIET", "")  # so that what --quiet sets is taken back
    plain = ["report", str(run), "--out"]
    for number, (words, environment) in enumerate(
        [
            ([*plain, str(tmp_path / "0"), "--quiet"], {}),
            (["--quiet", *plain, str(tmp_path / "1")], {"LLAMA_BENCH_QUIET": "0"}),
            ([*plain, str(tmp_path / "2")], {"LLAMA_BENCH_QUIET": "1"}),
        ]
    ):
        result = CliRunner().invoke(make_app(), words, env=environment)
        assert (result.exit_code, result.output) == (0, "")
        assert (tmp_path / str(number) / "report.html").is_file()
