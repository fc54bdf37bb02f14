"""Processes as Ray actors: what they answer, and how they are lost."""

from __future__ import annotations

import os
import time

import pytest

from llama_bench.cluster.actors import Actors

from .test_processes import Held

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def own_pid() -> int:
    return os.getpid()


def test_a_session_that_hangs_is_given_up_at_the_deadline_and_its_process_can_be_ended() -> None:
    launcher = Actors({}, gpu=False)
    launcher.deadline_s = 5.0
    [process] = launcher.start(Held, 1)
    assert process.call("pid").wait() != os.getpid()
    lost = process.call("hang").wait()
    assert (lost.kind, lost.final, lost.message) == ("timeout", False, "did not answer within 5 s")
    process.kill()
    assert "was lost" in process.call("pid").wait().message


def test_a_function_that_hangs_is_given_up_and_its_worker_is_ended() -> None:
    launcher = Actors({}, gpu=False)
    launcher.deadline_s = 5.0
    begin = time.monotonic()
    assert launcher.once(sleep, 120).kind == "timeout"
    assert launcher.once(own_pid) != os.getpid()
    assert time.monotonic() - begin < 60


def test_an_arm_that_dies_is_lost_and_may_be_tried_again() -> None:
    [process] = Actors({}, gpu=False).start(Held, 1)
    lost = process.call("die").wait()
    assert not lost.final
    assert "its process was lost" in lost.message
