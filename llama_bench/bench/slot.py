"""The timed loop: warm-up, washout and timed runs of one arm, with the monotonic clock in nanoseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

WARM_UP_AGREEMENT = 0.02
WARM_UP_MOST_RUNS = 20
WARM_UP_MOST_S = 10.0
WASHOUT_LEAST_S = 0.050  # longer than a session spins after its last run with force_spinning_stop, see docs/measuring
WASHOUT_GPU_S = 0.3  # at its power cap a GPU's clock goes on falling long after 50 ms, see docs/measuring


@dataclass(frozen=True, slots=True)
class WarmUp:
    """How an arm was warmed up; `steady` says whether its last three runs agreed, `median_s` is theirs."""

    runs: int
    seconds: float
    steady: bool
    median_s: float


@dataclass(frozen=True, slots=True)
class Slot:
    """One arm's turn: untimed washout, then the seconds of each timed run, and what a busy loop took of them.

    `token_s` has the seconds of each new token of each run that generates text.
    """

    washout_runs: int
    washout_s: float
    seconds: tuple[float, ...]
    busy_s: tuple[float, ...]
    token_s: tuple[tuple[float, ...], ...] = ()


def warm_up(run: Callable[[], None], clock: Callable[[], int] = time.perf_counter_ns) -> WarmUp:
    """Run until the last three runs agree within 2 %, at most 20 runs or 10 seconds.

    Agreement is (slowest − fastest) / fastest of the last three. A clock that steps back is a ValueError.
    """
    begin = clock()
    last: list[float] = []
    count = 0
    while count < WARM_UP_MOST_RUNS:
        count += 1
        last = [*last[-2:], _timed(run, clock)[0]]
        steady = len(last) == 3 and max(last) - min(last) <= WARM_UP_AGREEMENT * min(last)
        if steady or (clock() - begin) / 1e9 >= WARM_UP_MOST_S:
            break
    return WarmUp(count, (clock() - begin) / 1e9, steady, median(last))


def time_slot(
    run: Callable[[], None],
    runs: int,
    busy_s: float = 0.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    tokens: Callable[[], tuple[float, ...]] = tuple,
    washout_s: float = WASHOUT_LEAST_S,
) -> Slot:
    """Wash out for at least one run and `washout_s`, then time `runs` runs. A clock that steps back is a ValueError.

    `tokens` says what each new token of the last run took, where it made any.

    With `busy_s` each timed run ends in a busy loop of so many seconds: a slowdown whose true size is known, since
    the loop's own clock says what it took.
    """
    begin = clock()
    washout_runs = 0
    while washout_runs == 0 or (clock() - begin) / 1e9 < washout_s:
        run()
        washout_runs += 1
    washed_s = (clock() - begin) / 1e9
    timed = [(*_timed(run, clock, int(busy_s * 1e9)), tokens()) for _ in range(runs)]
    seconds, busy, made = zip(*timed, strict=True) if timed else ((), (), ())
    return Slot(washout_runs, washed_s, seconds, busy, made)


def _timed(run: Callable[[], None], clock: Callable[[], int], busy_ns: int = 0) -> tuple[float, float]:
    """Time one run; return its seconds, and those of its busy loop."""
    begin = clock()
    run()
    end = ready = clock()
    while busy_ns and end - ready < busy_ns:
        end = clock()
    if end - begin <= 0 or ready - begin <= 0:
        raise ValueError(f"the clock did not advance over a run ({end - begin} ns): its timings cannot be used")
    return (end - begin) / 1e9, (end - ready) / 1e9
