"""Whole cells measured in plain processes, without Ray: dropped blocks, known slowdowns, confirmation, ceilings."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from llama_bench import engines, parts
from llama_bench.bench import machine
from llama_bench.bench.interference import Observed
from llama_bench.store import Store

from ..simulated import sweep as recorded
from .conftest import FACTS, measure

QUIET = Observed(0.0, 0.0, None, None, None, None, None)
STOLEN = Observed(0.2, 0.0, None, None, None, None, "20.0% of the CPU time was stolen")


class Scripted:
    """Sees what the test says: one entry a block, quiet when there is none left."""

    script: Iterator[Observed] = iter(())

    def __init__(self, gpu: bool, own: list[int], visible: str | None) -> None:
        assert (gpu, visible) == (False, "")
        assert len(set(own)) == len(own)

    def begin(self) -> None: ...

    def end(self) -> Observed:
        return next(type(self).script, QUIET)

    def close(self) -> None: ...


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Set what is seen of each block, in order."""
    monkeypatch.setattr("llama_bench.cluster.restart.Monitor", Scripted)

    def script(*blocks: Observed) -> None:
        Scripted.script = iter(blocks)

    yield script
    Scripted.script = iter(())


@pytest.fixture(autouse=True)
def no_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings take seconds, and have tests of their own."""
    for name in ("measure_ceilings", "measure_beaten_ceilings"):
        monkeypatch.setattr(f"llama_bench.cluster.cell.{name}", lambda *given: iter(()))


@pytest.fixture
def steady(tiny: dict[str, Any], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tiny sweep on the simulated engine: a run takes about a millisecond in every arm, whatever the machine does.

    What a slowdown takes of it is the busy loop's, by the engine's own clock. The processes are real ones.
    """
    rng, recording = np.random.default_rng(4), tmp_path / "recording.json"
    arms = {
        arm: [(0.001 * rng.lognormal(0, 0.01) * rng.lognormal(0, 0.02, size=30)).tolist() for _ in range(8)]
        for arm in ("original", "control", "slower", "slowed", "less")
    }
    recording.write_text(json.dumps({"h16-a2-l1": {"prefill": arms}}))
    told = recorded.environment(Path(store.uri), SIMULATED_TIMINGS=str(recording), SIMULATED_TICK_NS="1000")
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    monkeypatch.syspath_prepend(recorded.HERE)
    monkeypatch.setitem(engines.ENGINES, "simulated", engines.EngineInfo("simulated_engine", "", graph=False))
    monkeypatch.setattr("llama_bench.cluster.restart.Monitor", importlib.import_module("simulated_engine").Quiet)
    return tiny


def slowed(*recipes: str, **slowdowns: float) -> dict[str, Any]:
    """Recipes of the simulated engine that differ in their slowdowns alone."""
    sessions = {name: {} for name in recipes} | {name: {"slowdown": share} for name, share in slowdowns.items()}
    return {name: {"engine": "simulated", "session": session} for name, session in sessions.items()}


def test_a_disturbed_block_is_dropped_for_all_arms_and_timed_again(
    two_arms: dict[str, Any], store: Store, seen: Any
) -> None:
    two_arms["measure"] |= {"restarts": 3, "blocks": 2}
    seen(QUIET, STOLEN)  # 6 blocks in all, of which one may be dropped
    frames, events = measure(two_arms, store)
    blocks = frames.blocks.collect()
    dropped = blocks.filter(~pl.col("kept"))
    assert dropped.select("restart", "block").unique().rows() == [(0, 1)]
    assert dropped.height == 3  # original, control and slower
    assert set(dropped["disturbed"]) == {STOLEN.disturbed}
    assert blocks.filter(pl.col("restart") == 0, pl.col("kept"))["block"].unique().sort().to_list() == [0, 2]
    assert frames.timings.filter(~pl.col("kept")).collect().height == 3 * two_arms["measure"]["runs"]
    pieces = frames.pieces.filter(pl.col("kind") == "restart").sort("restart").collect()
    assert pieces["blocks"].to_list() == [3, 2, 2]
    assert pieces["dropped"].to_list() == [1, 0, 0]
    assert any("dropped, to be timed again" in event["detail"] for event in events)


def test_when_a_fifth_of_the_blocks_was_dropped_the_next_ones_are_kept_and_flagged(
    two_arms: dict[str, Any], store: Store, seen: Any
) -> None:
    two_arms["measure"] |= {"restarts": 5, "blocks": 2}
    seen(*[STOLEN] * 100)
    blocks = measure(two_arms, store)[0].blocks.collect()
    assert blocks.filter(~pl.col("kept")).select("restart", "block").unique().height == 2  # of ten wanted ones
    kept = blocks.filter("kept").select("restart", "block", "disturbed").unique()
    assert kept.height == 10
    assert kept["disturbed"].null_count() == 0


