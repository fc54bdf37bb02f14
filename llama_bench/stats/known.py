"""What a run's datasets say about each arm, and what is wrong with it, before anything is judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.plan import TORCH
from llama_bench.results import Datasets
from llama_bench.stats import evidence
from llama_bench.stats.bound import Bound, fractions
from llama_bench.stats.ratios import (
    CONFIRM,
    group_ratios,
    name_arms,
    over_groups,
    restart_ratios,
    slot_counts,
    stein_total,
)
from llama_bench.stats.times import arm_times
from llama_bench.stats.verdicts import Comparison
from llama_bench.sweep import CONTROL, Sweep

Row = Mapping[str, Any]
Key = tuple[str, str]
"""(cell id, arm)"""


@dataclass(frozen=True, slots=True)
class Known:
    """What the datasets of a run say, by (cell, arm) or by cell; `ratios` are the main phase's, `fresh` confirm's."""

    sweep: Sweep
    cells: Sequence[Row]
    times: Mapping[Key, Row]
    slots: Mapping[Key, Row]
    ratios: Mapping[Key, tuple[float, ...]]
    together: Mapping[str, Mapping[int, Mapping[str, Mapping[int, float]]]]  # cell → group → arm → restart → y
    fresh: Mapping[Key, tuple[float, ...]]
    variants: Mapping[Key, Row]
    accuracy: Mapping[Key, Sequence[Row]]
    failures: Sequence[Row]
    unserved: Mapping[str, str]
    blocks: Mapping[str, Row]  # cell → how many blocks were timed, dropped, flagged
    machines: Mapping[str, str]  # cell → the sentence about its two machines
    bounds: Mapping[Key, Bound]  # what each arm reaches of its machine's speed

    def comparison(self, cell: Row, name: str) -> Comparison:
        """Return everything that an arm's verdict is made of."""
        key = (cell["id"], name)
        base = self.variants.get((cell["id"], cell["baseline"]))
        control = name == CONTROL
        no_op = None if control else evidence.no_op(self.variants.get(key), base, cell["baseline"])
        return Comparison(
            y=self.ratios.get(key, ()),
            control=control,
            no_op=no_op,
            wrong=self.wrong(cell, name),
            problem=self.problem(cell, name, asks=not control and no_op is None),
        )

    def wrong(self, cell: Row, name: str) -> str | None:
        """Return the sentence about the arm's wrong answers, None where they are right."""
        return evidence.wrong(self.accuracy.get((cell["id"], name), []), cell.get("reference", TORCH))

    def problem(self, cell: Row, name: str, *, asks: bool = False) -> tuple[str, str] | None:
        """Return verdict and reason where the arm has no number whatever its ratios are, None where it may have one.

        `asks` says that the arm asks for more restarts than the pilot's (control, no-ops and the baseline do not).
        """
        key = (cell["id"], name)
        if key not in self.times:
            variant = self.variants.get(key)
            unserved = self.unserved.get(cell["target"])
            return evidence.without_number(cell, name, variant["variant"] if variant else None, self.failures, unserved)
        if cell["id"] in self.machines:
            return "void", self.machines[cell["id"]]
        if (fault := self._fault(cell, name)) is not None:
            return "void", fault
        base = cell["baseline"]
        problem = self._data_problem(cell, name) or self._died(cell, name, asks)
        if problem is None and name != base and (of_base := self._data_problem(cell, base)) is not None:
            return "inconclusive", f"nothing to compare with: of {base}, {of_base[1]}"
        return problem

    def void(self, cell: Row) -> bool:
        """Whether nothing that was timed in this cell can be compared: two machines, or a baseline beyond its own."""
        return cell["id"] in self.machines or self._fault(cell, cell["baseline"]) is not None

    def _fault(self, cell: Row, name: str) -> str | None:
        """The sentence about an arm, or its baseline, that is faster than its machine can be."""
        for one in (name, cell["baseline"]):
            bound = self.bounds.get((cell["id"], one))
            if bound is not None and bound.fault is not None:
                return bound.fault if one == name else f"nothing to compare with: {one} is at {bound.fault}"
        return None

    def _data_problem(self, cell: Row, name: str) -> tuple[str, str] | None:
        """What is wrong with an arm's timings themselves."""
        key = (cell["id"], name)
        times, slots = self.times.get(key), self.slots.get(key)
        if times is None:
            return None
        if times["unusable"]:
            return "failed", f"{times['unusable']} of {times['runs']} timed runs have no positive, finite seconds"
        if slots is not None:
            expected = slots["slots"] * cell.get("runs", self.sweep.measure.runs)
            if slots["missing"]:
                return "failed", f"{slots['missing']} of {slots['slots'] + slots['missing']} blocks lack its slot"
            if times["runs"] < expected:
                return "failed", f"only {times['runs']} of {expected} timed runs are there"
        if times["constant"]:
            return "inconclusive", f"all {times['runs']} timed runs took exactly the same time: no real clock says that"
        return None

    def _died(self, cell: Row, name: str, asks: bool) -> tuple[str, str] | None:
        """Whether the arm was given up before it had the restarts that its interval needs."""
        mine, measure = self.slots.get((cell["id"], name)), self.sweep.measure
        if mine is None:
            return None
        beside = [
            self.slots[cell["id"], other]["restarts"]
            for other in cell["arms"]
            if other not in (cell["baseline"], CONTROL, name) and (cell["id"], other) in self.slots
            if not set(mine["groups"]).isdisjoint(self.slots[cell["id"], other]["groups"])
        ]
        # Arms ask for restarts by their own spread: only below the pilot's is fewer than others have a sign of death.
        needed, others = measure.restarts, min(measure.restarts, max(beside, default=0))
        if asks and measure.half_width is not None:
            pilot = self.ratios.get((cell["id"], name), ())[: measure.restarts]
            needed = max(needed, stein_total(pilot, measure.half_width))
        sentence = evidence.died(
            cell, name, self.failures, restarts=mine["restarts"], last=mine["last"], needed=needed, others=others
        )
        return None if sentence is None else ("failed", sentence)


