"""The timed loop with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from llama_bench.bench import slot


class Clock:
    """Nanoseconds that pass only while something runs."""

    def __init__(self) -> None:
        self.now = 0
        self.runs = 0

    def __call__(self) -> int:
        return self.now

    def running(self, seconds: Iterator[float]) -> Callable[[], None]:
        def run() -> None:
            self.now += round(next(seconds) * 1e9)
            self.runs += 1

        return run


def forever(*seconds: float) -> Iterator[float]:
    yield from seconds
    while True:
        yield seconds[-1]


def test_a_slot_times_each_run_by_itself() -> None:
    clock = Clock()
    found = slot.time_slot(clock.running(iter([0.1, 0.2, 0.3, 0.4])), 3, clock=clock)
    assert found.seconds == pytest.approx((0.2, 0.3, 0.4))


def test_the_washout_is_at_least_one_run_and_fifty_milliseconds() -> None:
    clock = Clock()
    assert slot.time_slot(clock.running(forever(2.0)), 1, clock=clock).washout_runs == 1
    clock = Clock()
    short = slot.time_slot(clock.running(forever(0.009)), 1, clock=clock)
    assert short.washout_runs == 6
    assert short.washout_s == pytest.approx(0.054)


def test_a_gpus_washout_takes_longer() -> None:
    clock = Clock()
    longer = slot.time_slot(clock.running(forever(0.009)), 1, clock=clock, washout_s=slot.WASHOUT_GPU_S)
    assert longer.washout_runs == 34
    assert longer.washout_s == pytest.approx(0.306)


def test_warm_up_ends_when_three_runs_agree_within_two_percent() -> None:
    clock = Clock()
    found = slot.warm_up(clock.running(iter([0.5, 0.2, 0.103, 0.1, 0.101, 0.1, 9.0])), clock)
    assert (found.runs, found.steady, found.median_s) == (6, True, pytest.approx(0.1))


def test_a_warm_up_that_never_agrees_stops_after_twenty_runs_and_says_so() -> None:
    clock = Clock()
    found = slot.warm_up(clock.running(forever(*[0.1, 0.2] * 20)), clock)
    assert (found.runs, found.steady) == (20, False)


def test_a_slow_warm_up_stops_after_ten_seconds() -> None:
    clock = Clock()
    found = slot.warm_up(clock.running(forever(4.0, 3.0, 4.0, 3.0)), clock)
    assert (found.runs, found.steady) == (3, False)


def test_a_clock_that_steps_back_gives_no_timing() -> None:
    ticks = iter([0, 60_000_000, 60_000_000, 100, 50])
    with pytest.raises(ValueError, match="did not advance"):
        slot.time_slot(lambda: None, 1, clock=lambda: next(ticks))


def test_a_busy_loop_is_inside_the_timed_run_and_its_own_clock_says_what_it_took() -> None:
    clock = Clock()

    def ticking() -> int:  # a look at the clock takes a millisecond
        clock.now += 1_000_000
        return clock.now

    found = slot.time_slot(clock.running(forever(0.1)), 2, 0.005, ticking)
    assert found.busy_s == pytest.approx((0.005, 0.005))
    assert found.seconds == pytest.approx((0.106, 0.106))


def test_without_a_busy_loop_nothing_is_taken() -> None:
    clock = Clock()
    assert slot.time_slot(clock.running(forever(0.1)), 2, clock=clock).busy_s == (0.0, 0.0)
