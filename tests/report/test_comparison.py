"""A comparison in words, tables, Markdown, JSON and JUnit XML: each says the truth, and can be read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from llama_bench.errors import InputError
from llama_bench.report import comparison_words as words
from llama_bench.report.comparison import Comparison, load
from llama_bench.report.junit import junit

ODD = "a \"b\" <c> & 'd' | `e` 🚀"


@pytest.fixture(scope="module")
def runs(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run before, one after a change, and others that differ in one thing."""
    truth = synthetic.Truth

    def recipes(executed: str) -> dict[str, Any]:
        return {"stays": truth(0.9, executed="aa" * 32), "slower": truth(0.8, executed=executed), "same": truth()}

    before = synthetic.world(recipes("bb" * 32) | {"breaks": truth(0.7, executed="ee" * 32), "goes": truth()}, seed=1)
    broken = {"breaks": truth(failure=f"\x1b[31mno kernel\x1b[0m {ODD}"), "comes": truth(0.7, executed="ff" * 32)}
    after = synthetic.world(recipes("cc" * 32) | broken, seed=2)
    after.slow_down(1.05)
    after.slow_down(1.10, "slower")
    after.run["code"] = "c0de" * 16
    updated = synthetic.world(recipes("cc" * 32), seed=3)
    updated.run["versions"] = {"onnxruntime": "1.32.0"}
    moved = synthetic.world(recipes("cc" * 32), seed=4)
    for row in moved.rows["machines"]:
        row["cpu"] = "Another CPU"
    unfinished = synthetic.world(recipes("bb" * 32), seed=5, restarts=3)
    elsewhere = synthetic.world({"stays": truth()}, targets={"C": "CPUExecutionProvider"})
    store = tmp_path_factory.mktemp("store")
    worlds = {"before": before, "after": after, "updated": updated, "moved": moved, "unfinished": unfinished}
    worlds["elsewhere"] = elsewhere
    for i, world in enumerate(worlds.values()):
        world.run["created_at"] = f"2026-01-0{i + 1}T03:04:05Z"
    return {name: world.write(store, f"2026010{i}-{name}") for i, (name, world) in enumerate(worlds.items())}


@pytest.fixture(scope="module")
def found(runs: dict[str, Path]) -> Comparison:
    return load(str(runs["before"]), str(runs["after"]))


def test_the_answer_is_one_sentence_with_every_regression(found: Comparison) -> None:
    said = words.answer(found)
    assert said.startswith("2 regressions from A to B: slower +")
    assert "breaks now failed (h512-a4-l2, prefill, target B)" in said
    assert "\n" not in said
    assert words.numbers(found) == "8 arms: 1 slower, 4 same, 1 now failed, 1 new, 1 gone"


def test_the_machines_drift_is_said_and_whose_it_is(found: Comparison) -> None:
    [row] = found.drift
    said = words.machine(row)
    assert said.startswith("Target B: the machine itself (or the code that measures, which is not the same) changed")
    assert "4 arms that are the same program in both runs" in said
    assert "not counted as a change of the others" in said
    assert "(or the code" not in words.machine({**row, "same_code": True})


def test_without_a_program_that_is_the_same_the_drift_is_said_to_be_unknown(runs: dict[str, Path]) -> None:
    found = load(str(runs["before"]), str(runs["updated"]))
    said = words.machine(found.drift[0])
    assert "No arm is known to be the same program in both runs" in said
    assert "--by speedup" in said
    assert words.answer(found).startswith("No arm of 4 became faster or slower")


def test_other_hardware_is_said_and_its_times_are_no_regression(runs: dict[str, Path]) -> None:
    found = load(str(runs["before"]), str(runs["moved"]))
    assert "other hardware in B, so speedups over the baseline are compared" in words.machine(found.drift[0])
    assert not found.regressions
    by_time = load(str(runs["before"]), str(runs["moved"]), by="time")
    assert "compares the machines" in words.machine(by_time.drift[0])


def test_an_unfinished_run_is_said_to_be_so(runs: dict[str, Path]) -> None:
    [note] = load(str(runs["before"]), str(runs["unfinished"])).notes
    assert note.startswith("B is unfinished, or a part of its sweep: 1 of 1 cell has fewer restarts")


