"""The restarts of a row, their spread, the order of its slots and the drift, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from llama_bench.report.explanation.section import Section, chance, change, share, times
from llama_bench.report.table import Table, plural
from llama_bench.stats.explained import Explained
from llama_bench.stats.order import Effect, Order
from llama_bench.stats.ratios import MAIN
from llama_bench.stats.slots import Restart, Slope

PER_ROW = 8
"""Restarts in a row of the table."""

SMALL = 0.05
"""A p-value below which an effect of the order or of time is named."""

MOST_LEVELS = 4
"""Arms that are named as what this one ran after: those with the largest effects."""


def restarts(found: Explained) -> Section | None:
    """Return the section about the restarts; None for what was not compared with a baseline."""
    if not found.restarts:
        return None
    main = [one for one in found.restarts if one.phase == MAIN]
    fresh = [one for one in found.restarts if one.phase != MAIN]
    sentences = [*_blocks(found), *_spread(found), *_outlier(found), *_lost(found)]
    marked = found.outlier.restart if found.outlier else None
    rows = (*_rows("", main, marked), *_rows("fresh ", fresh, None))
    notes = ["Each number is one restart's speedup, e to the minus of its mean y; a restart is fresh processes."]
    notes += ["* is an outlier, which counts all the same."] if found.outlier else []
    tables = (Table("", ("Restarts", "Speedup in each"), rows, tuple(notes), text=True),) if rows else ()
    return Section("Restarts and blocks", tuple(sentences), tables)


def _rows(phase: str, found: Sequence[Restart], marked: int | None) -> Iterator[tuple[str, str]]:
    for i in range(0, len(found), PER_ROW):
        row = found[i : i + PER_ROW]
        numbers = "  ".join(f"{times(math.exp(-one.y))}{'*' if one.restart == marked else ''}" for one in row)
        first, last = row[0].restart, row[-1].restart
        yield f"{phase}{first}" if first == last else f"{phase}{first} – {last}", numbers


def _blocks(found: Explained) -> Iterator[str]:
    total, dropped = sum(one.blocks for one in found.restarts), sum(one.dropped for one in found.restarts)
    flagged = sum(one.flagged for one in found.restarts)
    words = list(dict.fromkeys(word for one in found.restarts for word in one.disturbed))
    fresh = sum(one.phase != MAIN for one in found.restarts)
    beside = f", {fresh} of them fresh ones for the confirmation" if fresh else ""
    where = f"{plural(total, 'block')} of {plural(len(found.restarts), 'restart')}"
    yield f"It is compared with its baseline in {where}{beside}."
    if dropped:
        yield f"{plural(dropped, 'block')} more {_were(dropped)} disturbed, left out for all arms, and timed again."
    if flagged:
        yield (
            f"{flagged} of the blocks that count {_were(flagged)} disturbed too, and kept, since a fifth had been left "
            "out before."
        )
    if not dropped and not flagged:
        yield "No block was left out and none is flagged as disturbed."
    if words:
        yield f"What disturbed them: {'; '.join(words[:5])}{'; …' if len(words) > 5 else ''}."


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _spread(found: Explained) -> Iterator[str]:
    one = found.spread
    if one is None:
        if len([r for r in found.restarts if r.phase == MAIN]) > 1:
            yield "With one block a restart nothing tells spread between restarts from spread within them."
        return
    yield f"Within a restart the ratio of a block has a standard deviation of {share(one.within)}."
    if one.between:
        yield (
            f"Beyond what that explains restarts differ by {share(one.between)}, which is {share(one.share, 0)} of the "
            f"variance of a restart's mean ({chance(one.p)} for there being nothing)."
        )
    else:
        yield f"Restarts differ by no more than that explains ({chance(one.p)} for there being nothing beyond)."


def _outlier(found: Explained) -> Iterator[str]:
    one = found.outlier
    if one is None:
        return
    yield (
        f"Restart {one.restart} is an outlier: among equal ones with normal spread it would be as far out with "
        f"{chance(one.p)} (Grubbs). It counts all the same, since restarts are never chosen; without it the speedup "
        f"would be {times(math.exp(-one.mean_without))}."
    )


def _lost(found: Explained) -> Iterator[str]:
    lost = [one for one in found.lost if one.kind != "skipped"]
    if lost:
        last = lost[-1]
        where = f"restart {last.restart}: " if last.restart is not None else ""
        yield (
            f"{plural(len(lost), 'failure')} of this arm or its cell {_were(len(lost))} recorded on the way, the last: "
            f"{where}{last.stage or 'measure'}: {last.message}."
        )


def order(found: Explained) -> Section | None:
    """Return the section about order and drift; None for what was not compared."""
    if not found.restarts:
        return None
    sentences = [*_position(found.order), *_after(found), *_drift(found)]
    tables = []
    if found.order and found.order.position.p < SMALL:
        tables.append(_levels("Time by position in the block", "Position", found.order.position))
    return Section("Order and drift", tuple(sentences), tuple(tables))


def _position(one: Order | None) -> Iterator[str]:
    if one is None:
        yield "Too few blocks with three arms or more to ask whether the position in a block matters."
        return
    levels = [level.mean for level in one.position.levels]
    matters = "matters" if one.position.p < SMALL else "cannot be told to matter"
    yield (
        f"The position in the block {matters} here: over {plural(one.blocks, 'block')} of up to {one.arms} arms slots "
        f"took from {change(min(levels))} to {change(max(levels))} by position, each arm against itself, and orders "
        f"drawn at random show as much with {chance(one.position.p)}."
    )
    yield (
        f"This arm's slots were at position {one.mean_position + 1:.1f} on average, the baseline's at "
        f"{one.baseline_position + 1:.1f}; by those means, chance or not, its positions are worth "
        f"{change(one.bias, 2)} of its time."
    )


def _after(found: Explained) -> Iterator[str]:
    one = found.order
    if one is None or one.after is None:
        return
    if one.after.p < SMALL:
        yield (
            f"Which arm ran right before a slot matters, over all arms together ({chance(one.after.p)}): "
            f"{_named(one.after)} (time against the same arm's other slots)."
        )
    else:
        yield (
            "Which arm ran right before a slot cannot be told to matter, over all arms together "
            f"({chance(one.after.p)})."
        )
    if one.own is None:
        yield "This arm's own slots are too few to say after whom it is slower."
    elif one.own.p < SMALL:
        yield f"For this arm it matters after whom it runs ({chance(one.own.p)}): {_named(one.own)}."
    else:
        yield (
            f"Nor for this arm alone ({chance(one.own.p)})."
            if one.after.p >= SMALL
            else (f"For this arm alone it cannot be told to matter ({chance(one.own.p)}).")
        )


def _named(effect: Effect) -> str:
    largest = sorted(effect.levels, key=lambda level: -abs(level.mean) * math.sqrt(level.slots))[:MOST_LEVELS]
    return ", ".join(f"after {one.name} {change(one.mean)} ({plural(one.slots, 'slot')})" for one in largest)


def _drift(found: Explained) -> Iterator[str]:
    drift = found.drift
    if drift.ratio_by_block is None and drift.ratio_by_restart is None:
        yield "Too few blocks and restarts to tell whether its ratio drifts."
    yield from _line(drift.ratio_by_block, "Over the blocks of a restart its time against the baseline's", "a block")
    yield from _line(drift.ratio_by_restart, "From restart to restart its time against the baseline's", "a restart")
    yield from _line(drift.shared_by_block, "All arms together, over the blocks of a restart, ", "a block", shared=True)
    yield from _line(drift.baseline_by_restart, "The baseline, from restart to restart, ", "a restart", shared=True)


def _line(one: Slope | None, what: str, step: str, *, shared: bool = False) -> Iterator[str]:
    """A sentence about a slope; what all arms share is said only where it is there, as it cancels in ratios."""
    if one is None or (shared and one.p >= SMALL):
        return
    ends = f"[{change(one.low, 2)}, {change(one.high, 2)}] {step}, {chance(one.p)}"
    if shared:
        yield f"{what}drifts by {change(one.slope, 2)} {ends}; what arms of a block share cancels in the ratio."
    elif one.p < SMALL:
        yield f"{what} drifts by {change(one.slope, 2)} {ends}."
    else:
        yield f"{what} shows no drift that could be told: {change(one.slope, 2)} {ends}."


def _levels(title: str, what: str, effect: Effect) -> Table:
    rows = tuple((f"{int(one.name) + 1}", change(one.mean, 2), f"{one.slots}") for one in effect.levels)
    return Table(title, (what, "Time, each arm against itself", "Slots"), rows)
