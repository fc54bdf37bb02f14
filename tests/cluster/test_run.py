"""Whole runs on a real Ray of this machine: placement, exclusivity, unserved targets, lost actors, resuming."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

import llama_bench
from llama_bench.cluster import building, driver
from llama_bench.cluster.events import Event, RunResult
from llama_bench.errors import InputError, WorkError
from llama_bench.plan import Artifact, Plan
from llama_bench.stats.views import Frames
from llama_bench.store import Store
from llama_bench.sweep import Sweep

from .conftest import prebuild

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def run(
    data: dict[str, Any], store: Store, on_event: Any = lambda event: None, **options: Any
) -> tuple[RunResult, Frames]:
    result = driver.run(Sweep.model_validate(data), store, on_event=on_event, **options)
    return result, llama_bench.load(store.url(result.run))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Store, RunResult, Frames, list[Event]]:
    """A tiny sweep run to its end once, for the tests that only look."""
    from .conftest import TINY

    store = Store(tmp_path_factory.mktemp("finished") / "store")
    events: list[Event] = []
    result, frames = run(TINY, store, events.append)
    return store, result, frames, events


@pytest.fixture
def built(tiny: dict[str, Any], store: Store) -> dict[str, Any]:
    """The tiny sweep with all that it needs in `store`: for tests of what comes after building."""
    prebuild(Sweep.model_validate(tiny), store)
    return tiny


@pytest.fixture
def bare(tiny: dict[str, Any], store: Store) -> dict[str, Any]:
    """The tiny sweep with the original and its control alone, and all that it needs in `store`."""
    tiny["recipes"] = {"original": {}}
    prebuild(Sweep.model_validate(tiny), store)
    return tiny


def test_a_cells_own_blocks_and_runs_reach_its_arms(bare: dict[str, Any], store: Store, local_ray: None) -> None:
    bare["cells"] = [{"blocks": 1, "runs": 5}]
    _, frames = run(bare, store)
    counts = frames.timings.filter("kept").group_by("recipe").len().collect()
    assert dict(counts.iter_rows()) == dict.fromkeys(("original", "control"), 2 * 1 * 5)


def test_a_run_measures_every_arm_of_every_restart_and_says_where_its_time_went(finished: Any) -> None:
    _, result, frames, events = finished
    assert (result.measured, result.reused, result.failures, result.unserved) == (1, 0, [], {})
    counts = frames.timings.group_by("recipe", "restart").len().collect()
    assert counts.height == 4 * 2
    assert set(counts["len"]) == {2 * 3}
    assert {"plan", "connect", "build", "start", "load", "warmup", "washout", "timed"} <= set(result.breakdown)
    assert min(result.breakdown.values()) >= 0
    assert [event.kind for event in events if event.kind == "restart"] == ["restart"] * 2
    assert frames.ceilings.collect().is_empty()  # LLAMA_BENCH_CEILINGS is 0 here: tests/conftest.py


def test_every_arm_of_every_restart_is_a_process_of_its_own(finished: Any) -> None:
    frames = finished[2]
    arms = frames.timings.select("recipe", "control", "restart").unique().collect().height
    processes = frames.timings.select("pid", "process_started_at").unique().collect()
    assert processes.height == arms == 8
    assert os.getpid() not in processes["pid"]


def test_arms_run_at_niceness_zero_with_their_threads_on_the_node_that_serves_the_target(finished: Any) -> None:
    import ray

    _, _, frames, _ = finished
    machines = frames.machines.collect()
    assert machines["niceness"].unique().to_list() == [0]
    assert machines["threads"].unique().to_list() == [1]
    assert machines["provider"].unique().to_list() == ["CPUExecutionProvider"]
    assert machines["node"].unique().to_list() == [node["NodeID"] for node in ray.nodes()]
    assert frames.pieces.filter(pl.col("kind") == "restart").select("node").unique().collect().height == 1


def test_a_cpu_target_cannot_see_a_gpu(finished: Any) -> None:
    settings = finished[2].variants.select("settings").collect().to_series()
    assert all('"CUDA_VISIBLE_DEVICES": ""' in text for text in settings)


def test_a_pass_that_changes_nothing_is_a_no_op_and_another_level_is_not(finished: Any) -> None:
    rows = {row["recipe"]: row for row in finished[2].speedups.collect().to_dicts()}
    assert rows["eliminate_identity"]["verdict"] == "no-op"
    assert "changed 0 nodes" in rows["eliminate_identity"]["evidence"]
    assert rows["level0"]["verdict"] != "no-op"
    assert rows["control"]["control"] is True


def test_the_accuracy_of_every_timed_session_is_kept(finished: Any) -> None:
    rows = finished[2].accuracy.collect()
    assert rows.height == 3 * 4 * 2  # outputs × arms × restarts
    assert rows["within_bound"].all()


def test_running_a_finished_sweep_again_measures_nothing(finished: Any) -> None:
    from .conftest import TINY

    store, first, frames, _ = finished
    before = frames.timings.collect()
    again, after = run(TINY, store)
    assert again.run == first.run
    assert (again.measured, again.reused) == (0, 1)
    assert after.timings.collect().equals(before)


def processes(title: str) -> list[psutil.Process]:
    """The living processes with `title` on their command line; one that has just died has no command line."""
    return [p for p in psutil.process_iter(["cmdline"]) if title in " ".join(p.info["cmdline"] or [])]


def now() -> float:
    return time.time()


def test_while_a_cell_is_timed_nothing_else_gets_a_core(bare: dict[str, Any], store: Store) -> None:
    import ray

    intruders = []

    def intrude(event: Event) -> None:
        if event.kind == "slot" and "block" in event.detail and not intruders:
            intruders.append(ray.remote(num_cpus=1)(now).remote())

    _, frames = run(bare, store, intrude)
    last = frames.blocks.select(pl.col("started_at").max()).collect().item()
    assert isinstance(last, datetime)
    assert ray.get(intruders[0], timeout=200) > last.timestamp()


def test_a_target_that_no_node_serves_is_named_and_the_rest_runs(bare: dict[str, Any], store: Store) -> None:
    bare["targets"]["other"] = {"tag": "bench_quantum"}
    events: list[Event] = []
    result, frames = run(bare, store, events.append)
    [named] = [event for event in events if event.kind == "unserved"]
    assert named.label == "other"
    assert "no node offers bench_quantum" in named.detail
    assert "bench_cpu" in named.detail
    assert result.measured == 1
    verdicts = frames.speedups.filter(pl.col("target") == "other").select("verdict").collect().to_series()
    assert set(verdicts) == {"unserved"}


def test_a_killed_actor_costs_its_restart_which_is_done_again_under_a_new_number(
    bare: dict[str, Any], store: Store
) -> None:
    bare["measure"]["blocks"] = 40  # for a slot or two to be told of
    killed: list[int] = []

    def kill_one(event: Event) -> None:
        if event.kind == "slot" and " block " in event.detail and not killed:
            arms = processes("ray::Arm")
            killed.append(arms[0].pid)
            arms[0].kill()

    result, frames = run(bare, store, kill_one)
    assert result.failures == []
    [failure] = frames.failures.collect().to_dicts()
    assert (failure["restart"], failure["kind"], failure["stage"]) == (0, "lost", "slot")
    assert failure["recipe"] is not None
    assert sorted(frames.timings.select("restart").unique().collect().to_series()) == [1, 2]
    assert killed[0] not in frames.timings.select("pid").unique().collect().to_series()


def test_a_killed_coordinator_is_started_again_and_goes_on_from_its_parts(bare: dict[str, Any], store: Store) -> None:
    killed: list[int] = []

    def kill_it(event: Event) -> None:
        if event.kind == "restart" and not killed:
            [coordinator] = processes(f"ray::{event.label}")
            killed.append(coordinator.pid)
            coordinator.kill()

    result, frames = run(bare, store, kill_it)
    assert killed
    assert (result.measured, result.failures) == (1, [])
    assert frames.failures.select("kind").collect().to_series().to_list() == ["lost"]
    timed = frames.timings.group_by("restart").len().collect()
    assert timed.height == 2
    assert set(timed["len"]) == {2 * 2 * 3}  # arms, blocks, runs


def test_a_store_that_fails_for_a_moment_costs_the_restart_in_flight(bare: dict[str, Any], store: Store) -> None:
    bare["measure"] |= {"restarts": 4, "confirm": False}
    assert store.root is not None
    broken: list[Path] = []

    def watch(event: Event) -> None:
        if event.kind == "restart" and event.done == 1:
            [blocks] = store.root.glob("tiny/*/blocks")  # type: ignore[union-attr]
            broken.append(blocks.rename(blocks.with_name("away")))
            blocks.touch()  # no folder any more, so that nothing can be written into it
        if "its coordinator was lost" in event.detail:
            broken[0].with_name("blocks").unlink()
            broken[0].rename(broken[0].with_name("blocks"))

    result, frames = run(bare, store, watch)
    assert broken
    assert (result.measured, result.failures) == (1, [])
    [failure] = frames.failures.collect().to_dicts()
    assert failure["kind"] == "lost"
    assert "StoreError" in failure["message"]
    restarts = frames.pieces.filter(kind="restart").collect()["restart"].to_list()
    assert len(restarts) == len(set(restarts)) == 4


def test_an_interrupted_run_goes_on_from_its_last_restart(bare: dict[str, Any], store: Store) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "restart":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(bare, store, interrupt)
    first = llama_bench.load(store.url("tiny")).timings.collect()
    assert first["restart"].unique().to_list() == [0]
    result, frames = run(bare, store)
    rows = frames.timings.collect()
    assert result.measured == 1
    assert rows.filter(pl.col("restart") == 0).equals(first)
    assert rows["restart"].n_unique() == 2


def test_an_arm_whose_session_cannot_be_made_fails_alone(built: dict[str, Any], store: Store) -> None:
    built["recipes"].pop("level0")
    built["recipes"]["broken"] = {"session": {"config": {"session.load_model_format": "ORT"}}}
    result, frames = run(built, store)
    assert len(result.failures) == 1
    assert "broken" in result.failures[0]
    verdicts = dict(frames.speedups.select("recipe", "verdict").collect().iter_rows())
    assert verdicts["broken"] == "failed"
    assert verdicts["eliminate_identity"] == "no-op"


def test_a_model_that_no_builder_has_memory_for_is_a_failure_at_once(
    tiny: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, ends = building.memory_bytes, list[str]()

    def memory_bytes(plan: Plan, artifact: Artifact) -> int:
        """All but references need more than any machine has, as those of a model with a larger size would."""
        return needed(plan, artifact) * (1 if artifact.kind == "reference" else 10**6)

    monkeypatch.setattr(building, "memory_bytes", memory_bytes)

    def watch(event: Event) -> None:
        if event.kind == "build" and event.state != "started":
            ends.append(event.state)

    result, frames = run(tiny, store, watch)
    assert ends[0] == "failed"  # before anything is built
    assert "finished" in ends  # its reference fits
    assert "GB of memory, the largest builder has" in result.failures[0]
    verdicts = dict(frames.speedups.select("recipe", "verdict").collect().iter_rows())
    assert (verdicts["original"], verdicts["eliminate_identity"]) == ("failed", "skipped")


def test_a_store_with_too_little_room_is_named_before_anything_is_built(tiny: dict[str, Any], store: Store) -> None:
    tiny["models"][0] |= {"hidden_size": 2**20, "intermediate_size": 2**20}
    with pytest.raises(WorkError, match=r"GB of room, the sweep needs 3\d{4}\.\d GB"):
        run(tiny, store)
    assert store.keys("artifacts") == []


def test_only_measures_a_part_and_the_whole_sweep_then_goes_on_in_the_same_run(
    bare: dict[str, Any], store: Store
) -> None:
    bare["models"].append({**bare["models"][0], "hidden_size": 32})
    prebuild(Sweep.model_validate(bare), store)
    part, _ = run(bare, store, only="model=h16*")
    whole, _ = run(bare, store)
    assert whole.run == part.run
    assert (whole.measured, whole.reused) == (1, 1)


def test_a_wrong_only_is_refused_before_anything_starts(tiny: dict[str, Any], store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="h16"):
        run(tiny, store, only="model=h61*")
    assert not list((tmp_path / "store").rglob("run.json"))
