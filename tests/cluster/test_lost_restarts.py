"""Restarts that come to nothing, without Ray: how often they are tried, where, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

import llama_bench
from llama_bench import parts
from llama_bench.bench import machine
from llama_bench.cluster.build import build
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.job import Job, spared
from llama_bench.cluster.launch import Process
from llama_bench.cluster.processes import PlainProcess, Processes
from llama_bench.errors import WorkError
from llama_bench.plan import make
from llama_bench.stats.views import Frames
from llama_bench.store import Store
from llama_bench.sweep import Sweep

from .conftest import FACTS


@pytest.fixture
def job(tiny: dict[str, Any], store: Store) -> Job:
    """A cell with one recipe besides its baseline, built, and not measured yet."""
    tiny["recipes"].pop("eliminate_identity")
    tiny["measure"] |= {"confirm": False, "restarts": 3}
    plan = make(Sweep.model_validate(tiny), {})
    for artifact in plan.artifacts.values():
        build(artifact, store)
    identity = Identity(plan.sweep.model_dump(mode="json"), "code", {}, [machine.fingerprint(FACTS)])
    run = find_or_start(store, plan, identity, {}, {"here": FACTS}).run
    return Job(plan.cells[0], plan.sweep.measure, store.uri, run, "here", FACTS, 10**12, ceilings=False)


class Sabotaged(Processes):
    """Starts processes, and lets `sabotage` meet those of each restart: it is given the restart's number from 0."""

    def __init__(self, sabotage: Callable[[int, list[Process]], None]) -> None:
        super().__init__({})
        self._sabotage, self._restarts = sabotage, 0

    def start(self, make: Callable[[], Any], count: int) -> list[Process]:
        processes = super().start(make, count)
        self._sabotage(self._restarts, processes)
        self._restarts += 1
        return processes


def measure(job: Job, sabotage: Callable[[int, list[Process]], None]) -> tuple[Frames, list[dict[str, Any]]]:
    events = list(measure_cell(job, Sabotaged(sabotage)))
    return llama_bench.load(f"{job.store_uri}/{job.run}"), events


def stop(process: Process) -> None:
    assert isinstance(process, PlainProcess)
    process._process.kill()


def test_an_arm_lost_now_and_then_is_not_given_up(job: Job) -> None:
    frames, events = measure(job, lambda restart, made: stop(made[0]) if restart % 2 == 0 and restart < 6 else None)
    assert not [event for event in events if event["kind"] == "failure"]
    assert set(frames.failures.collect()["kind"]) == {"lost"}
    assert frames.failures.collect()["restart"].to_list() == [0, 2, 4]
    assert frames.pieces.filter(kind="restart").collect()["restart"].sort().to_list() == [1, 3, 5]


def test_a_model_that_is_not_there_for_a_moment_costs_one_restart(job: Job, store: Store) -> None:
    folder = store.fetch(job.cell.arms[0].variant)
    away = folder.with_name("away")

    def meanwhile(restart: int, made: list[Process]) -> None:
        if restart == 1:
            folder.rename(away)
        if restart == 2:
            away.rename(folder)

    frames, events = measure(job, meanwhile)
    assert not [event for event in events if event["kind"] == "failure"]
    assert frames.pieces.filter(kind="restart").collect()["restart"].sort().to_list() == [0, 2, 3]
    [row] = frames.failures.collect().to_dicts()
    assert (row["restart"], row["kind"], row["stage"]) == (1, "lost", "load")


def test_an_arm_lost_twice_in_a_row_is_given_up_where_there_is_no_other_node(job: Job, store: Store) -> None:
    def always(restart: int, made: list[Process]) -> None:
        for process in made:
            stop(process)

    frames, events = measure(job, always)
    failed = [event["detail"] for event in events if event["kind"] == "failure"]
    assert failed
    assert all("its process was lost" in detail for detail in failed)
    for _, rows in frames.failures.collect().sort("restart").group_by("recipe"):
        assert rows["kind"].to_list()[:2] in (["lost"], ["lost", "died"])  # once, and given up at the second time
    assert "died" in frames.failures.collect()["kind"].to_list()


def test_an_arm_lost_twice_in_a_row_ends_the_coordinator_where_another_node_could_try(job: Job) -> None:
    def always(restart: int, made: list[Process]) -> None:
        stop(made[0])

    with pytest.raises(WorkError, match="2 times in a row on this node"):
        measure(replace(job, elsewhere=True), always)
    frames = llama_bench.load(f"{job.store_uri}/{job.run}")
    lost = frames.failures.collect()
    assert set(lost["kind"]) == {"lost"}
    assert max(lost["recipe"].value_counts()["count"]) == 2


def test_a_restart_whose_number_somebody_else_has_written_is_thrown_away_whole(job: Job, store: Store) -> None:
    def meanwhile(restart: int, made: list[Process]) -> None:
        if restart == 1:  # another coordinator, which a network had held up, writes its first part
            parts.write_part(store, job.run, "timings", f"{job.cell.id}-r0001", [{"cell": job.cell.id, "restart": 1}])

    frames, _ = measure(job, meanwhile)
    assert frames.pieces.filter(kind="restart").collect()["restart"].sort().to_list() == [0, 2, 3]
    assert sorted(set(frames.timings.collect()["restart"])) == [0, 2, 3]
    [row] = frames.failures.collect().to_dicts()
    assert (row["restart"], row["kind"], row["stage"]) == (1, "lost", "write")
    assert frames.blocks.filter(pl.col("restart") == 1).collect().is_empty()


def test_an_examination_whose_process_dies_is_tried_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    once = Processes.once

    def dies_first(self: Processes, function: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(function.__name__)
        return once(self, die if len(calls) == 1 else function, *arguments)

    monkeypatch.setattr(Processes, "once", dies_first)
    frames, events = measure(job, lambda restart, made: None)
    assert not [event for event in events if event["kind"] == "failure"]
    [row] = frames.failures.collect().to_dicts()
    assert (row["kind"], row["stage"]) == ("lost", "examine")
    assert frames.variants.collect().height == 3


def die(*arguments: Any) -> None:
    import os

    os.abort()


def test_few_slots_are_told_and_everything_else() -> None:
    def events() -> Iterator[dict[str, Any]]:
        for _ in range(1000):
            yield {"kind": "slot"}
        yield {"kind": "restart"}

    kinds = [event["kind"] for event in spared(events())]
    assert kinds == ["slot", "restart"]
