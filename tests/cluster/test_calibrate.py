"""A calibration measured with plain processes: what it writes, going on, cells side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator

import polars as pl
import pytest

import llama_bench
from llama_bench.calibration import Design
from llama_bench.cluster import calibrate
from llama_bench.cluster.events import Event
from llama_bench.errors import InputError
from llama_bench.store import Store

DESIGN = Design(
    cells=2, slowed_every=2, slowdowns=(0.5,), restarts=2, blocks=2, runs=2, budget_s=0.1, hidden_size=16, layers=1,
    sequence=8,
)  # fmt: skip


@pytest.fixture
def events() -> list[Event]:
    return []


def test_every_cell_has_its_own_processes_and_the_arms_of_its_design(store: Store, events: list[Event]) -> None:
    result = calibrate.run(DESIGN, store, on_event=events.append)
    assert (result.measured, result.reused, result.failures) == (2, 0, [])
    frames = llama_bench.load(store.url(result.run))
    timings = frames.timings.collect()
    arms = {row["workload"]: set(row["recipe"]) for row in timings.group_by("workload").agg("recipe").to_dicts()}
    assert arms == {"cell-0001": {"original", "control"}, "cell-0002": {"original", "control", "slower_50"}}
    processes = timings.select("workload", "recipe", "restart", "pid", "process_started_at").unique()
    assert processes.height == processes.select("pid", "process_started_at").unique().height == (2 + 3) * 2
    assert timings.filter(pl.col("recipe") == "slower_50")["busy_s"].null_count() == 0
    assert frames.ceilings.collect().is_empty()
    assert [event.label for event in events if event.kind == "cell" and event.state == "finished"] == [
        "h16-l1-slowed-every-2/cell-0001/here",
        "h16-l1-slowed-every-2/cell-0002/here",
    ]
    again = calibrate.run(DESIGN, store, on_event=events.append)
    assert (again.run, again.measured, again.reused) == (result.run, 0, 2)


def test_an_interrupted_calibration_goes_on_with_the_restarts_that_are_missing(
    store: Store, events: list[Event]
) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "restart":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate.run(DESIGN, store, on_event=interrupt)
    before = llama_bench.load(store.url("calibrate")).timings.collect()
    result = calibrate.run(DESIGN, store, on_event=events.append)
    after = llama_bench.load(store.url(result.run)).timings.collect()
    first = (pl.col("workload") == "cell-0001") & (pl.col("restart") == 0)
    assert before.height == 2 * 2 * 2
    assert after.filter(first).equals(before)
    assert after["workload"].n_unique() == 2


@pytest.fixture
def two_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Two sets of cores, of this machine's first: it may have too few for the real ones."""
    core = min(os.sched_getaffinity(0))
    sets = [[core], [max(os.sched_getaffinity(0))]]
    monkeypatch.setattr(calibrate, "core_sets", lambda beside: sets)
    yield sets


def test_cells_side_by_side_are_each_measured_once_and_the_results_are_told_apart(
    two_sets: list[list[int]], store: Store, events: list[Event]
) -> None:
    alone = calibrate.run(DESIGN, Store(f"{store.uri}-alone"), on_event=lambda event: None)
    result = calibrate.run(DESIGN, store, beside=2, on_event=events.append)
    assert (result.measured, result.failures) == (2, [])
    assert alone.run.partition("-")[2] != result.run.partition("-")[2]
    timings = llama_bench.load(store.url(result.run)).timings.collect()
    assert timings.group_by("workload", "recipe").agg(pl.col("restart").n_unique())["restart"].to_list() == [2] * 5


def test_an_error_beside_others_is_raised_and_not_swallowed(
    two_sets: list[list[int]], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> Iterator[dict[str, str]]:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(calibrate, "measure_cell", broken)
    with pytest.raises(RuntimeError, match="the disk is full"):
        calibrate.run(DESIGN, store, beside=2, on_event=lambda event: None)


def test_more_cells_than_cores_and_cells_beside_each_other_on_ray_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match=r"--beside 4096: more than the \d+ cores here"):
        calibrate.run(DESIGN, store, beside=4096, on_event=lambda event: None)


def test_ray_and_cells_side_by_side_exclude_each_other(two_sets: list[list[int]], store: Store) -> None:
    with pytest.raises(InputError, match="leave one of them out"):
        calibrate.run(DESIGN, store, through="ray", beside=2, on_event=lambda event: None)


def test_core_sets_are_apart_and_leave_a_core_to_the_rest_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    sets = calibrate.core_sets(7)
    assert [len(cores) for cores in sets] == [2] * 7
    assert len({core for cores in sets for core in cores}) == 14
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    assert calibrate.core_sets(2) == [[0], [1]]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_through_ray_the_same_cells_are_measured_by_actors(store: Store, events: list[Event]) -> None:
    result = calibrate.run(DESIGN, store, through="ray", on_event=events.append)
    assert (result.measured, result.failures, result.unserved) == (2, [], {})
    frames = llama_bench.load(store.url(result.run))
    timings = frames.timings.collect()
    assert timings.select("workload", "recipe").unique().height == 2 + 3
    assert timings.select("pid", "process_started_at").unique().height == (2 + 3) * 2
    assert frames.machines.collect()["niceness"].unique().to_list() == [0]
