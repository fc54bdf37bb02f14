"""Plain fresh processes: what they answer, how they are lost, and whole cells measured with them, without Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from llama_bench.cluster.arm import Arm
from llama_bench.cluster.launch import Lost
from llama_bench.cluster.processes import PlainProcess, Processes
from llama_bench.errors import WorkError


class Held:
    """What a process holds in these tests."""

    def pid(self) -> int:
        return os.getpid()

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def refuse(self) -> None:
        raise WorkError("no such\nmodel")

    def break_down(self) -> None:
        raise KeyError("x")

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hang(self) -> None:
        time.sleep(60)


@pytest.fixture
def processes() -> Iterator[list[PlainProcess]]:
    started = Processes({"LLAMA_BENCH_TEST": "here"}).start(Held, 2)
    yield started
    for process in started:
        process.kill()


def test_each_process_is_a_new_one_with_the_environment_that_was_asked_for(processes: list[PlainProcess]) -> None:
    pids = [process.call("pid").wait() for process in processes]
    assert len({*pids, os.getpid()}) == 3
    assert processes[0].call("environment", "LLAMA_BENCH_TEST").wait() == "here"


def test_an_error_is_lost_for_good_and_the_process_goes_on(processes: list[PlainProcess]) -> None:
    refused, broken = processes[0].call("refuse").wait(), processes[0].call("break_down").wait()
    assert (refused.message, refused.final, refused.kind) == ("no such model", True, "WorkError")
    assert "KeyError" in broken.message
    assert isinstance(processes[0].call("pid").wait(), int)


def test_a_process_that_dies_loses_its_call_and_may_be_tried_again(processes: list[PlainProcess]) -> None:
    lost = processes[0].call("die").wait()
    assert (lost.final, lost.message) == (False, "its process was lost: SIGKILL")
    assert isinstance(processes[0].call("pid").wait(), Lost)
    assert isinstance(processes[1].call("pid").wait(), int)


def test_a_process_that_hangs_is_given_up_at_the_deadline() -> None:
    launcher = Processes({})
    launcher.deadline_s = 2.0
    [process] = launcher.start(Held, 1)
    try:
        assert isinstance(process.call("pid").wait(), int)
        lost = process.call("hang").wait()
        assert (lost.kind, lost.final, lost.message) == ("timeout", False, "did not answer within 2 s")
    finally:
        process.kill()


def test_a_function_runs_once_in_a_process_of_its_own() -> None:
    assert Processes({}).once(os.getpid) not in (None, os.getpid())
    lost = Processes({}).once(int, "x")
    assert lost.final
    assert "invalid literal" in lost.message


def test_what_a_process_imports_to_hold_an_arm_is_little() -> None:
    """Every restart of every arm pays for it: neither Ray, nor polars, nor torch."""
    [process] = Processes({}).start(Arm, 1)
    try:
        assert process.call("identify").wait()["niceness"] == os.nice(0)
    finally:
        process.kill()
    modules = Processes({}).once(loaded)
    assert not {"ray", "polars", "torch", "pyarrow", "scipy"} & set(modules)


def loaded() -> list[str]:
    """The modules that a process has when it holds an arm."""
    import sys

    import llama_bench.cluster.arm  # noqa: F401

    return [name for name in sys.modules if "." not in name]
