"""`compare` on the command line: exit statuses, formats, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest
from click.testing import Result
from typer.testing import CliRunner

from llama_bench.cli.compare import REGRESSION
from llama_bench.cli.main import make_app


@pytest.fixture(scope="module")
def runs(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`before`, and `after`, in which one arm takes 10 % longer and the machine 5 %."""
    truth = synthetic.Truth
    before = synthetic.world({"changes": truth(0.8, executed="bb" * 32), "stays": truth()}, seed=1)
    after = synthetic.world({"changes": truth(0.8, executed="cc" * 32), "stays": truth()}, seed=2)
    after.slow_down(1.05)
    after.slow_down(1.10, "changes")
    after.run["created_at"] = "2026-02-02T03:04:05Z"
    store = tmp_path_factory.mktemp("store")
    worlds = {"before": before, "after": after}
    return {name: str(world.write(store, f"2026010{i}-{name}")) for i, (name, world) in enumerate(worlds.items())}


def compare(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(), ["compare", *arguments])


def test_a_regression_is_exit_status_3_and_the_first_thing_that_is_said(runs: dict[str, str]) -> None:
    result = compare(runs["before"], runs["after"])
    assert (result.exit_code, result.stderr) == (REGRESSION, "")
    lines = result.stdout.splitlines()
    assert lines[:3] == [f"A  {runs['before']}", f"B  {runs['after']}", ""]
    assert lines[3].startswith("1 regression from A to B: changes +")
    assert "slower (regression)" in result.stdout
    assert "Target B: the machine itself changed its times by +" in result.stdout
    assert "nothing that was recorded" in result.stdout


@pytest.mark.parametrize("options", [("--threshold", "20%"), ("--threshold", "0.2", "--by", "speedup")])
def test_a_change_within_the_threshold_is_exit_status_0(runs: dict[str, str], options: tuple[str, ...]) -> None:
    result = compare(runs["before"], runs["after"], *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "1 arm slower within the threshold" in result.stdout


def test_the_other_way_round_the_arm_is_faster(runs: dict[str, str]) -> None:
    result = compare(runs["after"], runs["before"])
    assert result.exit_code == 0
    assert "No regression, and 1 arm faster: changes -" in result.stdout
    assert "warning: B began before A" in result.stderr


@pytest.mark.parametrize("options", [("--json",), ("--format", "json"), ("--json", "-f", "json")])
def test_json_can_be_read_back(runs: dict[str, str], options: tuple[str, ...]) -> None:
    result = compare(runs["before"], runs["after"], *options)
    assert result.exit_code == REGRESSION
    said = json.loads(result.stdout)
    assert said["regressions"] == 1
    [row] = [row for row in said["rows"] if row["regression"]]
    assert (row["recipe"], row["by"], row["verdict"]) == ("changes", "time", "slower")
    assert row["low"] < 0.1 < row["high"]


def test_junit_and_markdown_go_into_files(runs: dict[str, str], tmp_path: Path) -> None:
    for name in ("junit", "markdown"):
        result = compare(runs["before"], runs["after"], "--format", name, "--output", str(tmp_path / name))
        assert (result.exit_code, result.stdout) == (REGRESSION, "")
    root = ET.parse(tmp_path / "junit").getroot()
    assert (root.get("tests"), root.get("failures")) == ("4", "1")
    assert (tmp_path / "junit").read_text(encoding="utf-8").startswith('<?xml version="1.0" encoding="UTF-8"?>')
    assert (tmp_path / "markdown").read_text(encoding="utf-8").startswith("## 1 regression from A to B: changes +")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--threshold", "two"), "--threshold two"),
        (("--threshold", "-1%"), "--threshold -1%"),
        (("--threshold", "nan"), "--threshold nan"),
        (("--output", "x"), "--format markdown, json or junit"),
        (("--json", "--format", "junit"), "--json and --format junit"),
        (("--json", "--output", "/nowhere/at/all"), "/nowhere/at/all"),
    ],
)
def test_wrong_options_are_exit_status_2_and_a_line(runs: dict[str, str], options: tuple[str, ...], said: str) -> None:
    result = compare(runs["before"], runs["after"], *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_question_names_the_right_ones(runs: dict[str, str]) -> None:
    result = compare(runs["before"], runs["after"], "--by", "speed")
    assert result.exit_code == 2
    assert "speedup" in result.stderr


def test_paths_that_are_no_two_runs_are_exit_status_2(runs: dict[str, str], tmp_path: Path) -> None:
    for paths, said in (
        ((runs["before"], runs["before"]), "are one run"),
        ((runs["before"], str(tmp_path)), str(tmp_path)),
        ((str(tmp_path / "none"), runs["after"]), "none"),
    ):
        result = compare(*paths)
        assert (result.exit_code, result.stdout) == (2, "")
        assert said in result.stderr
        assert len(result.stderr.splitlines()) <= 2


def test_the_help_says_the_exit_statuses() -> None:
    said = " ".join(compare("--help").stdout.split())
    assert "Exit status: 0 no regression, 3 a regression, 2 wrong input" in said
    assert "docs/comparing.md" in said
