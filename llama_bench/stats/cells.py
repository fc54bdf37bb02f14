"""The view `cells`: one row a cell: what ended it, what disturbed it, its target's A/A test, and its headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from llama_bench.stats.headline import fastest
from llama_bench.stats.judged import Judged, judge_run
from llama_bench.stats.ratios import LEVEL, estimate, t_quantile
from llama_bench.stats.verdicts import Comparison, unusable

Row = Mapping[str, Any]

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "restarts": pl.Int64,
    "half_width": pl.Float64,
    "wanted_half_width": pl.Float64,
    "ended_by": pl.String,
    "blocks": pl.Int64,
    "dropped_blocks": pl.Int64,
    "flagged_blocks": pl.Int64,
    "aa_pairs": pl.Int64,
    "aa_chi2": pl.Float64,
    "aa_p": pl.Float64,
    "inflation": pl.Float64,
    "void": pl.Boolean,
    "best": pl.String,
    "confirmed": pl.String,
    "confirmed_speedup": pl.Float64,
    "confirmed_low": pl.Float64,
    "confirmed_high": pl.Float64,
}
"""Columns of the view. `restarts` are the cell's in the main phase; half-widths are shares (0.01 is 1 %), the reached
one that of the arm furthest from the wanted one. `aa_pairs` (degrees of freedom), `aa_chi2`, `aa_p` and `inflation` are
the target's, null where it has no A/A pair; `void` also says that the cell ran on two machines,
or that its baseline is faster than its machine can be. `blocks` are all that
were timed, in both phases.
"""


def cells(run: Row, frames: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """Return the view: every cell of `run` (run.json) by its datasets (:func:`llama_bench.results.scan`)."""
    return table(judge_run(run, frames))


def table(judged: Judged) -> pl.DataFrame:
    """Return the view of a run that is judged already."""
    return pl.DataFrame([_row(cell, judged) for cell in judged.known.cells], schema=SCHEMA, orient="row")


def _row(cell: Row, judged: Judged) -> dict[str, Any]:
    name, known = cell["id"], judged.known
    measure, test = known.sweep.measure, judged.tests[cell["target"]]
    widths = half_widths(judged.comparisons[name], measure.restarts)
    slots = known.slots.get((name, cell["baseline"]), {})
    blocks = known.blocks.get(name, {})
    headline = judged.headlines.get(name)
    unserved = cell["target"] in known.unserved
    void = known.void(cell)
    return {
        **{key: cell[key] for key in ("model", "workload", "target")},
        "cell": name,
        "restarts": slots.get("restarts", 0),
        "half_width": max(widths.values(), default=None),
        "wanted_half_width": measure.half_width,
        "ended_by": None if unserved or void else _ended_by(cell, judged, widths),
        **{key: blocks.get(key, 0) for key in ("blocks", "dropped_blocks", "flagged_blocks")},
        "aa_pairs": test.pairs,
        "aa_chi2": test.chi2 if test.pairs else None,
        "aa_p": test.p if test.pairs else None,
        "inflation": test.inflation if test.pairs else None,
        "void": test.void or void,
        "best": headline.recipe if headline else fastest(judged.verdicts[name]),
        "confirmed": headline.word if headline else None,
        "confirmed_speedup": headline.speedup if headline else None,
        "confirmed_low": headline.low if headline else None,
        "confirmed_high": headline.high if headline else None,
    }


def half_widths(arms: Mapping[str, Comparison], pilot: int) -> dict[str, float]:
    """Return the 95 % half-width of ln(ratio) of every arm that asks for one: neither control nor no-op, and usable.

    From the pilot's spread and all restarts, as Stein's second stage goes by it (1945); without the A/A pairs'
    inflation, which is not known while a cell is measured.
    """
    found = {}
    for name, arm in arms.items():
        if arm.control or arm.no_op is not None or arm.problem is not None:
            continue
        if unusable(arm.y) is None and unusable(arm.y[:pilot]) is None:
            one = estimate(arm.y, pilot)
            found[name] = t_quantile(0.5 + LEVEL / 2, one.df) * one.standard_error
    return found


def _ended_by(cell: Row, judged: Judged, widths: Mapping[str, float]) -> str:
    """What ended the cell: the half-width of all its arms, the budget, the pilot, or nothing yet.

    It is unfinished while an arm that was not given up has fewer restarts than the pilot. Where no arm asks for a
    half-width (only no-ops and the control were compared), the pilot is all there is to measure.
    """
    measure, slots = judged.known.sweep.measure, judged.known.slots
    going = [name for name, arm in judged.comparisons[cell["id"]].items() if arm.problem is None]
    counts = [slots.get((cell["id"], name), {}).get("restarts", 0) for name in going]
    if not counts or min(counts) < measure.restarts:
        return "unfinished"
    if measure.half_width is None or not widths:
        return "pilot only"
    # a hair more, as rounding in the last digit asked for no restart either
    return "half-width" if max(widths.values()) <= measure.half_width * (1 + 1e-9) else "budget"
