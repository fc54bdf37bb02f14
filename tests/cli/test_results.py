"""`query` and `report`, on a run whose true ratios are known."""

from __future__ import annotations

import io
import json
from datetime import datetime
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


@pytest.fixture(scope="module")
def texts(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with lists, timestamps, nulls, and text that a CSV must quote."""
    workload = {"kind": "generate", "prompt": 8, "new_tokens": 6}
    world = synthetic.world({"fast": synthetic.Truth(ratio=0.5, executed="other")}, workload=workload, text=True)
    for row in world.rows["generations"]:
        row |= {"text": 'said "one, two"\nand then', "prompt": "" if row["control"] else None}
    for row in world.rows["timings"]:
        row["process_started_at"] = synthetic.START if row["recipe"] == "original" else None
    return Path(world.write(tmp_path_factory.mktemp("texts")))


LISTS = "SELECT recipe, control, token_s, process_started_at, busy_s FROM timings ORDER BY recipe, control, seconds"


def test_every_format_gives_lists_timestamps_and_nulls_back(texts: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    _query(texts, LISTS, "--format", "parquet", "--output", str(file))
    truth = pl.read_parquet(file)
    assert truth["token_s"].dtype == pl.List(pl.Float64)
    assert truth["process_started_at"].null_count() not in (0, len(truth))
    rows = json.loads(_query(texts, LISTS, "--format", "json"))
    assert [row["token_s"] for row in rows] == truth["token_s"].to_list()
    csv = pl.read_csv(io.StringIO(_query(texts, LISTS, "--format", "csv")))
    assert [json.loads(text) for text in csv["token_s"]] == truth["token_s"].to_list()
    for texts_of in ([row["process_started_at"] for row in rows], csv["process_started_at"].to_list()):
        read = [text and datetime.fromisoformat(text) for text in texts_of]
        assert read == truth["process_started_at"].to_list()
    assert csv["busy_s"].null_count() == len(csv) == len(truth) == sum(row["busy_s"] is None for row in rows)


def test_text_with_quotes_and_new_lines_survives_a_csv_and_an_empty_text_is_no_null(texts: Path) -> None:
    sql = "SELECT text, prompt, tokens FROM generations ORDER BY recipe, control"
    csv = pl.read_csv(io.StringIO(_query(texts, sql, "--format", "csv")))
    assert set(csv["text"]) == {'said "one, two"\nand then'}
    assert json.loads(csv["tokens"][0]) == [0, 1, 2, 3, 4, 5]
    raw = _query(texts, sql, "--format", "csv")
    assert raw.count(',"",') == 1
    assert raw.count(",,") == 2


def test_numbers_that_json_lacks_and_durations_can_be_written(texts: Path) -> None:
    between = "MAX(process_started_at) - MIN(process_started_at) AS between"
    sql = f"SELECT SUM(seconds) / 0.0 AS endless, {between} FROM timings"
    assert json.loads(_query(texts, sql, "--format", "json")) == [{"endless": None, "between": 0.0}]
    assert _query(texts, sql, "--format", "csv").splitlines() == ["endless,between", "inf,0.0"]


def test_a_table_shortens_lists_and_shows_wide_rows_one_after_another(texts: Path) -> None:
    short = _query(texts, "SELECT recipe, token_s FROM timings LIMIT 1").splitlines()
    assert len(short) == 2
    assert short[1].rstrip().endswith("… 6 values]")
    wide = _query(texts, "SELECT * FROM timings LIMIT 2").splitlines()
    assert wide[0].startswith("row 1 of 2")
    assert sum(line.split()[:1] == ["token_s"] and "… 6 values]" in line for line in wide) == 2
    assert sum(line.startswith("run_index") for line in wide) == 2
    assert _query(texts, "SELECT * FROM timings LIMIT 0").strip()


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