def test_dropped_blocks_enter_no_ratio_and_no_time(two_arms: dict[str, Any], store: Store, seen: Any) -> None:
    two_arms["measure"] |= {"restarts": 3, "blocks": 2}
    seen(STOLEN)
    frames, _ = measure(two_arms, store)
    [row] = frames.speedups.filter(pl.col("recipe") == "slower").collect().to_dicts()
    kept = frames.timings.filter(pl.col("recipe") == "slower", pl.col("kept")).collect()
    assert row["runs"] == kept.height == 3 * 2 * two_arms["measure"]["runs"]
    assert row["mean_s"] == pytest.approx(kept["seconds"].mean())


def test_a_known_slowdown_is_found_and_what_it_took_is_kept(steady: dict[str, Any], store: Store) -> None:
    steady["recipes"] = slowed("original", slower=9.0)
    steady["measure"] |= {"restarts": 4}
    frames, _ = measure(steady, store)
    busy = frames.timings.group_by("recipe").agg(pl.col("busy_s").null_count(), pl.len()).collect()
    without = {row["recipe"] for row in busy.to_dicts() if row["busy_s"] == row["len"]}
    assert without == {"original", "control"}
    [row] = frames.speedups.filter(pl.col("recipe") == "slower").collect().to_dicts()
    assert row["verdict"] == "slower"
    taken = frames.timings.filter(pl.col("recipe") == "slower").collect()
    truth = (taken["seconds"] - taken["busy_s"]).log().mean() - taken["seconds"].log().mean()  # type: ignore[operator]
    assert truth == pytest.approx(-math.log(10), abs=0.05)
    assert math.log(row["speedup"]) == pytest.approx(truth, abs=0.05)


def test_the_fastest_arm_is_confirmed_on_fresh_restarts_of_it_alone(steady: dict[str, Any], store: Store) -> None:
    steady["recipes"] = slowed("original", slowed=9.0, less=4.0)
    steady["measure"] |= {"baseline": "slowed", "restarts": 3}
    frames, events = measure(steady, store)
    fresh = frames.blocks.filter(pl.col("phase") == "confirm").collect()
    assert fresh["restart"].unique().sort().to_list() == [3, 4, 5]
    assert set(fresh["recipe"]) == {"slowed", "control", "original"}
    assert not set(fresh["pid"]) & set(frames.blocks.filter(pl.col("phase") == "main").collect()["pid"])
    rows = {row["recipe"]: row for row in frames.speedups.collect().to_dicts()}
    assert (rows["original"]["verdict"], rows["original"]["confirmed"]) == ("faster", "confirmed")
    assert (rows["original"]["restarts"], rows["less"]["confirmed"]) == (3, None)
    assert any("confirming original" in event["detail"] for event in events)


def test_nothing_is_confirmed_when_the_sweep_does_not_want_it(steady: dict[str, Any], store: Store) -> None:
    steady["recipes"] = slowed("original", slowed=9.0)
    steady["measure"] |= {"baseline": "slowed", "restarts": 3, "confirm": False}
    assert set(measure(steady, store)[0].blocks.collect()["phase"]) == {"main"}


def test_an_interrupted_confirmation_goes_on_where_it_stopped(steady: dict[str, Any], store: Store) -> None:
    steady["recipes"] = slowed("original", slowed=9.0)
    steady["measure"] |= {"baseline": "slowed", "restarts": 3}
    first = measure(steady, store)[0].timings.collect()
    store_url = next(Path(store.uri).glob("tiny/*"))
    for dataset in ("pieces", "timings", "blocks", "accuracy", "machines"):  # as if the last restart never was
        folded = next((store_url / dataset).glob("*[!x].parquet"))
        rows = pl.read_parquet(folded).filter(pl.col("restart") != 5).to_dicts()
        folded.unlink()
        for restart in range(5):
            mine = [row for row in rows if row["restart"] == restart]
            parts.write_part(store, f"tiny/{store_url.name}", dataset, f"{folded.stem}-r{restart:04d}", mine)
    again = measure(steady, store)[0].timings.collect()
    assert again.filter(pl.col("restart") < 5).equals(first.filter(pl.col("restart") < 5))
    assert again.filter(pl.col("phase") == "confirm")["restart"].unique().sort().to_list() == [3, 4, 5]


def test_every_restart_says_what_its_machine_was_and_with_which_libraries(
    two_arms: dict[str, Any], store: Store
) -> None:
    machines = measure(two_arms, store)[0].machines.collect()
    assert machines.height == 3 * 2
    assert machines["hardware"].unique().to_list() == [machine.fingerprint(FACTS)]
    assert machines["load_1m"].null_count() == 0
    assert machines["memory_available_bytes"].min() > 0  # type: ignore[operator]
    assert all('"torch"' in text for text in machines["versions"])
