"""Claims on pieces: one driver at a time, a dead one's lapse, and nothing of them stays behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llama_bench import claims
from llama_bench.claims import Claims, Driver
from llama_bench.errors import StoreError, WorkError
from llama_bench.store import Store

RUN = "sweep/run"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def abandon(held: Claims) -> None:
    """End a driver as a killed process ends: its heart stops, and what it wrote stays."""
    held._end.set()
    held._beating.join()


def test_a_second_driver_is_told_who_has_the_piece(store: Store) -> None:
    with Claims(store, RUN) as first, Claims(store, RUN) as second:
        assert first.take("cell") is None
        assert first.take("cell") is None
        assert second.take("cell") == first.driver
        assert second.take("other") is None
        assert str(first.driver).startswith(f"process {first.driver.pid} on {first.driver.host}, started 20")


def test_a_piece_that_was_let_go_is_free(store: Store) -> None:
    with Claims(store, RUN) as second:
        with Claims(store, RUN) as first:
            first.take("cell")
            first.take("other")
            first.release(["cell", "never taken"])
            assert second.take("cell") is None
            assert second.take("other") == first.driver
        assert second.take("other") is None


def test_the_claim_of_a_driver_whose_heart_stopped_lapses(store: Store) -> None:
    with Claims(store, RUN, lease_s=0.6) as second:
        first = Claims(store, RUN, lease_s=0.6).__enter__()
        first.take("cell")
        assert second.take("cell") == first.driver
        abandon(first)
        while second.take("cell") is not None:  # the test's own time limit ends it
            threading.Event().wait(0.05)
        third = Claims(store, RUN, lease_s=0.6).__enter__()
        assert third.take("cell") == second.driver
        abandon(third)


def test_a_living_driver_keeps_its_claim_beyond_the_lease(store: Store) -> None:
    with Claims(store, RUN, lease_s=0.3) as first, Claims(store, RUN, lease_s=0.3) as second:
        first.take("cell")
        threading.Event().wait(1.0)
        assert second.take("cell") == first.driver


def test_nothing_is_left_by_drivers_that_ended(store: Store) -> None:
    with Claims(store, RUN) as held:
        held.take("cell")
        assert len(store.keys(RUN)) == 2
    assert store.keys(RUN) == []


def test_a_torn_claim_holds_nothing(store: Store) -> None:
    store.put(f"{RUN}/claims/cell-0000.json", b'{"id": "x", "ho')
    with Claims(store, RUN) as held:
        assert held.take("cell") is None
        assert store.keys(f"{RUN}/claims") == [f"{RUN}/claims/cell-{n:04d}.json" for n in (0, 1)]


def test_pieces_whose_names_begin_alike_are_different_pieces(store: Store) -> None:
    with Claims(store, RUN) as first, Claims(store, RUN) as second:
        first.take("build-a-0001")
        assert second.take("build-a") is None
        assert second.take("build-a-0001") == first.driver


def die(place: str) -> None:
    Claims(Store(place), RUN).__enter__().take("cell")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_driver_of_this_machine_is_not_waited_for(store: Store) -> None:
    killed = multiprocessing.get_context("spawn").Process(target=die, args=(store.uri,))
    killed.start()
    killed.join()
    assert len(store.keys(f"{RUN}/claims")) == 1
    with Claims(store, RUN, lease_s=3600) as held:
        assert held.take("cell") is None


def test_a_driver_of_another_machine_is_not_looked_for_here(store: Store) -> None:
    with Claims(store, RUN, lease_s=3600) as held, Claims(store, RUN, lease_s=3600) as other:
        other.driver = replace(other.driver, host="elsewhere", pid=2**22 + 1)
        other._write_heartbeat()
        other.take("cell")
        assert held.take("cell") == other.driver


def race(place: str, pieces: list[str], barrier: threading.Barrier, took: multiprocessing.Queue[list[str]]) -> None:
    held = Claims(Store(place), RUN).__enter__()
    barrier.wait()
    took.put([piece for piece in pieces if held.take(piece) is None])
    barrier.wait()


def test_of_many_drivers_at_once_each_piece_goes_to_one(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    pieces, count = [f"cell{i}" for i in range(30)], 4
    barrier, took = context.Barrier(count), context.Queue()
    racers = [context.Process(target=race, args=(store.uri, pieces, barrier, took)) for _ in range(count)]
    for racer in racers:
        racer.start()
    taken = [piece for _ in racers for piece in took.get(timeout=200)]
    for racer in racers:
        racer.join()
    assert sorted(taken) == sorted(pieces)


def test_the_living_are_listed_and_the_dead_are_not(store: Store) -> None:
    with Claims(store, RUN) as first, Claims(store, RUN) as second:
        assert set(claims.alive(store, RUN)) == {first.driver, second.driver}
        assert claims.alive(store, RUN, lease_s=0.0) == []
    assert claims.alive(store, RUN) == []


def test_others_are_the_living_drivers_but_oneself(store: Store) -> None:
    with Claims(store, RUN) as first:
        assert first.others() == []
        with Claims(store, RUN) as second:
            assert first.others() == [second.driver]
        assert first.others() == []


def test_a_heartbeat_says_who_and_no_secrets(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    with Claims(store, RUN) as held:
        [key] = store.keys(f"{RUN}/drivers")
        said = json.loads(store.get(key))
        assert Driver(**said) == held.driver
        assert set(said) == set(asdict(held.driver)) == {"id", "host", "pid", "since"}


def test_a_store_that_is_gone_is_said_when_a_piece_is_taken(store: Store) -> None:
    with Claims(store, RUN) as held:
        assert store.root is not None
        store.root.rename(store.root.with_name("gone"))
        store.root.touch()
        with pytest.raises(WorkError, match=r"[Nn]ot a directory"):
            held.take("cell")
        store.root.unlink()
        store.root.with_name("gone").rename(store.root)


def test_work_of_a_dead_driver_is_inherited_and_its_driver_named(store: Store) -> None:
    first = Claims(store, RUN, lease_s=0.3).__enter__()
    first.take("cell")
    abandon(first)
    with Claims(store, RUN, lease_s=0.3) as second:
        while second.take("cell") is not None:
            threading.Event().wait(0.05)
        second.take("other")
        assert second.inherited == {"cell": first.driver}
        second.release(["cell"])
        with Claims(store, RUN, lease_s=0.3) as third:  # whose loss is known by now
            third.take("cell")
            assert third.inherited == {}


def test_a_driver_that_was_thought_dead_lets_go_of_nobody_elses_claim(store: Store) -> None:
    first = Claims(store, RUN, lease_s=1.0).__enter__()
    first.take("cell")
    abandon(first)
    with Claims(store, RUN, lease_s=1.0) as second, Claims(store, RUN, lease_s=1.0) as third:
        while second.take("cell") is not None:
            threading.Event().wait(0.05)
        second.release(["cell"])
        assert third.take("cell") is None
        assert third.held == {"cell": first.held["cell"]}  # the numbers begin again
        first.release(["cell"])
        assert second.take("cell") == third.driver


def test_a_claim_whose_answer_was_lost_on_its_way_is_ones_own(store: Store) -> None:
    with Claims(store, RUN) as held:
        held.take("cell")
        key = held.held.pop("cell")  # as if the store had written it and then not answered
        assert held.take("cell") is None
        assert held.held == {"cell": key}


def test_a_holder_that_cannot_be_asked_after_keeps_its_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with Claims(store, RUN) as first, Claims(store, RUN) as second:
        first.take("cell")

        def gone(key: str) -> bytes:
            raise StoreError("the store is gone")

        monkeypatch.setattr(second.store, "get", gone)
        with pytest.raises(StoreError):
            second.take("cell")
        monkeypatch.undo()
