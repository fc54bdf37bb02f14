"""One arm in a process of its own: holds one session, warms it up, answers for its accuracy, and times its slots.

A plain class: the coordinator makes a Ray actor of it, tests call it directly. It imports as little as it can, because
every restart of every arm pays for its imports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from llama_bench.bench import slot
from llama_bench.bench.proc import peak_bytes

if TYPE_CHECKING:
    from llama_bench.bench.accuracy import Bounds
    from llama_bench.engines import Task, TimedSession
    from llama_bench.passes.info import Kind


class Arm:
    """The process of one arm in one restart. Call `load`, `warm_up`, `check`, then `slot` as often as wanted."""

    def __init__(self) -> None:
        self._session: TimedSession | None = None
        self._slowdown = 0.0  # share of the arm's own median that a busy loop takes in every timed run
        self._median_s = 0.0

    def identify(self) -> dict[str, Any]:
        """Say which process this is: pid, start time (seconds since the epoch), niceness, the GPUs that it may use."""
        started_at, gpus = psutil.Process().create_time(), os.environ.get("CUDA_VISIBLE_DEVICES")
        return {"pid": os.getpid(), "process_started_at": started_at, "niceness": os.nice(0), "visible_gpus": gpus}

    def load(self, folder: Path, settings: Mapping[str, Any], task: Task, run: bool = False) -> dict[str, Any]:
        """Load the variant in `folder`; return what the session says of itself. Raises WorkError.

        Beside what shapes execution `settings` name the arm, for an engine that tells of itself. With `run` it also
        runs once: on a GPU libraries load and choose kernels then, for seconds, while other arms may do the same.
        """
        from llama_bench.engines import open_session

        self._session = open_session(folder, settings, task)
        if run:
            self._session.run()
        self._slowdown = float(settings.get("slowdown", 0.0))
        return {"providers": self._session.providers, "threads": settings["intra_op_num_threads"]}

    def warm_up(self) -> dict[str, Any]:
        """Warm the session up; return runs, seconds and whether it became steady."""
        warmed = slot.warm_up(self.session.run, self.session.clock)
        self._median_s = warmed.median_s
        return asdict(warmed)

    def check(self, reference: Path, bounds: Bounds, kind: Kind) -> list[dict[str, Any]]:
        """Compare the last run's outputs with the reference file: one row of `accuracy` an output."""
        from safetensors.numpy import load_file

        from llama_bench.bench.accuracy import compare

        return compare(self.session.outputs(), load_file(reference), bounds, kind)

    def slot(self, runs: int, washout_s: float = slot.WASHOUT_LEAST_S) -> dict[str, Any]:
        """Time one slot; return washout runs and seconds, the seconds of each timed run and of its busy loop."""
        busy_s = self._slowdown * self._median_s
        run, clock = self.session.run, self.session.clock
        timed = slot.time_slot(run, runs, busy_s, clock, tokens=self._tokens, washout_s=washout_s)
        # a median of runs like the timed ones: those of the warm-up are few, and the machine has moved on since
        self._median_s = median(total - busy for total, busy in zip(timed.seconds, timed.busy_s, strict=True))
        return asdict(timed)

    def text(self, reference: Path, bounds: Bounds, kind: Kind) -> dict[str, Any] | None:
        """Score the text that lies in the folder `reference` through the timed session: a row of `accuracy`, or None.

        Of a workload without predictions there is nothing to score.
        """
        from llama_bench.bench.text import score

        return score(self.session, reference, bounds, kind)

    def generated(self) -> list[list[int]]:
        """Return the new tokens of each sequence in the last run of a `generate`; an empty list for all else."""
        return self.session.outputs()["tokens"].tolist() if self._tokens() else []

    def memory(self) -> dict[str, Any]:
        """Return the most memory that this process has had, on the host and on the GPU, in bytes."""
        return {"peak_bytes": peak_bytes(), "device_bytes": self.session.device_bytes()}

    def _tokens(self) -> tuple[float, ...]:
        return self.session.token_seconds

    @property
    def session(self) -> TimedSession:
        if self._session is None:
            raise RuntimeError("load was not called")
        return self._session
