"""One run at a time on a machine without a cluster."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import pytest

from llama_bench.cluster.alone import on_this_machine
from llama_bench.cluster.events import Event


@pytest.fixture(autouse=True)
def machine_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_second_run_waits_for_the_end_of_the_first_and_says_so() -> None:
    events: list[Event] = []
    entered: list[float] = []

    def second() -> None:
        with on_this_machine(True, events.append):
            entered.append(time.monotonic())

    with on_this_machine(True, events.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not events:
            time.sleep(0.01)
        left = time.monotonic()
    thread.join()
    assert [event.detail for event in events] == ["another run is being timed on this machine: waiting for its end"]
    assert entered[0] >= left


def test_on_a_cluster_rays_own_books_say_who_measures_where(tmp_path: Path) -> None:
    with on_this_machine(False, lambda event: None), on_this_machine(False, lambda event: None):
        assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_block_lets_the_next_one_in() -> None:
    with pytest.raises(KeyboardInterrupt), on_this_machine(True, lambda event: None):
        raise KeyboardInterrupt
    with on_this_machine(True, pytest.fail):
        pass
