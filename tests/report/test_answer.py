"""The answer in words, from made-up runs whose truth is known."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report.answer import answer
from llama_bench.report.tradeoffs import Answers
from llama_bench.stats import views
from llama_bench.stats.speedups import speedups


def made(world: Any) -> pl.DataFrame:
    return speedups(world.run, world.datasets())


def test_the_answer_names_the_fastest_recipe_of_each_cell(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fast": Truth(0.9, executed="aa"),
            "faster": Truth(0.8, executed="bb"),
            "wrong": Truth(0.4, executed="cc", within_bound=False),
            "idle": Truth(),
        },
        sizes=(512, 1024),
    )
    [sentence] = answer(made(world))
    assert sentence.startswith("On target B the fastest recipe, against original, is faster 1.2")
    assert "(h1024-a4-l2, prefill); faster 1.2" in sentence
    assert "wrong" not in sentence
    assert "1 of 4 executes exactly what original does (no-op)" in sentence


def test_cells_that_were_not_timed_are_not_cells_without_an_answer(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(256, 512, 1024))
    rows = made(world)
    slow = pl.when(hidden_size=256).then(pl.lit("equivalent")).otherwise("verdict").alias("verdict")
    timed = pl.when(hidden_size=1024)
    late = timed.then("speedup").alias("speedup"), timed.then("verdict").otherwise(pl.lit("skipped")).alias("verdict")
    [sentence] = answer(rows.with_columns(*late))
    assert "(h1024-a4-l2, prefill)." in sentence
    [sentence] = answer(rows.with_columns(slow))
    assert "; in 1 of 3 cells nothing is faster beyond its interval" in sentence


def test_where_cells_have_baselines_of_their_own_none_is_named(synthetic: ModuleType) -> None:
    rows = made(synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(512, 1024)))
    other = pl.when(pl.col("baseline") & (pl.col("hidden_size") == 512)).then(pl.lit("other")).otherwise("recipe")
    [sentence] = answer(rows.with_columns(other.alias("recipe")))
    assert sentence.startswith("On target B the fastest recipe, against each cell's baseline, is fast ")


def test_the_answer_says_so_when_nothing_is_faster(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(), "slow": synthetic.Truth(1.3, executed="aa")})
    [sentence] = answer(made(world))
    assert "none of the 2 recipes is faster than original beyond its interval" in sentence


def test_the_answer_admits_what_was_not_or_cannot_be_compared(synthetic: ModuleType) -> None:
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    world = synthetic.world(
        {"fast": synthetic.Truth(0.8, executed="aa")}, targets=targets, unserved={"A": "no node offers it"}, restarts=1
    )
    gpu, cpu = answer(made(world))
    assert gpu == "On target A nothing was measured: no node offers it."
    assert "no recipe can be compared with original: one restart only" in cpu


@pytest.mark.parametrize(("fresh", "word"), [(0.8, "confirmed at 1.2"), (1.0, "not confirmed at ")])
def test_the_answer_says_whether_fresh_restarts_bear_it_out(synthetic: ModuleType, fresh: float, word: str) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, confirm="fast", fresh=fresh)
    [sentence] = answer(made(world))
    assert f"(h512-a4-l2, prefill; {word}" in sentence
    assert "on fresh restarts)" in sentence


def test_a_target_whose_equal_programs_differ_has_no_answer_but_the_reason(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa"), "idle": synthetic.Truth(1.2)})
    [sentence] = answer(made(world))
    assert "fastest" not in sentence
    assert "χ²" in sentence


def test_an_approximation_says_what_it_costs_and_which_exact_recipe_is_the_fastest(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    lossy = Truth(0.3, executed="aa", kind="approximate", perplexity_increase=0.021, kl=0.0123, top1=0.976)
    recipes = {"int8": lossy, "fused": Truth(0.8, executed="bb"), "slow": Truth(1.3, executed="cc")}
    world = synthetic.world(recipes, text=True)
    frames = views.make(world.run, world.datasets())
    [sentence] = answer(frames.speedups.collect(), Answers.of(frames))
    assert "int8 3.3" in sentence
    assert "it approximates: perplexity +2.10%, KL 0.012, top-1 97.6%; the fastest exact one is fused 1.2" in sentence
    alone = synthetic.world({"int8": lossy}, text=True)
    frames = views.make(alone.run, alone.datasets())
    assert "no exact one is faster" in answer(frames.speedups.collect(), Answers.of(frames))[0]


def test_an_exact_recipe_costs_nothing_and_nothing_is_said(synthetic: ModuleType) -> None:
    world = synthetic.world({"fused": synthetic.Truth(0.8, executed="bb")}, text=True)
    frames = views.make(world.run, world.datasets())
    assert answer(frames.speedups.collect(), Answers.of(frames)) == answer(frames.speedups.collect())
