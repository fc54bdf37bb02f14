"""What a calibration shows: how often each procedure claims a difference where there is none, and where there is one.

All procedures judge the same timed runs. Intervals and tests are at 95 % and 5 % for one comparison, before anything
is done about there being many of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llama_bench import calibration
from llama_bench.calibration import Design
from llama_bench.stats.procedures import OURS, PROCEDURES, Array, Samples, Share
from llama_bench.stats.progress import ONE_RESTART
from llama_bench.stats.ratios import counting, estimate, name_arms, restart_ratios
from llama_bench.stats.verdicts import margin_of, unusable
from llama_bench.stats.views import Frames
from llama_bench.sweep import CONTROL, Sweep


@dataclass(frozen=True, slots=True)
class Rate:
    """One procedure at one slowdown (0: nothing differs): how often it claims a difference, and in how many truly."""

    procedure: str
    slowdown: float
    claimed: Share
    found: Share  # claimed, and with the right sign; of nothing where nothing differs


@dataclass(frozen=True, slots=True)
class Ours:
    """Our own intervals at one slowdown: how many became as narrow as wanted, held the truth, and found it.

    `truth` is the mean of what the busy loops' clocks say, as a share; `covered` and `found` are over all
    comparisons, the `_reached` ones over those that reached the half-width.
    """

    slowdown: float
    truth: float
    reached: Share
    found: Share
    covered: Share
    found_reached: Share
    covered_reached: Share


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell that is not counted: `unfinished`, `failed` or `void`, and the reason."""

    workload: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of the cells: all, those dropped and measured again, and those kept although something disturbed them."""

    all: int
    dropped: int
    flagged: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration's result; `comparisons` has one row a comparison (columns: :data:`COMPARISONS`)."""

    design: Design
    comparisons: pl.DataFrame
    left_out: tuple[LeftOut, ...]
    blocks: Blocks
    rates: tuple[Rate, ...]
    ours: tuple[Ours, ...]


COMPARISONS: dict[str, Any] = {
    "workload": pl.String,
    "recipe": pl.String,
    "slowdown": pl.Float64,
    "restarts": pl.Int64,
    "y": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "truth": pl.Float64,
    "reached": pl.Boolean,
    "covered": pl.Boolean,
    **dict.fromkeys(PROCEDURES, pl.Int64),
}
"""`slowdown` is the wanted share, `truth` what the clock says: a log ratio like y, low and high (the 95 % interval);
a column for each procedure: 1 claims slower, −1 faster, 0 no difference."""


def calibrate(frames: Frames) -> Calibration:
    """Return what the calibration in `frames` shows. Rows that are not kept and cells that have no result never count.

    Raises InputError when the run is no calibration.
    """
    design = calibration.design_of(Sweep.model_validate(frames.run["sweep"]))
    known = _Known.of(frames)
    rows: list[dict[str, Any]] = []
    left_out = []
    for cell in sorted(frames.run["cells"], key=lambda cell: str(cell["workload"])):
        why = _left_out(cell, design, known)
        if why is None:
            rows += _compared(cell, design, known)
        else:
            left_out.append(why)
    table = pl.DataFrame(rows, schema=COMPARISONS, orient="row")
    levels = (0.0, *(sorted(design.slowdowns) if design.slowed_every else ()))
    parts = {level: table.filter(pl.col("slowdown") == level) for level in levels}
    return Calibration(
        design=design,
        comparisons=table,
        left_out=tuple(left_out),
        blocks=known.blocks,
        rates=tuple(_rate(name, level, part) for level, part in parts.items() for name in PROCEDURES),
        ours=tuple(_ours(level, part) for level, part in parts.items()),
    )


