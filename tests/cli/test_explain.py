"""`explain`."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import Result
from typer.testing import CliRunner

from llama_bench.cli.main import make_app


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipes = {"fused": synthetic.Truth(0.5, executed="other", changed=3), "fused_int8": synthetic.Truth()}
    return Path(synthetic.world(recipes, sizes=(512, 1024)).write(tmp_path_factory.mktemp("store")))


def explain(run: Path, *words: str) -> Result:
    return CliRunner().invoke(make_app(), ["explain", str(run), *words])


def test_one_row_is_explained_in_words_and_tables(run: Path) -> None:
    result = explain(run, "recipe=fused,model=h512*")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("fused · target B · h512-a4-l2 · prefill: faster 1.998× [")
    for heading in ("Why this verdict", "Graph", "Accuracy", "Restarts and blocks", "Order and drift", "Single runs"):
        assert heading in lines
    assert "Speedup [low, high]" in result.stdout
    assert max(map(len, lines)) <= 160


def test_several_rows_are_listed_with_what_names_each(run: Path) -> None:
    result = explain(run, "fused")
    assert result.exit_code == 2
    assert "means 2 rows" in result.stderr
    named = [line.split()[-1] for line in result.stdout.splitlines()[1:]]
    assert len(named) == 2
    for words in named:
        assert explain(run, words).exit_code == 0


def test_without_a_row_all_are_listed(run: Path) -> None:
    result = explain(run, "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert len(rows) == 8
    assert {row["verdict"] for row in rows} == {"baseline", "faster", "no-op", "control"}


def test_a_name_that_is_there_means_itself_and_patterns_mean_many(run: Path) -> None:
    assert "fused_int8" not in explain(run, "fused,model=h512*").stdout.splitlines()[0]
    assert len(explain(run, "fused*").stdout.splitlines()) == 5
    assert len(explain(run, "fused|control").stdout.splitlines()) == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fusedd", "no recipe 'fusedd' in these results; did you mean 'fused'?"),
        ("model=h512-a4,recipe=fused", "no model 'h512-a4' in these results; did you mean 'h512-a4-l2'?"),
        ("recip=fused", "unknown key 'recip'; did you mean 'recipe'?"),
        ("fused,recipe=control", "recipe is here twice"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(run: Path, words: str, said: str) -> None:
    result = explain(run, words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_json_and_markdown_come_from_the_same_sections(run: Path) -> None:
    told = json.loads(explain(run, "fused,model=h512*", "--json").stdout)
    page = explain(run, "fused,model=h512*", "--markdown").stdout
    assert told["facts"]["name"]["verdict"] == "faster"
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == [
        part["heading"] for part in told["sections"]
    ]