def test_runs_in_the_wrong_order_and_copies_are_noticed(runs: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    assert any("B began before A" in note for note in load(str(runs["after"]), str(runs["before"])).notes)
    copied = tmp_path / "synthetic" / "copy"
    shutil.copytree(runs["before"], copied)
    found = load(str(runs["before"]), str(copied))
    assert any("copies of one run" in note for note in found.notes)
    assert words.answer(found).startswith("Nothing to tell apart: all 7 arms")


def test_one_run_named_twice_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="are one run") as refused:
        load(str(runs["before"]), f"{runs['before']}/")
    assert str(runs["before"]) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_runs_with_nothing_in_common_are_refused_and_what_they_have_is_named(runs: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no cell") as refused:
        load(str(runs["before"]), str(runs["elsewhere"]))
    assert "h512-a4-l2/prefill/B" in str(refused.value)
    assert str(refused.value).endswith("in common: A has h512-a4-l2/prefill/B, B has h512-a4-l2/prefill/C")
    assert len(str(refused.value).splitlines()) == 1


def test_the_documented_runs_show_what_the_documentation_says() -> None:
    root = Path(__file__).parents[2]
    page = " ".join((root / "docs" / "comparing.md").read_text(encoding="utf-8").replace("−", "-").split())
    for sweep in ("smollm2", "optimizations"):
        a, b = sorted(path.parent for path in (root / "docs" / "results" / sweep).glob("*/run.json"))
        found = load(str(a), str(b))
        assert {row["verdict"] for row in found.rows} == {"same", "new", "gone"}
        [drift] = found.drift
        said = words.machine(drift)
        shift = said.partition("its times by ")[2].partition(". That")[0]
        assert shift in page
        assert said.partition("runs (")[2].partition(")")[0] in page


def test_markdown_begins_with_the_answer_and_folds_the_rest(found: Comparison) -> None:
    text = words.as_markdown(found)
    lines = text.splitlines()
    assert lines[0].startswith("## 2 regressions from A to B: ")
    shown, folded = text.split("<details>")
    assert text.rstrip().endswith("</details>")
    rows = [line for line in shown.splitlines() if line.startswith("| h512")]
    assert [row.split(" | ")[3] for row in rows] == ["slower", "breaks"]
    assert len([line for line in folded.splitlines() if line.startswith("| h512")]) == len(found.rows)
    assert "code that measures – → c0dec0de" in folded
    assert "recipes only in A goes; only in B comes" in folded
    assert "&lt;c&gt;" in shown
    assert "<c>" not in text


def test_markdown_of_nothing_that_changed_has_no_table_before_the_fold(runs: dict[str, Path]) -> None:
    text = words.as_markdown(load(str(runs["before"]), str(runs["updated"])))
    assert text.startswith("## No arm of 4 became faster or slower")
    assert "| Model" not in text.split("<details>")[0]


def test_json_holds_every_row_and_number(found: Comparison) -> None:
    said = json.loads(json.dumps(words.as_json(found), allow_nan=False))
    assert said["regressions"] == 2
    assert said["rows"] == [dict(row) for row in found.rows]
    assert said["machine"][0]["change"] == found.drift[0]["change"]
    assert {"part": "sweep", "what": "recipes in one run only: ", "a": "goes", "b": "comes"} in said["environment"]


def test_junit_has_a_case_an_arm_failures_for_regressions_and_skips_what_cannot_be_compared(found: Comparison) -> None:
    suite = ET.fromstring(junit(found))[0]
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [row["recipe"] for row in found.rows]
    assert {case.get("classname") for case in cases} == {"h512-a4-l2.prefill.B"}
    assert [case.get("name") for case in cases if case.find("failure") is not None] == ["slower", "breaks"]
    assert [case.get("name") for case in cases if case.find("skipped") is not None] == ["comes", "goes"]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8",
        "failures": "2",
        "errors": "0",
        "skipped": "2",
    }
    [slower] = [case for case in cases if case.get("name") == "slower"]
    assert float(slower.get("time") or 0) == pytest.approx(2e-3 * 0.8 * 1.05 * 1.1, rel=0.1)
    assert "regressions from A to B" in (suite.findtext("system-out") or "")


def test_junit_is_valid_xml_whatever_arms_are_called_and_failures_say(found: Comparison) -> None:
    rows = [{**row, "recipe": ODD, "model": ODD} for row in found.rows]
    cases = ET.fromstring(junit(replace(found, rows=rows)))[0].findall("testcase")
    assert {case.get("name") for case in cases} == {ODD}
    assert cases[0].get("classname") == f"{ODD}.prefill.B"
    [failure] = [one for case in cases for one in case.findall("failure") if one.get("type") == "now failed"]
    assert ODD in (failure.text or "")
    assert "\x1b" not in (failure.text or "")
    assert "no kernel" in (failure.text or "")


def test_what_says_nothing_new_is_named_once(found: Comparison) -> None:
    assert words.absent(found) == ["new: comes", "gone: goes"]
    [why] = words.reasons(found.rows)
    assert why.startswith("now failed, breaks (h512-a4-l2, prefill, target B): in B failed: build: ")
    assert [row["recipe"] for row in words.changed(found)] == ["slower", "breaks"]
    assert [row["verdict"] for row in words.unchanged(found)] == ["same"] * 4


def test_times_are_in_units_that_can_be_read(found: Comparison) -> None:
    row = dict(found.rows[0]) | {"time_a_s": 2.5, "time_b_s": 0.0025, "time_change": -0.999}
    cells = dict(zip(words.COLUMNS, words.table([row]).rows[0], strict=True))
    assert (cells["Time A"], cells["Time B"], cells["Time"]) == ("2.500 s", "2.500 ms", "-99.9 %")
