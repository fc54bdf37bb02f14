"""The top of a report: the question that a sweep asks, its answer in two sentences, and what is missing from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.answer import JUDGED
from llama_bench.report.table import one_baseline, percent, plural, ratio
from llama_bench.stats.controls import VOID_P

Row = Mapping[str, Any]


def question(run: Row) -> str:
    """Return what the sweep asks, from its file alone."""
    sweep = run["sweep"]
    baseline = one_baseline({cell["baseline"] for cell in run.get("cells", ())} or {sweep["measure"]["baseline"]})
    recipes = [name for name in sweep["recipes"] if name != baseline]
    models, workloads, targets = (len(sweep[key]) for key in ("models", "workloads", "targets"))
    which = f"Which of {len(recipes)} recipes makes" if len(recipes) != 1 else f"Does {recipes[0]} make"
    where = ", ".join(f"{name} ({target['provider']})" for name, target in sweep["targets"].items())
    return (
        f"{which} {plural(models, 'model')} faster than {baseline} in {plural(workloads, 'workload')} on "
        f"{plural(targets, 'target')}, {where}, by how much, and is that number real?"
    )


def answer(speedups: pl.DataFrame, cells: pl.DataFrame) -> list[str]:
    """Return the answer in two sentences: what is faster and by how much, and whether the verdicts stand."""
    speedups = speedups.filter(~_left_out())
    targets = speedups["target"].unique(maintain_order=True).to_list()
    parts = [_found(target, speedups.filter(pl.col("target") == target)) for target in targets]
    return [_sentence(parts or ["nothing was measured"]), _sentence([_trust(speedups, cells, targets)])]


def _left_out() -> pl.Expr:
    """Rows of cells that this run left out altogether (`--only`, or stopped before them)."""
    return (pl.col("verdict") == "skipped").all().over("cell")


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _found(target: str, arms: pl.DataFrame) -> str:
    """What a target shows: its largest speedup that is told from 1, and in how many cells there is any."""
    recipes = arms.filter(~pl.col("baseline") & ~pl.col("control"))
    timed = recipes.filter(pl.col("speedup").is_not_null())
    judged = timed.filter(pl.col("verdict").is_in(JUDGED))
    untold = recipes.filter(~pl.col("verdict").is_in([*JUDGED, "no-op"]))
    if timed.is_empty():
        return f"on {target} nothing can be compared"
    if judged.is_empty() and len(untold):
        return f"on {target} no recipe's speed can be told: {', '.join(untold['verdict'].unique(maintain_order=True))}"
    faster = recipes.filter(pl.col("verdict") == "faster").sort("speedup", descending=True)
    n = recipes["recipe"].n_unique()
    if faster.is_empty():
        return f"on {target} {'the one recipe is not' if n == 1 else f'none of {n} recipes is'} faster beyond its noise"
    best, cells = faster.to_dicts()[0], recipes["cell"].n_unique()
    some = faster["cell"].n_unique()
    where = "" if cells == 1 else f"; something is faster in {some} of {cells} cells" if some < cells else ""
    kept = f", {best['confirmed']} on fresh restarts" if best["confirmed"] else ""
    return (
        f"on {target} {best['recipe']} is the fastest against its baseline, {ratio(best)} "
        f"({best['model']}, {best['workload']}{kept}){where}"
    )


def _trust(speedups: pl.DataFrame, cells: pl.DataFrame, targets: Iterable[str]) -> str:
    """Whether the verdicts stand, how far equal programs differ, and how many recipes change nothing."""
    stand: list[str] = []
    void: list[str] = []
    unknown: list[str] = []
    for target in targets:
        mine = cells.filter((pl.col("target") == target) & (pl.col("restarts") > 0))
        if mine.is_empty():
            continue
        p = mine["aa_p"][0]
        (unknown if p is None else void if p < VOID_P else stand).append(target)
    said = []
    if stand:
        floors = [f"{percent(floor)} on {t}" for t in stand if (floor := noise_floor(speedups, t)) is not None]
        said.append(
            f"the verdicts stand on {', '.join(stand)}: equal programs differ there by chance alone"
            + (f", by up to {', '.join(floors)}" if floors else "")
        )
    said += [f"they are void on {', '.join(void)}, where equal programs differ by more than chance"] if void else []
    said += [f"nothing says how noisy {', '.join(unknown)} is"] if unknown else []
    recipes = speedups.filter(~pl.col("baseline") & ~pl.col("control") & (pl.col("verdict") != "unserved"))
    idle = recipes.group_by("recipe").agg(pl.col("no_op").all()).filter("no_op").height
    if idle:
        said.append(f"{idle} of {recipes['recipe'].n_unique()} recipes execute exactly what the baseline does (no-op)")
    return "; ".join(said) or "nothing was timed, so there is nothing to believe"


def noise_floor(speedups: pl.DataFrame, target: str) -> float | None:
    """Return the largest difference in time, as a share, that programs equal to the baseline show; None without any."""
    same = speedups.filter(
        (pl.col("target") == target) & (pl.col("control") | pl.col("no_op")) & pl.col("speedup").is_not_null()
    )
    return None if same.is_empty() else float((1 - 1 / same["speedup"]).abs().max())  # type: ignore[arg-type]


def missing(speedups: pl.DataFrame, cells: pl.DataFrame) -> list[str]:
    """Return what this run does not have, one sentence each: unfinished cells, targets without a node, failed arms."""
    return list(_missing(speedups, cells))


def _missing(speedups: pl.DataFrame, cells: pl.DataFrame) -> Iterator[str]:
    out = speedups.filter(_left_out())
    if len(out):
        where = ", ".join(out["target"].unique(maintain_order=True))
        yield f"{plural(out['cell'].n_unique(), 'cell')} of {where} had no part in this run: {out['evidence'][0]}."
    recipes = speedups.filter(~pl.col("control"), ~pl.col("cell").is_in(out["cell"].implode()))
    for target in recipes["target"].unique(maintain_order=True):
        mine = recipes.filter(pl.col("target") == target)
        if (mine["verdict"] == "unserved").all():
            yield f"Nothing was measured on target {target}: {mine['evidence'][0]}."
    served = cells.filter(pl.col("cell").is_in(recipes.filter(pl.col("verdict") != "unserved")["cell"].implode()))
    going = served.filter(pl.col("ended_by") == "unfinished")
    if len(going):
        begun = going.filter(pl.col("restarts") > 0).height
        are = "is" if len(going) == 1 else "are"
        yield (
            f"This run is not finished: {len(going)} of {plural(len(served), 'cell')} {are} not measured to the end "
            f"({begun} of them begun). What is there is shown; the same command goes on from there."
        )
    for word, one, many in (
        ("failed", "failed and has no number", "failed and have no number"),
        (
            "wrong",
            "is outside its accuracy bound and never ranked",
            "are outside their accuracy bounds and never ranked",
        ),
        ("skipped", "was skipped", "were skipped"),
    ):
        rows = recipes.filter(pl.col("verdict") == word)
        if len(rows):
            names = rows["recipe"].unique(maintain_order=True).to_list()
            listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
            yield f"{plural(len(rows), 'arm')} {one if len(rows) == 1 else many}: {listed}."
