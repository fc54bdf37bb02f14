"""Runs that are not what a report would like: the page still tells the truth, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llama_bench.errors import InputError
from llama_bench.report import compose, write_report
from llama_bench.report.document import Document
from llama_bench.report.page import page
from llama_bench.stats import views

from .elements import parsed


def composed(world: Any) -> tuple[Document, str]:
    found = compose(views.make(world.run, world.datasets()))
    text = page(found)
    parsed(text)
    return found, text


def test_a_run_of_which_nothing_is_measured_yet_says_so(synthetic: ModuleType) -> None:
    found, text = composed(synthetic.world({"fast": synthetic.Truth()}, restarts=0))
    assert found.answer[1] == "Nothing was timed, so there is nothing to believe."
    assert any("not finished" in said or "no part" in said for said in found.missing)
    assert "How to run it again" in text


def test_a_run_without_a_single_part_has_a_page_too(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth()}, restarts=0)
    for rows in world.rows.values():
        rows.clear()
    found, text = composed(world)
    assert found.missing
    assert "Nothing was timed" in text


def test_failed_and_wrong_arms_alone_are_named_and_never_ranked(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    recipes = {"broken": Truth(failure="it broke"), "bad": Truth(0.5, executed="x", within_bound=False)}
    found, text = composed(synthetic.world(recipes))
    assert found.answer[0] == "On B no recipe's speed can be told: failed, wrong."
    assert "1 arm failed and has no number: broken." in found.missing
    assert "it broke" in text
    assert 'aria-label="bad: ' not in text.split('id="speedups"')[1].split("</section>")[0]


def test_a_target_that_no_node_served_is_said_beside_the_one_that_was(synthetic: ModuleType) -> None:
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    recipes = {"fast": synthetic.Truth(0.8, executed="a"), "idle": synthetic.Truth()}
    world = synthetic.world(recipes, targets=targets, unserved={"A": "no node offers it"})
    found, _ = composed(world)
    assert found.missing == ["Nothing was measured on target A: no node offers it."]
    assert "on B fast is the fastest" in found.answer[0]
    assert "1 of 2 recipes execute exactly what the baseline does (no-op)" in found.answer[1]


def test_parts_of_another_schema_and_paths_that_are_no_run_are_named(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.world({"fast": synthetic.Truth(0.8, executed="a")}).write(tmp_path / "store")
    with pytest.raises(InputError, match="no run of llama_bench here"):
        write_report(str(tmp_path))
    with pytest.raises(InputError, match="no such folder"):
        write_report(str(tmp_path / "nowhere"))
    (run / "run.json").write_text(json.dumps([]))
    with pytest.raises(InputError, match=r"run\.json: truncated, or not JSON"):
        write_report(str(run))
