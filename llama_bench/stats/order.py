"""Does it matter when in a block an arm had its slot, or after whom? Tests by drawing the orders again. Pure.

The order in each block was drawn at random, so the tests need no assumption about times: if a slot takes the same
time wherever it stands, any other order would have been as likely, and the statistic's place among those of many
drawn orders is its p-value (Fisher 1935, "The Design of Experiments"; Phipson & Smyth 2010 for the + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from llama_bench.stats.ratios import MAIN, counting
from llama_bench.stats.slots import BLOCK

DRAWS = 1999
"""Orders that are drawn for a test: a p-value is no smaller than 1/2000."""

AT_ONCE = 100
"""Orders that are looked at together: fewer take longer, more take memory."""

SEED = 20261128
"""Of the drawn orders, so that the same rows give the same p-values."""

ENOUGH = 3
"""Slots that an arm needs after each of the others, on average, before anything is said of whom it followed."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Level:
    """What slots took at one place, against the same arms elsewhere: `mean` of ln seconds over `slots`."""

    name: str
    mean: float
    slots: int


@dataclass(frozen=True, slots=True)
class Effect:
    """The levels of one kind of place, and the p-value of "it does not matter"."""

    levels: tuple[Level, ...]
    p: float


@dataclass(frozen=True, slots=True)
class Order:
    """What the order in the blocks did. `blocks` are those that were looked at, `arms` the most in one of them.

    `position` is about places in the block, `after` about the arm that ran right before, over all arms' slots; `own` is
    like `after` for this arm's slots alone, None where they are too few. `mean_position` counts from 0. `bias` is what
    the positions that this arm and its baseline had are worth in y = ln(arm / baseline), by the means of `position`.
    """

    blocks: int
    arms: int
    mean_position: float
    baseline_position: float
    bias: float
    position: Effect
    after: Effect | None
    own: Effect | None


@dataclass(frozen=True, slots=True)
class _Table:
    """Blocks of one group of arms: what is left of ln seconds, and positions, blocks × arms."""

    arms: Integers
    left: Floats
    position: Integers


def order(slots: pl.DataFrame, arm: str, baseline: str, draws: int = DRAWS) -> Order | None:
    """Return what the order did in the blocks that have both arms; None with fewer than two blocks or three arms.

    `slots` are those of :func:`llama_bench.stats.slots.of_cell`. Of ln seconds the mean of the arm in its restart (over
    all restarts where one has a single block) and the mean of the block are taken away. `draws` orders make a p-value.
    """
    names = slots["recipe"].unique(maintain_order=True).to_list()
    tables = [table for table in _tables(slots, names, {arm, baseline}) if table.left.shape[1] > 2]
    blocks = sum(len(table.left) for table in tables)
    if blocks < 2:
        return None
    number = {name: i for i, name in enumerate(names)}
    most = max(table.left.shape[1] for table in tables)
    mine, base = number[arm], number[baseline]
    found = _sums(tables, [_orders(table)[np.newaxis] for table in tables], most, len(names), mine)
    rng, beyond = np.random.default_rng(SEED), np.zeros(3)
    for first in range(0, draws, AT_ONCE):
        drawn = [_drawn(rng, table, min(AT_ONCE, draws - first)) for table in tables]
        again = _sums(tables, drawn, most, len(names), mine)
        # a hair less: the same sum in another order must count as equal
        beyond += [int((_size(a) >= _size(f) * (1 - 1e-9)).sum()) for a, f in zip(again, found, strict=True)]
    position, after, own = (
        Effect(_levels(sums[:, 0], labels), float((more + 1) / (draws + 1)))
        for sums, labels, more in zip(found, ([str(i) for i in range(most)], names, names), beyond, strict=True)
    )
    places = [_places(table, mine, base) for table in tables]
    at, of_base = (np.concatenate(one) for one in zip(*places, strict=True))
    totals, counts = found[0][:, 0]
    means = np.divide(totals, counts, out=np.zeros(most), where=counts > 0)
    return Order(
        blocks=blocks,
        arms=most,
        mean_position=float(at.mean()),
        baseline_position=float(of_base.mean()),
        bias=float((means[at] - means[of_base]).mean()),
        position=position,
        after=after if blocks >= ENOUGH else None,
        own=own if found[2][1, 0].sum() >= ENOUGH * (most - 1) else None,
    )


