"""The timed loop: warm-up, washout and timed runs of one arm, with the monotonic clock in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

WARM_UP_AGREEMENT = 0.02
WARM_UP_MOST_RUNS = 20
WARM_UP_MOST_S = 10.0
WASHOUT_LEAST_S = 0.050  # longer than a session spins after its last run with force_spinning_stop, see docs/measuring


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How an arm was warmed up; `steady` says whether its last three runs agreed."""

    runs: int
    seconds: float
    steady: bool


@dataclass(frozen=True, slots=True)
class Slot:
    """One arm's turn: untimed washout, then the seconds of each timed run."""

    washout_runs: int
    washout_s: float
    seconds: tuple[float, ...]


def warm_up(run: Callable[[], None], clock: Callable[[], int] = time.perf_counter_ns) -> WarmUp:
    """Run until the last three runs agree within 2 %, at most 20 runs or 10 seconds.

    Agreement is (slowest − fastest) / fastest of the last three. A clock that steps back is a ValueError.
    """
    begin = clock()
    last: list[float] = []
    for count in range(1, WARM_UP_MOST_RUNS + 1):
        last = [*last[-2:], _timed(run, clock)]
        if len(last) == 3 and max(last) - min(last) <= WARM_UP_AGREEMENT * min(last):
            return WarmUp(count, (clock() - begin) / 1e9, True)
        if (clock() - begin) / 1e9 >= WARM_UP_MOST_S:
            return WarmUp(count, (clock() - begin) / 1e9, False)
    return WarmUp(WARM_UP_MOST_RUNS, (clock() - begin) / 1e9, False)


def time_slot(run: Callable[[], None], runs: int, clock: Callable[[], int] = time.perf_counter_ns) -> Slot:
    """Wash out for at least one run and 50 ms, then time `runs` runs. A clock that steps back is a ValueError."""
    begin = clock()
    washout_runs = 0
    while washout_runs == 0 or (clock() - begin) / 1e9 < WASHOUT_LEAST_S:
        run()
        washout_runs += 1
    washout_s = (clock() - begin) / 1e9
    return Slot(washout_runs, washout_s, tuple(_timed(run, clock) for _ in range(runs)))


def _timed(run: Callable[[], None], clock: Callable[[], int]) -> float:
    begin = clock()
    run()
    elapsed = clock() - begin
    if elapsed <= 0:
        raise ValueError(f"the clock did not advance over a run ({elapsed} ns): its timings cannot be used")
    return elapsed / 1e9
