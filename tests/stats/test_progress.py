"""How far a cell is, from parts on disk."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llama_bench import folding, parts, results
from llama_bench.stats import progress
from llama_bench.store import Store
from llama_bench.sweep import Measure

RUN, CELL = "s/20260101-000000-abc", "c0"
WHERE = {"cell": CELL, "model": "m", "workload": "w", "target": "t"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    results.write_run(store, RUN, {"fingerprint": "abc"})
    return store


def restart(
    store: Store, number: int, seconds: dict[str, float], *, committed: bool = True, group: int = 0, phase: str = "main"
) -> None:
    """Write the parts of one restart in which each arm took so many seconds in each of two blocks."""
    where = {**WHERE, "restart": number, "group": group, "phase": phase}
    rows = [
        {**where, "block": block, "position": i, "recipe": name, "control": name == "control",
         "log_seconds": math.log(value), "kept": True}
        for block in range(2)
        for i, (name, value) in enumerate(seconds.items())
    ]  # fmt: skip
    stem = f"{CELL}-r{number:04d}"
    parts.write_part(store, RUN, "blocks", stem, rows)
    if committed:
        piece = {"piece": stem, "kind": "restart", "wall_s": 10.0 + number, "started_at": datetime.now(UTC)}
        parts.write_part(store, RUN, "pieces", stem, [{**where, **piece}])


def failure(store: Store, recipe: str, kind: str, number: int | None = None) -> None:
    row = {**WHERE, "recipe": recipe, "kind": kind, "restart": number, "stage": "slot", "at": datetime.now(UTC)}
    parts.write_part(store, RUN, "failures", f"{CELL}-f{number}{recipe}", [row])


def read(store: Store, **options: Any) -> progress.Progress:
    return progress.read(store, RUN, CELL, "original", **options)


def test_a_cell_without_parts_begins_at_restart_zero(store: Store) -> None:
    found = read(store)
    assert (found.next_restart, dict(found.restarts), found.lost) == (0, {}, set())


def test_finished_restarts_are_counted_for_each_arm_and_give_its_ratios(store: Store) -> None:
    restart(store, 0, {"original": 1.0, "fast": 0.5, "control": 1.0})
    restart(store, 1, {"original": 1.0, "fast": 0.25, "control": 1.0})
    found = read(store)
    assert (found.restarts["fast"], found.restarts["original"], found.next_restart) == (2, 2, 2)
    assert found.ratios["fast"] == pytest.approx([math.log(0.5), math.log(0.25)])
    assert found.pilot_s(0, 2) == 10.5


def test_a_restart_that_was_not_committed_does_not_count_but_its_number_is_spent(store: Store) -> None:
    restart(store, 0, {"original": 1.0, "fast": 0.5}, committed=False)
    found = read(store)
    assert found.restarts["fast"] == 0
    assert found.next_restart == 1


def test_a_lost_restart_spends_its_number_and_keeps_the_arm(store: Store) -> None:
    failure(store, "fast", progress.ONE_RESTART, 4)
    found = read(store)
    assert (found.next_restart, found.lost) == (5, set())


def test_an_arm_that_was_given_up_is_lost_until_failures_are_retried(store: Store) -> None:
    failure(store, "fast", "WorkError", 0)
    assert read(store).lost == {"fast"}
    assert read(store, retry_failed=True).lost == set()


def test_progress_kept_in_memory_equals_progress_read_from_disk(store: Store) -> None:
    kept = read(store)
    for number, fast in enumerate([0.5, 0.6, 0.4]):
        restart(store, number, {"original": 1.0, "fast": fast, "control": 1.0})
        blocks = results.scan(store.url(RUN))["blocks"].collect()
        kept.add(blocks.filter(blocks["restart"] == number), [(0, "main", 10.0 + number)])
    assert kept == read(store)


def test_folding_changes_no_progress(store: Store) -> None:
    for number in range(3):
        restart(store, number, {"original": 1.0, "fast": 0.5 + number / 10})
    before = read(store)
    folding.fold(store, RUN, CELL)
    assert read(store) == before


def test_each_arm_asks_by_its_own_pilot_and_controls_and_no_ops_ask_for_none(store: Store) -> None:
    for number, noise in enumerate([0.9, 1.1, 0.9, 1.1]):
        restart(store, number, {"original": 1.0, "quiet": 0.5, "noisy": 0.5 * noise, "control": 1.0 * noise})
    found = read(store)
    measure = Measure(restarts=4, half_width=0.05)
    assert found.wanted("noisy", measure) > 20
    assert found.wanted("quiet", measure) == found.wanted("control", measure) == found.wanted("original", measure) == 4
    identity = dict.fromkeys(("executed_sha256", "placement_sha256", "settings_sha256", "engine"), "same")
    effect = {"nodes_changed": 0, "nodes_before": 1, "nodes_after": 1, "histogram_difference": None}
    found.examined = {name: {**identity, **effect} for name in ("original", "noisy")}
    assert found.wanted("noisy", measure) == 4
    assert found.excluded == {"control", "noisy"}


def test_without_a_wanted_half_width_nobody_asks_for_more_than_the_pilot(store: Store) -> None:
    for number, noise in enumerate([0.9, 1.1, 0.9, 1.1]):
        restart(store, number, {"original": 1.0, "noisy": 0.5 * noise})
    assert read(store).wanted("noisy", Measure(restarts=4, half_width=None)) == 4


def test_restarts_that_confirm_are_counted_apart_and_give_no_ratios(store: Store) -> None:
    restart(store, 0, {"original": 1.0, "fast": 0.5})
    restart(store, 1, {"original": 1.0, "fast": 0.9}, phase="confirm")
    found = read(store)
    assert (found.restarts["fast"], found.confirmed["fast"], found.next_restart) == (1, 1, 2)
    assert found.ratios["fast"] == pytest.approx([math.log(0.5)])
    assert len(found.restart_s) == 1


def test_dropped_blocks_are_counted_once_whatever_the_number_of_arms(store: Store) -> None:
    where = {**WHERE, "restart": 0, "group": 0, "phase": "main", "log_seconds": 0.0, "control": False}
    rows = [
        {**where, "block": block, "position": i, "recipe": name, "kept": block != 1}
        for block in range(3)
        for i, name in enumerate(("original", "fast"))
    ]
    parts.write_part(store, RUN, "blocks", f"{CELL}-r0000", rows)
    piece = {**WHERE, "restart": 0, "group": 0, "phase": "main", "kind": "restart", "wall_s": 1.0}
    parts.write_part(store, RUN, "pieces", f"{CELL}-r0000", [{**piece, "piece": f"{CELL}-r0000"}])
    assert read(store).dropped == 1


def test_an_arm_with_an_answer_outside_its_bound_is_never_the_fastest(store: Store) -> None:
    restart(store, 0, {"original": 1.0, "fast": 0.5})
    row = {**WHERE, "restart": 0, "group": 0, "phase": "main", "control": False, "output": "logits"}
    rows = [{**row, "recipe": "original", "within_bound": True}, {**row, "recipe": "fast", "within_bound": False}]
    parts.write_part(store, RUN, "accuracy", f"{CELL}-r0000", rows)
    found = read(store)
    assert found.wrong == {"fast"}
    assert "fast" in found.excluded
