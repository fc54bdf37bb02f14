"""The race for a ceiling: the ways to reach it, tried at several shapes, and the fastest single run of all counts.

A ceiling that an arm beats is no ceiling, so every product is tried in each way that is installed. What has no kernel
here is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

What: TypeAlias = Literal["matmul", "copy", "read"]
Shape: TypeAlias = tuple[int, ...]
"""(m, k, n) of a matrix product, (bytes,) that are moved: read, or half read and half written by a copy."""
Run: TypeAlias = Callable[[], float]
"""Do it once and return the seconds that it took."""

LAST_SHARE = 0.3  # of the time for the last rounds
RUNS = 2  # timed at least, after one that is not
SETTLED_S = 0.02  # and for at least so long
HOPELESS = 10.0  # a way this much slower than another at a small size is given up: some are loops without a kernel
BEATEN = 0.5  # a way below this share of the best so far is not tried at the next shape
NO_KERNEL = 0.1  # a precision below this share of fp32 is emulated: what runs an arm would rather compute in fp32


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that was seen: operations (`matmul`) or bytes (`copy`: read and written, `read`) a second.

    `dtype` is "fp32", "tf32", "fp16", "bf16", "int8" or "fp8" for a product and "" for bytes; `how` names the way and
    the shape. `cache_bytes` is the last-level cache of the GPU that was measured, None for the CPU (`machine.facts`
    knows it) and where it is not known.
    """

    what: What
    dtype: str
    per_second: float
    how: str
    cache_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Way:
    """One way to reach a ceiling: `make` sets it up at a shape; it raises where the way does not exist here."""

    what: What
    dtype: str
    how: str
    make: Callable[[Shape], Run]


@dataclass(slots=True)
class Best:
    """The fastest run of one way so far, and how to do it again."""

    way: Way
    shape: Shape
    run: Run
    per_second: float


def fastest(ways: Sequence[Way], products: Sequence[Shape], moved: int, seconds: float) -> list[Ceiling]:
    """Return the ceiling of each (what, dtype) among `ways` in about `seconds`, in the order of the ways.

    `products` are the shapes of the products, a small one for a trial first; `moved` are the bytes that are read
    and copied. Each ceiling gets its share of the time to find the fastest way and shape. What is left goes to rounds
    over all of them, so that something else that ran for a moment lowers none for good.
    """
    begin = time.perf_counter()
    kinds = list(dict.fromkeys((way.what, way.dtype) for way in ways))
    found: list[Best] = []
    for index, (what, dtype) in enumerate(kinds):
        left = begin + (1 - LAST_SHARE) * seconds - time.perf_counter()
        share = _weight(dtype) / sum(_weight(other) for _, other in kinds[index:])
        fp32 = max((best.per_second for best in found if best.way.dtype == "fp32"), default=0.0)
        found += _race(
            [way for way in ways if (way.what, way.dtype) == (what, dtype)],
            products if what == "matmul" else [(moved // 16,), (moved,)],
            floor=NO_KERNEL * fp32 if what == "matmul" else 0.0,
            seconds=share * max(left, 0.0),
        )
    _again(found, begin + seconds)
    tops: dict[tuple[What, str], Best] = {}
    for best in sorted(found, key=lambda best: best.per_second):
        tops[best.way.what, best.way.dtype] = best
    return [_ceiling(tops[kind]) for kind in kinds if kind in tops]


def _weight(dtype: str) -> int:
    """What most arms compute in gets more of the time."""
    return 3 if dtype == "fp32" else 1


def _race(ways: Sequence[Way], shapes: Sequence[Shape], *, floor: float, seconds: float) -> list[Best]:
    """Return what `ways` that do the same reach: all at the first shape, then the better ones while time is left.

    The first shape is small and shows only who is hopeless or below `floor`: what fits into a cache tells nothing of
    the memory. The fastest way of the trial has one more shape in any case; a way that had none is no part of it.
    """
    end = time.perf_counter() + seconds
    rates: dict[Way, float] = {}
    for _ in range(2):  # a second chance, as something else may have run just then
        least = max(floor, max(rates.values(), default=0.0) / HOPELESS)
        for way in ways:
            if rates.get(way, 0.0) <= least and (tried := _try(way, shapes[0])) is not None:
                rates[way] = max(rates.get(way, 0.0), tried.per_second)
    least = max(floor, max(rates.values(), default=0.0) / HOPELESS)
    rates = {way: rate for way, rate in rates.items() if rate >= least}
    found: dict[Way, Best] = {}
    for shape in shapes[1:]:
        for way in sorted(rates, key=rates.__getitem__, reverse=True):
            needed = (1 + RUNS) * _work(way.what, shape) / rates[way]
            late = time.perf_counter() + needed > end
            top = max((best.per_second for best in found.values()), default=0.0)
            if found and (late or rates[way] < BEATEN * top):
                continue
            if (tried := _try(way, shape)) is None:
                continue
            rates[way] = tried.per_second
            if way not in found or tried.per_second > found[way].per_second:
                found[way] = tried
    return list(found.values())


def _try(way: Way, shape: Shape) -> Best | None:
    """Set it up, run it, and time it: None where this way does not work here."""
    try:
        run = way.make(shape)
        run()
        seconds = _least(run)
    except Exception:  # no library, no kernel, no memory: each has an exception of its own, and all mean the same
        return None
    return Best(way, shape, run, _work(way.what, shape) / seconds)


def _least(run: Run) -> float:
    """Return the seconds of the fastest run; short ones are repeated, as a core may be taken away for a while."""
    begin = time.perf_counter()
    seconds = [run() for _ in range(RUNS)]
    while time.perf_counter() - begin < SETTLED_S:
        seconds.append(run())
    return min(seconds)


def _again(found: Sequence[Best], end: float) -> None:
    """Run each best again in turn until `end`, and once in any case."""
    while found:
        for best in found:
            seconds = best.run()
            if seconds < SETTLED_S:
                seconds = _least(best.run)
            best.per_second = max(best.per_second, _work(best.way.what, best.shape) / seconds)
        if time.perf_counter() >= end:
            break


def _work(what: What, shape: Shape) -> float:
    """Operations of a product, a multiplication and an addition for each; bytes moved by the others."""
    return float(math.prod(shape) * (2 if what == "matmul" else 1))


def _ceiling(best: Best) -> Ceiling:
    size = "×".join(map(str, best.shape)) if best.way.what == "matmul" else f"{best.shape[0] / 2**20:.0f} MiB"
    return Ceiling(best.way.what, best.way.dtype, best.per_second, f"{best.way.how}, {size}")


def clocked(function: Callable[[], object]) -> Run:
    """Return `function` as a run that the wall clock times; it must return when it is done."""

    def run() -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return run
