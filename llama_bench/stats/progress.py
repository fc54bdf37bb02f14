"""How far a cell is: which arm has which restarts, which are lost, and how many restarts its spread asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llama_bench.parts import finished
from llama_bench.results import scan
from llama_bench.schemas import SCHEMAS
from llama_bench.stats.evidence import no_op
from llama_bench.stats.ratios import name_arms, restart_ratios, stein_total
from llama_bench.store import Store
from llama_bench.sweep import CONTROL, Measure

ONE_RESTART = "lost"
"""`kind` of a failure that cost one restart; with every other kind the arm was given up."""


BLOCKS, ACCURACY = (pl.DataFrame(SCHEMAS[name].empty_table()).schema for name in ("blocks", "accuracy"))
"""Columns of the datasets that progress is made of."""


@dataclass(slots=True)
class Progress:
    """One cell's state, kept up to date by `add`, `judge` and `lost` while it is measured.

    `restarts` and `ratios` are of the main phase, `confirmed` counts the fresh restarts of the fastest arm; `dropped`
    are blocks that were disturbed and timed again.
    """

    cell: str
    baseline: str
    next_restart: int = 0
    restarts: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    ratios: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    confirmed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    restart_s: list[tuple[int, float]] = field(default_factory=list)  # (group, seconds) of the main phase
    dropped: int = 0
    examined: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def add(self, blocks: pl.DataFrame, seconds: Iterable[tuple[int, str, float]]) -> None:
        """Take in the rows of `blocks` of finished restarts, in their order, and group, phase and seconds of each."""
        self.restart_s.extend((group, wall_s) for group, phase, wall_s in seconds if phase == "main")
        if blocks.is_empty():
            return
        self.next_restart = max(self.next_restart, int(blocks["restart"].max()) + 1)  # type: ignore[arg-type]
        self.dropped += blocks.filter(~pl.col("kept")).select("restart", "block").unique().height
        counts = name_arms(blocks.lazy()).group_by("recipe", "phase").agg(pl.col("restart").n_unique()).collect()
        for name, phase, count in counts.iter_rows():
            (self.restarts if phase == "main" else self.confirmed)[name] += count
        for row in restart_ratios(blocks.lazy(), {self.cell: self.baseline}).iter_rows(named=True):
            self.ratios[row["recipe"]].append(row["y"])

    def judge(self, accuracy: pl.DataFrame) -> None:
        """Take in rows of `accuracy`: an arm with an answer outside its bound is never the fastest."""
        outside = name_arms(accuracy.filter(~pl.col("within_bound")).lazy()).collect()
        self.wrong |= set(outside["recipe"].to_list())

    def pilot_s(self, group: int, restarts: int) -> float:
        """Return the mean seconds of a group's first `restarts` restarts; of all restarts where it has none yet."""
        everyone = [seconds for _, seconds in self.restart_s]
        pilot = [seconds for number, seconds in self.restart_s if number == group][:restarts] or everyone
        return sum(pilot) / len(pilot)

    def wanted(self, name: str, measure: Measure) -> int:
        """Return how many restarts an arm's pilot asks for, for the wanted half-width of its 95 % interval.

        Controls and no-ops ask for none beyond the pilot, since no verdict hangs on their interval; nor does an arm
        that is lost.
        """
        if measure.half_width is None or name == self.baseline or name in self.excluded | self.lost:
            return measure.restarts
        return max(measure.restarts, stein_total(self.ratios[name][: measure.restarts], measure.half_width))

    @property
    def excluded(self) -> set[str]:
        """The arms that no verdict of speed is given: the control, no-ops, and wrong ones."""
        base = self.examined.get(self.baseline)
        idle = {name for name, row in self.examined.items() if name != self.baseline and no_op(row, base, "")}
        return {CONTROL} | idle | self.wrong


def read(store: Store, run: str, cell: str, baseline: str, *, retry_failed: bool = False) -> Progress:
    """Read a cell's progress from its parts on disk; with `retry_failed` arms given up before get another chance."""
    frames = scan(store.url(run), cell)
    mine = pl.col("cell") == cell
    progress = Progress(cell, baseline)
    pieces = frames["pieces"].filter(mine, pl.col("kind") == "restart").sort("restart").collect()
    seconds = pieces.select("group", "phase", "wall_s").rows()
    progress.add(frames["blocks"].filter(mine).sort("restart").collect(), seconds)
    progress.judge(frames["accuracy"].filter(mine).collect())
    progress.examined = {row["recipe"]: row for row in name_arms(frames["variants"].filter(mine)).collect().to_dicts()}
    failures = frames["failures"].filter(mine, pl.col("stage") != "build").collect()
    # a restart's number is never used twice, also when nothing of it counts
    started = [int(stem.rpartition("-r")[2]) for stem in _restart_stems(store, run, cell)]
    tried = failures["restart"].drop_nulls().to_list()
    progress.next_restart = max([progress.next_restart, *(number + 1 for number in [*started, *tried])])
    if not retry_failed:
        given_up = failures.filter(pl.col("kind") != ONE_RESTART, pl.col("recipe").is_not_null())
        progress.lost = set(given_up["recipe"].to_list())
    return progress


def _restart_stems(store: Store, run: str, cell: str) -> set[str]:
    stems = set().union(*finished(store, run).values())
    return {stem for stem in stems if stem.startswith(f"{cell}-r")}
