"""What the GPU's own counter of energy says of a slot: joules from right before it to right after it.

A look takes 2 to 15 ms (H200), so it is taken between slots: whatever it does to the GPU's clocks the next slot's
washout takes back. The counter moves every 20 to 100 ms, so that a short slot's joules are not its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeAlias

from llama_bench.bench import nvml

Look: TypeAlias = tuple[float, float]
"""(seconds of the monotonic clock, joules since the driver was loaded)"""


@dataclass(frozen=True, slots=True)
class Spent:
    """What the whole GPU used between two looks, and how long that was; None where it does not tell."""

    energy_j: float | None = None
    energy_s: float | None = None


class Meter:
    """Looks at the energy counter of the GPU that `visible` names (:class:`llama_bench.bench.nvml.Gpu`), if `gpu`."""

    def __init__(self, gpu: bool, visible: str | None = None) -> None:
        self._gpu = nvml.Gpu(visible) if gpu else None

    def look(self) -> Look | None:
        """Return the counter now; None on a CPU, and on GPUs before Volta, which have none."""
        if self._gpu is None:
            return None
        begin = time.perf_counter()
        joules = self._gpu.energy_j()
        return None if joules is None else ((begin + time.perf_counter()) / 2, joules)

    def close(self) -> None:
        """Let NVML go; more than once does no harm."""
        if self._gpu is not None:
            self._gpu.close()


def spent(first: Look | None, last: Look | None) -> Spent:
    """Return what was used between two looks; a counter that went back (the driver was loaded anew) tells nothing."""
    if first is None or last is None or last[1] < first[1]:
        return Spent()
    return Spent(last[1] - first[1], last[0] - first[0])
