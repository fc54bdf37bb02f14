"""Two drivers on one store and one Ray: no piece twice, and the second is told what the first has."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import llama_bench
from llama_bench import results
from llama_bench.claims import Claims
from llama_bench.cluster import driver
from llama_bench.cluster.events import Event, RunResult
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Sweep
from llama_bench.sweep_file import select

from .conftest import prebuild

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def three_cells(tiny: dict[str, Any]) -> Sweep:
    tiny["workloads"] = {f"of{n}": {"sequence": n, "outputs": "hidden"} for n in (4, 8, 12)}
    tiny["recipes"] = {"original": {}}
    return Sweep.model_validate(tiny)


def test_two_drivers_that_begin_at_once_share_a_run_and_do_no_piece_twice(three_cells: Sweep, store: Store) -> None:
    outcomes: dict[int, RunResult] = {}

    def work(number: int) -> None:
        outcomes[number] = driver.run(three_cells, Store(store.uri))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = outcomes[0], outcomes[1]
    assert first.run == second.run
    assert first.failures == second.failures == []
    assert first.measured + second.measured == 3
    for one in (first, second):
        assert one.measured + one.reused + len(one.held) == 3
    frames = llama_bench.load(store.url(first.run))
    restarts = frames.pieces.filter(kind="restart").collect()
    assert restarts.height == restarts.select("cell", "restart").unique().height == 3 * 2
    builds = frames.pieces.filter(kind="build").collect()
    assert builds.height == len(make(three_cells, {}).artifacts)
    assert frames.timings.collect().height == 3 * 2 * 2 * 2 * 3  # cells, restarts, arms, blocks, runs
    assert not [key for key in store.keys(first.run) if "/claims/" in key or "/drivers/" in key]


def test_what_another_driver_has_is_left_to_it_and_said(three_cells: Sweep, store: Store) -> None:
    prebuild(three_cells, store)
    begun = driver.run(three_cells, store, only="workload=of4")
    other = next(cell for cell in make(three_cells, {}).cells if cell.workload_name == "of8")
    events: list[Event] = []
    cells = results.read_run(store, begun.run)["cells"]
    held = next(cell["id"] for cell in cells if cell["workload"] == other.workload_name)
    with Claims(store, begun.run) as claims:
        claims.take(held)
        outcome = driver.run(three_cells, store, on_event=events.append)
        assert outcome.held == {other.label: str(claims.driver)}
    assert (outcome.run, outcome.measured, outcome.reused) == (begun.run, 1, 1)
    assert [event.label for event in events if event.state == "held"] == [other.label]
    last = driver.run(three_cells, store)
    assert (last.measured, last.reused, last.held) == (1, 2, {})


def test_what_another_driver_builds_is_waited_for(three_cells: Sweep, store: Store) -> None:
    prebuild(select(three_cells, "workload=of4"), store)
    begun = driver.run(three_cells, store, only="workload=of4")
    wanted = [a for a in results.read_run(store, begun.run)["artifacts"] if not store.has(a)]
    waited: list[str] = []
    with Claims(store, begun.run) as claims:
        for artifact in wanted:
            claims.take(f"build-{artifact}")

        def watch(event: Event) -> None:
            if event.kind == "build" and event.state == "finished":
                assert not claims.held, "built what another driver was building"
            if "being built by another driver" in event.detail:
                waited.append(event.label)
                if len(waited) == 2:  # as if the other had died: they are nobody's now
                    claims.release(list(claims.held))

        outcome = driver.run(three_cells, store, on_event=watch)
    assert outcome.measured == 2
    assert len(waited) >= 2
