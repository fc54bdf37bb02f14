"""Timings in their order: nothing that was seen is left out of what is drawn."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report import slots
from llama_bench.stats import views


def frames(world: Any) -> views.Frames:
    return views.make(world.run, world.datasets())


def test_each_slot_stands_against_its_arms_median_in_the_order_of_timing(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.5, executed="aa")})
    found = slots.in_order(frames(world).blocks).collect()
    assert found["slot"].to_list() == list(range(6 * 4 * 3))
    assert found["restart"].is_sorted()
    assert found["change"].abs().max() < 0.3  # an arm twice as fast is no outlier
    assert abs(found["change"].median()) < 0.02


def test_a_dropped_block_is_marked_and_counted(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    world.disturb(2, 1, "fast", kept=False)
    world.disturb(3, 0, "fast", kept=True)
    found = slots.charts(frames(world).blocks, frames(world).speedups.collect())
    [figure] = found.values()
    assert "75 slots, 3 of blocks that were timed again, 3 disturbed and kept" in figure.first.caption
    table = slots.in_order(frames(world).blocks).collect()
    again = table.filter(state=slots.STATES[2])
    assert again["change"].max() == pytest.approx(2, abs=0.5)  # the slot that took three times as long


def test_many_slots_share_marks_whose_lines_reach_all_of_them() -> None:
    table = pl.DataFrame(
        {
            "slot": range(1000),
            "restart": [n // 500 for n in range(1000)],
            "state": [slots.STATES[2] if n == 333 else slots.STATES[0] for n in range(1000)],
            "change": [9.0 if n == 334 else 0.0 for n in range(1000)],
        }
    )
    found = slots.marks(table, most=100)
    assert len(found) <= 102
    assert found["slots"].sum() == 1000
    assert found["high"].max() == 9.0
    assert found.filter(state=slots.STATES[2])["slots"].to_list() == [1]


def test_a_run_without_blocks_has_no_chart(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth()}, restarts=0)
    assert slots.charts(frames(world).blocks, frames(world).speedups.collect()) == {}