def _sums(tables: Sequence[_Table], orders: Sequence[Integers], most: int, arms: int, mine: int) -> tuple[Floats, ...]:
    """Sums and counts by position, by the arm before, and by the arm before `mine`: each 2 × draws × levels.

    `orders` has draws × blocks × arms of each table: the places in the table of the arms in turn.
    """
    draws = len(orders[0])
    place, before, own = (np.zeros((2, draws, n)) for n in (most, arms, arms))
    for table, turn in zip(tables, orders, strict=True):
        left = np.take_along_axis(np.broadcast_to(table.left, turn.shape), turn, axis=2)
        place[0, :, : turn.shape[2]] += left.sum(axis=1)
        place[1, :, : turn.shape[2]] += turn.shape[1]
        whose = table.arms[turn]
        level = whose[:, :, :-1] + arms * np.arange(draws)[:, np.newaxis, np.newaxis]
        ours = whose[:, :, 1:] == mine
        for sums, which in ((before, np.ones_like(ours)), (own, ours)):
            counted = level[which]
            sums[0] += np.bincount(counted, left[:, :, 1:][which], draws * arms).reshape(draws, arms)
            sums[1] += np.bincount(counted, minlength=draws * arms).reshape(draws, arms)
    return place, before, own


def _size(sums: Floats) -> Floats:
    """The sum of squares between levels, of each draw."""
    squares: Floats = np.divide(sums[0] ** 2, sums[1], out=np.zeros_like(sums[0]), where=sums[1] > 0)
    total: Floats = squares.sum(axis=1)
    return total


def _levels(sums: Floats, labels: Sequence[str]) -> tuple[Level, ...]:
    return tuple(
        Level(label, float(total / count), int(count))
        for label, total, count in zip(labels, *sums, strict=True)
        if count
    )


def _drawn(rng: np.random.Generator, table: _Table, draws: int) -> Integers:
    """Random orders of every block: draws × blocks × arms."""
    found: Integers = np.argsort(rng.random((draws, *table.left.shape)), axis=2)
    return found


def _orders(table: _Table) -> Integers:
    return np.argsort(table.position, axis=1)


def _places(table: _Table, mine: int, base: int) -> tuple[Integers, Integers]:
    turns = _rank(table.position)
    return turns[:, int(np.flatnonzero(table.arms == mine)[0])], turns[:, int(np.flatnonzero(table.arms == base)[0])]


def _rank(position: Integers) -> Integers:
    return np.argsort(np.argsort(position, axis=1), axis=1)


def _tables(slots: pl.DataFrame, names: Sequence[str], wanted: set[str]) -> list[_Table]:
    """The complete blocks of each set of arms that were timed together, those that have the wanted arms."""
    kept = counting(slots.lazy(), MAIN).filter(pl.col("log_seconds").is_finite()).collect()
    sets: dict[tuple[str, ...], list[pl.DataFrame]] = {}
    for _, block in kept.group_by(BLOCK, maintain_order=True):
        arms = tuple(name for name in names if name in set(block["recipe"]))
        if wanted <= set(arms) and len(arms) == len(block) and block["position"].null_count() == 0:
            sets.setdefault(arms, []).append(block)
    return [_table(arms, blocks, names) for arms, blocks in sets.items() if len(blocks) > 1]


def _table(arms: tuple[str, ...], blocks: list[pl.DataFrame], names: Sequence[str]) -> _Table:
    number = {name: i for i, name in enumerate(arms)}
    values, position = np.empty((len(blocks), len(arms))), np.empty((len(blocks), len(arms)), dtype=np.int64)
    for i, block in enumerate(blocks):
        at = [number[name] for name in block["recipe"]]
        values[i, at], position[i, at] = block["log_seconds"].to_numpy(), block["position"].to_numpy()
    numbered: dict[tuple[int, int], int] = {}
    replicate = np.array(
        [numbered.setdefault((block["restart"][0], block["group"][0]), len(numbered)) for block in blocks]
    )
    if min(np.unique(replicate, return_counts=True)[1]) < 2:
        replicate[:] = 0
    for one in np.unique(replicate):
        values[replicate == one] -= values[replicate == one].mean(axis=0)
    values -= values.mean(axis=1, keepdims=True)
    return _Table(np.array([list(names).index(name) for name in arms]), values, position)
