"""The answer in words: one sentence a target, and whether fresh restarts bear it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from llama_bench.report.table import one_baseline, ratio
from llama_bench.report.tradeoffs import Answers, change

Row = Mapping[str, Any]

JUDGED = ("faster", "slower", "equivalent", "inconclusive")
"""Verdicts that compare speeds."""

SHOWN = 6
"""Cells that a sentence of the answer lists; the tables have them all."""


def answer(speedups: pl.DataFrame, answers: Answers | None = None) -> list[str]:
    """Return what was found in words, one sentence a target: the fastest recipe, or that none is faster.

    With `answers` a recipe that approximates has what it costs beside it, and the fastest exact one after it.
    """
    targets = speedups["target"].unique(maintain_order=True)
    return [_answer_for(target, speedups.filter(pl.col("target") == target), answers) for target in targets]


def _answer_for(target: str, arms: pl.DataFrame, answers: Answers | None) -> str:
    if (arms["verdict"] == "unserved").all():
        return f"On target {target} nothing was measured: {arms['evidence'][0]}."
    baseline = one_baseline(arms.filter("baseline")["recipe"])
    recipes = arms.filter(~pl.col("baseline") & ~pl.col("control"))
    if recipes.is_empty():
        return f"On target {target} only {baseline} was measured: there is no recipe to compare it with."
    n = recipes["recipe"].n_unique()
    compared = recipes.filter(pl.col("speedup").is_not_null())
    if compared.is_empty():
        reason = recipes["evidence"][0]
        return f"On target {target} no recipe can be compared with {baseline}: {reason}."
    void = recipes.filter(pl.col("verdict") == "void")
    if len(void) and not len(recipes.filter(pl.col("verdict").is_in(JUDGED))):
        return f"On target {target} nothing can be said of any recipe's speed: {void['evidence'][0]}."
    faster = recipes.filter(pl.col("verdict") == "faster").sort("speedup", descending=True)
    best = faster.unique("cell", keep="first", maintain_order=True).sort(
        "hidden_size", descending=True, maintain_order=True, nulls_last=True
    )
    idle = recipes.group_by("recipe").agg(pl.col("no_op").all()).filter("no_op").height
    noops = f" {idle} of {n} execute{'s' if idle == 1 else ''} exactly what {baseline} does (no-op)." if idle else ""
    if best.is_empty():
        which = "the one recipe is not" if n == 1 else f"none of the {n} recipes is"
        return f"On target {target} {which} faster than {baseline} beyond its interval.{noops}"
    cells = compared["cell"].n_unique()
    shown = [_best(row, faster, answers) for row in best.head(SHOWN).to_dicts()]
    found = "; ".join(shown) + (f"; and so on in {len(best) - SHOWN} more cells" if len(best) > SHOWN else "")
    rest = (
        f"; in {cells - len(best)} of {cells} cells nothing is faster beyond its interval" if len(best) < cells else ""
    )
    return f"On target {target} the fastest recipe, against {baseline}, is {found}{rest}.{noops}"


def _best(row: Row, faster: pl.DataFrame, answers: Answers | None) -> str:
    """A cell's fastest recipe, its speedup and what it costs, and what fresh restarts say of it."""
    words = [f"{row['model']}, {row['workload']}"]
    if row["confirmed"] is not None:
        fresh = "" if row["confirmed_speedup"] is None else f" at {row['confirmed_speedup']:.3f}×"
        words.append(f"{row['confirmed']}{fresh} on fresh restarts")
    words += _cost(row, faster, answers) if answers else []
    return f"{row['recipe']} {ratio(row)} ({'; '.join(words)})"


def _cost(row: Row, faster: pl.DataFrame, answers: Answers) -> list[str]:
    """What an approximation loses, and the fastest of its cell that loses nothing."""
    kinds = {recipe: found["class"] for (cell, recipe), found in answers.accuracy_by_arm.items() if cell == row["cell"]}
    if kinds.get(row["recipe"]) != "approximate":
        return []
    found = answers.accuracy_by_arm[row["cell"], row["recipe"]]
    lost = [
        *([f"perplexity {change(found['perplexity_increase'])}"] if found["perplexity_increase"] is not None else []),
        *([f"KL {found['kl']:.2g}"] if found["kl"] is not None else []),
        *([f"top-1 {found['top1']:.1%}"] if found["top1"] is not None else []),
    ]
    exact = [one for one in faster.to_dicts() if one["cell"] == row["cell"] and kinds.get(one["recipe"]) == "exact"]
    best = f"the fastest exact one is {exact[0]['recipe']} {ratio(exact[0])}" if exact else "no exact one is faster"
    return [f"it approximates: {', '.join(lost)}" if lost else "it approximates", best]