def truths(timings: pl.LazyFrame) -> pl.DataFrame:
    """Return the true log ratio of every arm in every restart: columns cell, recipe, restart, truth.

    A run without its busy loop would have taken seconds − busy_s, so its true log ratio is ln(seconds / (seconds −
    busy_s)): averaged as y is, over the runs of a slot, the blocks, the groups. NaN or infinite where a run has no
    usable seconds.
    """
    arm = ["cell", "recipe", "restart"]
    busy, seconds = pl.col("busy_s").fill_null(0.0), pl.col("seconds").fill_null(float("nan"))
    return (
        name_arms(timings)
        .with_columns(truth=(seconds / (seconds - busy)).log())
        .group_by(*arm, "group", "block")
        .agg(pl.col("truth").mean())
        .group_by(*arm, "group")
        .agg(pl.col("truth").mean())
        .group_by(*arm)
        .agg(pl.col("truth").mean())
        .sort(*arm)
        .collect()
    )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the datasets say, by (cell, arm) or by cell."""

    ratios: Mapping[tuple[str, str], Mapping[int, float]]  # restart → y
    truths: Mapping[tuple[str, str], Mapping[int, float]]
    runs: Mapping[tuple[str, str], Mapping[int, Array]]  # restart → seconds of its process
    machines: Mapping[str, int]  # different machines
    given_up: Mapping[str | None, str]  # why an arm of the cell was given up; None: of all cells, a build
    blocks: Blocks

    @classmethod
    def of(cls, frames: Frames) -> _Known:
        baselines = {cell["id"]: cell["baseline"] for cell in frames.run["cells"]}
        timings = counting(frames.timings)
        order = ["restart", "group", "block", "run_index"]
        runs = (
            name_arms(timings)
            .sort("cell", "recipe", *order)
            .group_by("cell", "recipe", "restart", maintain_order=True)
            .agg(pl.col("seconds").filter(pl.col("group") == pl.col("group").first()))
            .collect()
        )
        machines = frames.machines.group_by("cell").agg(pl.struct("hostname", "hardware").n_unique()).collect()
        failures = frames.failures.filter(pl.col("kind") != ONE_RESTART).sort("at").collect()
        return cls(
            ratios=_by_arm(restart_ratios(frames.blocks, baselines), "y"),
            truths=_by_arm(truths(timings), "truth"),
            runs={
                arm: {restart: np.array(values, dtype=float) for restart, values in found.items()}
                for arm, found in _by_arm(runs, "seconds").items()
            },
            machines=dict(machines.iter_rows()),
            given_up={row["cell"]: _line(row) for row in failures.to_dicts()},
            blocks=_blocks(frames.blocks),
        )


def _left_out(cell: Mapping[str, Any], design: Design, known: _Known) -> LeftOut | None:
    """Why `cell` has no result, None when all its arms have theirs."""
    name, base = cell["workload"], (cell["id"], cell["baseline"])
    for arm in calibration.arms(design, calibration.number(name)):
        if arm == cell["baseline"]:
            continue
        y = known.ratios.get((cell["id"], arm), {})
        if len(y) < design.restarts:
            if why := known.given_up.get(cell["id"]) or known.given_up.get(None):
                return LeftOut(name, "failed", why)
            return LeftOut(name, "unfinished", f"{arm} has {len(y)} of {design.restarts} restarts")
        in_order = [y[restart] for restart in sorted(y)]
        broken = unusable(in_order) or unusable(in_order[: design.restarts])
        if broken:
            return LeftOut(name, "void", f"{arm}: {broken[1]}")
        if not all(_usable(known.runs.get(key, {}).get(restart)) for key in (base, (cell["id"], arm)) for restart in y):
            return LeftOut(name, "void", f"{arm}: runs without positive, finite seconds")
        true = [known.truths[cell["id"], arm][restart] for restart in y]
        if arm != CONTROL and not all(math.isfinite(value) and value > 0 for value in true):
            return LeftOut(name, "void", f"{arm}: its busy loop took nothing, or all, of a run")
    if known.machines.get(cell["id"], 1) > 1:
        return LeftOut(name, "void", "timed on two machines")
    return None


def _usable(seconds: Array | None) -> bool:
    return seconds is not None and len(seconds) > 1 and bool(np.isfinite(seconds).all() and (seconds > 0).all())


def _compared(cell: Mapping[str, Any], design: Design, known: _Known) -> Iterator[dict[str, Any]]:
    """One row a comparison of a finished cell."""
    slowdowns = {calibration.slowed(share): share for share in design.slowdowns}
    for arm in calibration.arms(design, calibration.number(cell["workload"])):
        if arm == cell["baseline"]:
            continue
        key = cell["id"], arm
        restarts = sorted(known.ratios[key])
        found = estimate([known.ratios[key][restart] for restart in restarts], design.restarts)
        low, high = found.interval()
        slowed = arm != CONTROL
        truth = float(np.mean([known.truths[key][restart] for restart in restarts])) if slowed else 0.0
        samples = Samples(
            baseline=tuple(known.runs[cell["id"], cell["baseline"]][restart] for restart in restarts),
            arm=tuple(known.runs[key][restart] for restart in restarts),
            estimate=found,
            margin=margin_of(design.provider),
        )
        yield {
            "workload": cell["workload"],
            "recipe": arm,
            "slowdown": slowdowns.get(arm, 0.0),
            "restarts": len(restarts),
            "y": found.mean,
            "low": low,
            "high": high,
            "truth": truth,
            # a hair wider, since Stein's total is the smallest that reaches it
            "reached": (high - low) / 2 <= design.half_width * (1 + 1e-9),
            "covered": low <= truth <= high,
            **{name: procedure.claim(samples) for name, procedure in PROCEDURES.items()},
        }


def _rate(procedure: str, slowdown: float, part: pl.DataFrame) -> Rate:
    claims = part[procedure].to_list()
    n = len(claims)
    found = Share(claims.count(1), n) if slowdown else Share(0, 0)
    return Rate(procedure, slowdown, Share(n - claims.count(0), n), found)


def _ours(slowdown: float, part: pl.DataFrame) -> Ours:
    narrow = part.filter("reached")
    true = part["truth"].to_list()

    def found(rows: pl.DataFrame) -> Share:
        return Share(rows[OURS].to_list().count(1), len(rows)) if slowdown else Share(0, 0)

    return Ours(
        slowdown=slowdown,
        truth=math.expm1(sum(true) / len(true)) if true else slowdown,
        reached=Share(len(narrow), len(part)),
        found=found(part),
        covered=Share(int(part["covered"].sum()), len(part)),
        found_reached=found(narrow),
        covered_reached=Share(int(narrow["covered"].sum()), len(narrow)),
    )


def _blocks(rows: pl.LazyFrame) -> Blocks:
    """Count blocks; a block is dropped or flagged for all of its arms at once."""
    block = ["cell", "restart", "group", "block"]
    kept, disturbed = pl.col("kept").fill_null(True).all(), pl.col("disturbed").is_not_null().any()
    found = rows.group_by(block).agg(kept=kept, disturbed=disturbed).collect()
    return Blocks(
        all=len(found),
        dropped=found.filter(~pl.col("kept")).height,
        flagged=found.filter(pl.col("kept") & pl.col("disturbed")).height,
    )


def _by_arm(table: pl.DataFrame, column: str) -> dict[tuple[str, str], dict[int, Any]]:
    found: dict[tuple[str, str], dict[int, Any]] = {}
    for cell, recipe, restart, value in table.select("cell", "recipe", "restart", column).iter_rows():
        found.setdefault((cell, recipe), {})[restart] = value
    return found


def _line(row: Mapping[str, Any]) -> str:
    message = " ".join(str(row["message"] or row["kind"] or "no message").split())
    return ": ".join(word for word in (row["recipe"], row["stage"], message) if word)
