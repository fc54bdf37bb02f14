"""The question and the answer at the top of a report, on runs whose truth is known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from llama_bench.report import question
from llama_bench.stats import views


def told(world: Any) -> tuple[list[str], list[str]]:
    frames = views.make(world.run, world.datasets())
    speedups, cells = frames.speedups.collect(), frames.cells.collect()
    return question.answer(speedups, cells), question.missing(speedups, cells)


def test_the_question_names_what_is_compared_with_what_and_where(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8), "idle": synthetic.Truth()}, sizes=(512, 1024))
    asked = question.question(world.run)
    assert asked.startswith("Which of 2 recipes makes 2 models faster than original in 1 workload on 1 target, B (CPU")
    assert question.question(synthetic.world({"fast": synthetic.Truth()}).run).startswith(
        "Does fast make 1 model faster"
    )


def test_where_cells_have_baselines_of_their_own_the_question_says_so(synthetic: ModuleType) -> None:
    run = synthetic.world({"fast": synthetic.Truth(0.8)}, sizes=(512, 1024)).run
    first, *others = run["cells"]
    asked = question.question({**run, "cells": [{**first, "baseline": "fast"}, *others]})
    assert "2 models faster than each cell's baseline in 1 workload" in asked


def test_the_answer_is_the_largest_speedup_and_whether_it_can_be_believed(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world({"fast": Truth(0.8, executed="aa"), "faster": Truth(0.5, executed="bb"), "idle": Truth()})
    [found, trust], missing = told(world)
    assert found.startswith("On B faster is the fastest against its baseline, ")
    assert 1.9 < float(found.split("baseline, ")[1].split("×")[0]) < 2.1
    assert trust.startswith("The verdicts stand on B: equal programs differ there by chance alone, by up to ")
    assert "1 of 3 recipes execute exactly what the baseline does" in trust
    assert missing == []


def test_where_nothing_is_faster_the_answer_says_so(synthetic: ModuleType) -> None:
    [found, _], _ = told(synthetic.world({"slow": synthetic.Truth(1.3, executed="aa"), "idle": synthetic.Truth()}))
    assert found == "On B none of 2 recipes is faster beyond its noise."


def test_a_void_target_is_said_to_be_void(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(1.2), "fast": synthetic.Truth(0.8, executed="aa")})
    [found, trust], _ = told(world)
    assert "no recipe's speed can be told: void" in found
    assert "void on B" in trust


def test_what_is_missing_is_said(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fast": Truth(0.8, executed="aa"),
            "broken": Truth(failure="no"),
            "bad": Truth(0.5, executed="b", within_bound=False),
        },
        targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"},
        unserved={"A": "no node offers bench_A"},
        restarts=3,
    )
    missing = told(world)[1]
    assert missing[0] == "Nothing was measured on target A: no node offers bench_A."
    assert missing[1].startswith("This run is not finished: 1 of 1 cell is not measured to the end (1 of them begun)")
    assert missing[2] == "1 arm failed and has no number: broken."
    assert missing[3] == "1 arm is outside its accuracy bound and never ranked: bad."


def test_a_run_without_any_timings_has_an_answer_too(synthetic: ModuleType) -> None:
    [found, trust], missing = told(synthetic.world({"fast": synthetic.Truth()}, restarts=0))
    assert found
    assert trust == "Nothing was timed, so there is nothing to believe."
    assert missing
