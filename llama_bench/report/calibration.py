"""A calibration as one table, one chart, a few lines for a README, and all of its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llama_bench.report.drawing import BLUE, GREY, INK, PAPER, Chart, png, themed
from llama_bench.report.files import destination, write_files
from llama_bench.report.table import DASH, Table, escape, markdown
from llama_bench.stats.calibration import Calibration, LeftOut, Ours, Rate, calibrate
from llama_bench.stats.procedures import ALPHA, OURS, PROCEDURES, Share
from llama_bench.stats.verdicts import margin_of
from llama_bench.stats.views import Frames

FEW_REACHED = 0.75
"""Below this share of narrow enough intervals they are a selection of the pilots that looked quieter than they were,
and hold the truth less often than 93 % instead of 95 % (simulated: six pilot restarts, normal spread)."""


def write_calibration(path: str, out: Path | None = None) -> list[Path]:
    """Write what the calibration at `path` shows and return its files, the Markdown first.

    `path` is a run, or a sweep or store whose newest run is meant. The files go into `out`, or into the run's own
    folder `calibration`: calibration.md (table, notes, lines for a README), calibration.svg and .png, calibration.json.

    Raises InputError for what is no calibration, and when `out` is missing for one in an object store; WorkError when
    the files cannot be written.
    """
    from llama_bench.stats import views

    folder = destination(path, out, "calibration")
    return write(views.load(path), folder)


def write(frames: Frames, out: Path) -> list[Path]:
    """Write the calibration in `frames` into the folder `out`."""
    found = calibrate(frames)
    facts = machine(frames)
    svg = chart(found).svg()
    files: dict[str, str | bytes] = {
        "calibration.md": page(found, facts),
        "calibration.svg": svg,
        "calibration.png": png(svg),
        "calibration.json": json.dumps(numbers(found, frames.run, facts), indent=1, ensure_ascii=False) + "\n",
    }
    return write_files(out, files)


def table(found: Calibration) -> Table:
    """Return one row a procedure: how often it claims a difference at each slowdown, and one of the wrong sign."""
    slowed = len(found.ours) > 1
    rows = tuple(
        (name, *(_share(rate.claimed) for rate in _rates(found, name)), *([_wrong_sign(found, name)] if slowed else []))
        for name in PROCEDURES
    )
    columns = ("Procedure", *(_heading(one.slowdown) for one in found.ours), *(["Wrong sign"] if slowed else []))
    return Table("", columns, rows, tuple(_notes(found)))


def chart(found: Calibration) -> Chart:
    """Return the chart: a panel a slowdown, in each how often every procedure claims a difference.

    Points are rates, bars their 95 % binomial intervals, the dashed line is what a test at 5 % may claim where
    nothing differs.
    """
    import altair as alt

    heading = "How often a difference is claimed"
    alpha = _percent(ALPHA)
    subtitle = f"Dashed: the {alpha} of false alarms that a test at {alpha} may give. Bars: 95 % binomial intervals."
    panels = [_panel(found, one) for one in found.ours]
    drawn = alt.hconcat(*panels, spacing=24).properties(title=alt.TitleParams(heading, subtitle=subtitle, offset=16))
    caption = f"{heading}, by each procedure on the same timings. {subtitle}"
    return Chart("calibration", caption, themed(drawn))


def _panel(found: Calibration, one: Ours) -> Any:
    """The rates of all procedures at one slowdown; only the first panel names them."""
    import altair as alt
    import polars as pl

    rates = [next(rate for rate in _rates(found, name) if rate.slowdown == one.slowdown) for name in PROCEDURES]
    names = list(PROCEDURES)
    schema = {"procedure": pl.String, "who": pl.String, "rate": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    points = [
        (rate.procedure, "ours" if rate.procedure == OURS else "other", rate.claimed.rate, *rate.claimed.interval())
        for rate in rates
        if rate.claimed.n
    ]
    data = pl.DataFrame(points, schema=schema, orient="row").with_columns(
        text=pl.col("rate").map_elements(lambda rate: _percent(rate, 0 if rate >= 0.1 else 1), pl.String)
    )
    who = ["ours", "other"]
    color = alt.Color("who:N", scale=alt.Scale(domain=who, range=[BLUE, GREY]), legend=None)
    shape = alt.Shape("who:N", scale=alt.Scale(domain=who, range=["circle", "diamond"]), legend=None)
    first = one.slowdown == found.ours[0].slowdown
    ticks = alt.Axis(
        values=[0, 0.25, 0.5, 0.75, 1], labelExpr="format(100 * datum.value, 'd') + ' %'", labelFlush=False
    )
    x = alt.X("rate:Q", title=None, scale=alt.Scale(domain=[0, 1]), axis=ticks)
    labels = alt.Axis(labels=first, ticks=False, domain=False, labelPadding=10, labelLimit=320)
    y = alt.Y("procedure:N", scale=alt.Scale(domain=names, padding=0.8), title=None, axis=labels)
    base = alt.Chart(data).encode(y=y)
    alpha = alt.Chart(pl.DataFrame({"rate": [ALPHA]})).mark_rule(color=INK, strokeDash=[4, 3]).encode(x=x)
    bars = base.mark_rule(strokeWidth=2.5, opacity=0.5).encode(x=alt.X("low:Q"), x2="high:Q", color=color)
    marks = base.mark_point(size=90, filled=True, opacity=1).encode(x=x, color=color, shape=shape)
    above: dict[str, Any] = {"baseline": "bottom", "dy": -9, "fontSize": 11}
    rim = base.mark_text(**above, stroke=PAPER, strokeWidth=4).encode(x=x, text="text:N")  # readable on lines
    text = base.mark_text(**above).encode(x=x, text="text:N", color=color)
    claims = "every claim is a false alarm" if not one.slowdown else "the more claims the better"
    subtitle = f"{one.reached.n} comparisons; {claims}" if one.reached.n else "nothing measured"
    title = alt.TitleParams(_heading(one.slowdown), subtitle=subtitle, fontSize=13, subtitleFontSize=11, offset=8)
    return alt.layer(alpha, bars, marks, rim, text).properties(width=220, height=alt.Step(40), title=title)


def page(found: Calibration, facts: Sequence[str]) -> str:
    """Return the calibration as Markdown: the table, its notes, what it ran on, and the lines for a README."""
    parts = [
        "# Calibration",
        "How often each procedure claims a difference between two programs, on the same timings.",
        markdown(table(found)).rstrip(),
        "![How often each procedure claims a difference](calibration.png)",
        "## This calibration",
        "\n".join(f"* {escape(fact)}" for fact in [*_design(found), *facts]),
        "## For a README",
        readme(found, facts).rstrip(),
    ]
    return "\n\n".join(parts) + "\n"


def readme(found: Calibration, facts: Sequence[str]) -> str:
    """Return at most ten lines of Markdown: the machine, the rates, and what our intervals did."""
    begin = f"{_cells(found)} cells on {escape(facts[0])}: how often each procedure claims a difference."
    shown = table(found)
    lines = markdown(Table("", shown.columns, shown.rows)).strip().splitlines()
    return "\n".join([" ".join([begin, *_intervals(found)]), "", *lines]) + "\n"


def machine(frames: Frames) -> list[str]:
    """Return what it ran on, in words: the machine first, then how busy it was, versions and date."""
    import polars as pl

    nodes = []
    for node in frames.run.get("machines") or []:
        words = [str(node["cpu"])] if node.get("cpu") else []
        words += [f"{node['physical_cores']} cores"] if node.get("physical_cores") else []
        words += [str(gpu.get("name", gpu)) for gpu in node.get("gpus") or []]
        nodes.append(", ".join(words))
    facts = ["; ".join(node for node in nodes if node) or "an unknown machine"]
    load = frames.machines.select(pl.col("load_1m").median()).collect().item()
    if load is not None:
        facts.append(f"Load of the machine over a minute, when restarts began: {load:.1f} (median)")
    if versions := frames.run.get("versions"):
        facts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    facts.append(f"Started {frames.run.get('created_at', 'at an unknown time')}")
    return facts


def numbers(found: Calibration, run: Mapping[str, Any], facts: Sequence[str]) -> dict[str, Any]:
    """Return every number as plain data; shares as k, n, rate and the ends of their 95 % interval."""
    return {
        "design": asdict(found.design),
        "run": {key: run.get(key) for key in ("created_at", "fingerprint", "versions", "machines")},
        "facts": list(facts),
        "cells": {"planned": found.design.cells, "used": _cells(found)},
        "left_out": [asdict(cell) for cell in found.left_out],
        "blocks": asdict(found.blocks),
        "rates": [
            {
                "procedure": rate.procedure,
                "slowdown": rate.slowdown,
                "claimed": _plain(rate.claimed),
                "found": _plain(rate.found) if rate.slowdown else None,
            }
            for rate in found.rates
        ],
        "intervals": [
            {
                "slowdown": one.slowdown,
                "truth": one.truth,
                **{key: _plain(getattr(one, key)) for key in _INTERVALS if one.slowdown or "found" not in key},
            }
            for one in found.ours
        ],
        "comparisons": found.comparisons.to_dicts(),
    }


_INTERVALS = ("reached", "found", "covered", "found_reached", "covered_reached")


def _notes(found: Calibration) -> Iterator[str]:
    yield "Rates with their 95 % binomial intervals (Clopper & Pearson 1934) and the claims of all comparisons."
    for name, procedure in PROCEDURES.items():
        yield f"{name}: {procedure.how.format(margin=_percent(margin_of(found.design.provider)))}."
    yield (
        "All judge the same runs, each comparison by itself; in a sweep llama_bench accounts for their number as well."
    )
    if len(found.ours) > 1:
        yield "Wrong sign: the claim that the slower arm is the faster one."
    yield from _intervals(found)
    for one in found.ours:
        if one.slowdown and 0 < one.reached.k < FEW_REACHED * one.reached.n:
            yield (
                f"Only {_rounded(one.reached)} of the slowdowns of {_percent(one.slowdown)} reached the half-width: "
                "cells whose pilot looked quieter than they are, so that their intervals hold the truth less often "
                "than those of all cells. With a larger --budget more reach it."
            )
    if found.left_out:
        kinds: dict[str, list[LeftOut]] = {}
        for cell in found.left_out:
            kinds.setdefault(cell.kind, []).append(cell)
        said = "; ".join(f"{len(c)} {kind} (such as {c[0].workload}: {c[0].reason})" for kind, c in kinds.items())
        yield f"Left out are {len(found.left_out)} of {found.design.cells} cells: {said}."
    if found.blocks.dropped or found.blocks.flagged:
        yield (
            f"Of {found.blocks.all:,} blocks {found.blocks.dropped:,} were disturbed, dropped for all arms and timed "
            f"again; {found.blocks.flagged:,} were disturbed and kept."
        )


def _intervals(found: Calibration) -> Iterator[str]:
    """A sentence a slowdown: what our intervals did, and how many were narrow enough to be asked."""
    for one in found.ours:
        if not one.reached.n:
            continue
        covered = f"95 % intervals hold the truth in {_share(one.covered)}"
        if not one.slowdown:
            yield f"Where nothing differs, llama_bench's {covered}."
            continue
        asked = (
            f"; of these {_share(one.found_reached)} were found and {_share(one.covered_reached)} covered"
            if one.reached.k
            else ""
        )
        yield (
            f"Slowdowns of {_percent(one.slowdown)} ({_percent(one.truth, 2)} by the loops' own clocks): "
            f"{_rounded(one.reached)} ({one.reached.k}/{one.reached.n}) reached a half-width of "
            f"{_percent(found.design.half_width)}{asked}; of all, {_rounded(one.found)} were found and "
            f"{_rounded(one.covered)} covered."
        )


def _design(found: Calibration) -> list[str]:
    design = found.design
    slowed = f"one in {design.slowed_every} has slowed arms" if design.slowed_every else "none has slowed arms"
    return [
        f"{design.cells} cells, of which {_cells(found)} count; {slowed}",
        f"{design.restarts} pilot restarts × {design.blocks} blocks × {design.runs} runs an arm, at most "
        f"{design.budget_s:g} s a cell; wanted half-width {_percent(design.half_width)}; seed {design.seed}",
        f"Model: hidden {design.hidden_size}, {design.layers} layers, {design.sequence} tokens, {design.threads} "
        f"thread{'s' if design.threads > 1 else ''}, {design.provider}",
    ]


def _heading(level: float) -> str:
    return f"{_percent(level)} slower" if level else "Nothing differs"


def _wrong_sign(found: Calibration, procedure: str) -> str:
    """Claims of "faster" among all comparisons in which the arm was slower."""
    slowed = [rate for rate in _rates(found, procedure) if rate.slowdown]
    return _share(Share(sum(rate.claimed.k - rate.found.k for rate in slowed), sum(rate.found.n for rate in slowed)))


def _rates(found: Calibration, procedure: str) -> list[Rate]:
    return [rate for rate in found.rates if rate.procedure == procedure]


def _cells(found: Calibration) -> int:
    return found.comparisons["workload"].n_unique()


def _share(share: Share) -> str:
    """Return `4.8 % [3.3, 6.9] (29/600)`."""
    if share.rate is None:
        return DASH
    low, high = share.interval()
    return f"{100 * share.rate:.1f} % [{100 * low:.1f}, {100 * high:.1f}] ({share.k}/{share.n})"


def _rounded(share: Share) -> str:
    return DASH if share.rate is None else _percent(share.rate, 0)


def _percent(value: float, digits: int | None = None) -> str:
    return f"{100 * value:g} %" if digits is None else f"{100 * value:.{digits}f} %"


def _plain(share: Share) -> dict[str, Any]:
    low, high = share.interval()
    return {"k": share.k, "n": share.n, "rate": share.rate, "low": low, "high": high}
