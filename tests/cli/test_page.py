"""docs/cli.md says what the command line is: its options, its exit statuses, the keys of its JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from llama_bench.cli import main, targets, tune
from llama_bench.cli.common import run_as_dict
from llama_bench.cli.page import page
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import RunResult
from llama_bench.cluster.tune import Outcome
from llama_bench.errors import InputError, WorkError
from llama_bench.store import Store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
RUN = str(ROOT / "docs/results/quick_gpu")


def test_the_documented_options_are_those_of_the_command_line() -> None:
    generated = PAGE.partition("llama_bench.cli.page -->\n")[2].partition("\n<!-- end -->")[0]
    assert generated.strip() == page(), "replace what is between the marks by: python -m llama_bench.cli.page"


def test_every_option_of_every_command_has_a_help_text() -> None:
    assert not re.findall(r"^\| `[^|]+` \|  \|", page(), flags=re.MULTILINE)


def test_the_exit_statuses_are_those_of_the_errors_and_stand_in_the_help() -> None:
    assert {InputError.exit_status, WorkError.exit_status, main.INTERRUPTED, 0} <= set(main.EXIT_STATUSES)
    shown = CliRunner().invoke(main.make_app(), ["--help"], env={"COLUMNS": "200"}).stdout
    for status, meaning in main.EXIT_STATUSES.items():
        assert re.search(rf"{status}\s+{re.escape(meaning)}", shown)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _documented() -> dict[str, tuple[str, list[str]]]:
    """Command → "object" or "list", and the keys that stand outside parentheses."""
    rows = re.findall(r"^\| `(\w+)` \| (object|list) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    return {name: (kind, re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys))) for name, kind, keys in rows}


def _printed(*words: str) -> Any:
    result = CliRunner().invoke(main.make_app(), [*words, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _clean(folder: Path) -> Any:
    (folder / "store").mkdir()
    return _printed("clean", str(folder / "store"), "--dry-run")


def _graph(folder: Path) -> Any:
    """Two models of one node each, one against the other."""
    for name, op in (("one", "Relu"), ("other", "Sigmoid")):
        ends = [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, [1]) for end in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node(op, ["x"], ["y"])], name, ends[:1], ends[1:])
        onnx.save(onnx.helper.make_model(graph), folder / f"{name}.onnx")
    return _printed(
        "graph", str(folder / "one.onnx"), "--against", str(folder / "other.onnx"), "--out", str(folder / "out")
    )


GIVES: dict[str, Callable[[Path], Any]] = {
    "run": lambda folder: {**run_as_dict(RunResult("quick/r"), "here"), "report": []},
    "plan": lambda folder: _printed("plan", str(ROOT / "sweeps/quick.yaml"), "--store", str(folder)),
    "status": lambda folder: _printed("status", RUN),
    "report": lambda folder: _printed("report", RUN, "--out", str(folder)),
    "query": lambda folder: _printed("query", RUN, "SELECT recipe FROM speedups"),
    "explain": lambda folder: _printed("explain", RUN, "target=gpu,model=h128*,recipe=eliminate_identity"),
    "graph": _graph,
    "compare": lambda folder: _printed("compare", *sorted(map(str, (ROOT / "docs/results/smollm2").iterdir()))),
    "tune": lambda folder: tune.as_dict(Outcome(), Store(folder / "store"), None),
    "passes": lambda folder: _printed("passes"),
    "targets": lambda folder: [targets._row(Node("n", "address", {"CPU": 2.0}), {})],
    "clean": _clean,
}
"""Command → what its JSON is, made by the code that prints it."""

ELSEWHERE = {"export": "tests/cli/test_export.py", "calibrate": "tests/cli/test_calibrate.py"}
"""Commands whose JSON other tests look at."""

WITHOUT = {"schema": "prints JSON without being asked"}
"""Commands that have no --json, and why."""


@pytest.mark.parametrize("name", GIVES)
def test_the_json_of_a_command_has_the_documented_keys(name: str, tmp_path: Path) -> None:
    kind, keys = _documented()[name]
    value = GIVES[name](tmp_path)
    assert isinstance(value, {"object": dict, "list": list}[kind])
    if kind == "object":
        assert list(value) == keys
    elif name == "report":
        assert value and all(Path(file).is_file() for file in value)
    else:
        assert all(list(row) == (keys or ["recipe"]) for row in value)


def test_every_command_with_json_is_documented_and_all_that_list_have_it() -> None:
    having = {section.split()[0] for section in page().split("\n## ")[1:] if "| `--json` |" in section}
    assert having == set(main.COMMANDS) - set(WITHOUT), "give the command --json, or a reason in WITHOUT"
    assert having == set(_documented()), "the table under JSON in docs/cli.md says each command's keys"
    assert having == set(GIVES) | set(ELSEWHERE), "give the command a line in GIVES"


def test_the_run_of_json_says_all_that_a_run_ended_with() -> None:
    ended = RunResult("quick/r", {"build": 1.0}, 1, 2, ["no room"], {"A": "no node"}, {"c": "another"})
    said = run_as_dict(ended, "here")
    assert {key: said[key] for key in asdict(ended) if key != "breakdown"} == {
        key: value for key, value in asdict(ended).items() if key != "breakdown"
    }
    assert said["seconds"] == {"build": 1.0}