def gather(run: Row, frames: Mapping[str, pl.LazyFrame]) -> Known:
    """Read what the datasets `frames` (:func:`llama_bench.results.scan`) say about the cells of `run` (run.json)."""
    sweep = Sweep.model_validate(run["sweep"])
    order = list(sweep.targets)
    cells = sorted([*run["cells"], *_cells_of_unserved(run, sweep)], key=lambda cell: order.index(cell["target"]))
    baselines = {cell["id"]: cell["baseline"] for cell in cells}
    by_group = group_ratios(frames["blocks"], baselines)
    timings = frames.by_cell["timings"] if isinstance(frames, Datasets) else [frames["timings"]]
    times, variants = _by_arm(arm_times(timings)), _by_arm(name_arms(frames["variants"]).collect())
    return Known(
        sweep=sweep,
        cells=cells,
        times=times,
        slots=_by_arm(slot_counts(frames["blocks"])),
        ratios=_ratios(over_groups(by_group)),
        together=_together(by_group),
        fresh=_ratios(restart_ratios(frames["blocks"], baselines, CONFIRM)),
        variants=variants,
        accuracy=_grouped(name_arms(frames["accuracy"]).collect()),
        failures=frames["failures"].sort("at", nulls_last=False).collect().to_dicts(),
        unserved=evidence.unserved_targets(run),
        blocks=_blocks(frames["blocks"]),
        machines=_machines(frames["machines"]),
        bounds=fractions(
            sweep,
            cells,
            times,
            variants,
            frames["machines"].select("cell", "hardware").unique().collect().to_dicts(),
            frames["ceilings"].collect().to_dicts(),
        ),
    )


def _cells_of_unserved(run: Row, sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Cells of targets that no node serves, where run.json has none: their arms are rows too."""
    present = {cell["target"] for cell in run["cells"]}
    for target in evidence.unserved_targets(run):
        if target in present or target not in sweep.targets:
            continue
        for cell in sweep.chosen():
            if cell.target == target:
                yield {
                    "id": f"{cell.model.label}/{cell.workload}/{target}",
                    "model": cell.model.label,
                    "hidden_size": getattr(cell.model, "hidden_size", None),  # an own model has none
                    "workload": cell.workload,
                    "target": target,
                    "tokens": sweep.workloads[cell.workload].tokens,
                    "arms": list(cell.recipes),
                    "baseline": cell.baseline,
                }


def _blocks(blocks: pl.LazyFrame) -> dict[str, Row]:
    """Cell → blocks, dropped_blocks, flagged_blocks, over both phases; a block counts once whatever its arms."""
    kept = pl.col("kept").fill_null(True)
    block = ["cell", "restart", "group", "block"]
    counted = (
        blocks.group_by(block)
        .agg(kept=kept.all(), disturbed=pl.col("disturbed").is_not_null().any())
        .group_by("cell")
        .agg(
            blocks=pl.len().cast(pl.Int64),
            dropped_blocks=(~pl.col("kept")).sum().cast(pl.Int64),
            flagged_blocks=(pl.col("kept") & pl.col("disturbed")).sum().cast(pl.Int64),
        )
    )
    return {row["cell"]: row for row in counted.collect().to_dicts()}


def _machines(machines: pl.LazyFrame) -> dict[str, str]:
    """Cell → the sentence about its two machines, for the cells that have them."""
    rows: defaultdict[str, list[Row]] = defaultdict(list)
    for row in machines.select("cell", *evidence.MACHINE).unique().collect().to_dicts():
        rows[row["cell"]].append(row)
    said = {cell: evidence.two_machines(seen) for cell, seen in rows.items()}
    return {cell: sentence for cell, sentence in said.items() if sentence is not None}


def _together(by_group: pl.DataFrame) -> dict[str, dict[int, dict[str, dict[int, float]]]]:
    found: dict[str, dict[int, dict[str, dict[int, float]]]] = {}
    for cell, arm, restart, group, y in by_group.select("cell", "recipe", "restart", "group", "y").iter_rows():
        found.setdefault(cell, {}).setdefault(group, {}).setdefault(arm, {})[restart] = y
    return found


def _by_arm(table: pl.DataFrame) -> dict[Key, Row]:
    return {(row["cell"], row["recipe"]): row for row in table.to_dicts()}


def _grouped(table: pl.DataFrame) -> dict[Key, list[Row]]:
    groups: defaultdict[Key, list[Row]] = defaultdict(list)
    for row in table.to_dicts():
        groups[row["cell"], row["recipe"]].append(row)
    return groups


def _ratios(table: pl.DataFrame) -> dict[Key, tuple[float, ...]]:
    grouped = table.group_by("cell", "recipe", maintain_order=True).agg("y")
    return {(cell, recipe): tuple(values) for cell, recipe, values in grouped.iter_rows()}
