"""One arm in a process of its own: holds one session, warms it up, answers for its accuracy, and times its slots.

A plain class: the coordinator makes a Ray actor of it, tests call it directly. It imports as little as it can, because
every restart of every arm pays for its imports.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from llama_bench.bench import slot

if TYPE_CHECKING:
    from llama_bench.engines.onnxruntime import TimedSession


class Arm:
    """The process of one arm in one restart. Call `load`, `warm_up`, `check`, then `slot` as often as wanted."""

    def __init__(self) -> None:
        self._session: TimedSession | None = None

    def identify(self) -> dict[str, Any]:
        """Say which process this is: pid, start time (seconds since the epoch), niceness."""
        return {"pid": os.getpid(), "process_started_at": psutil.Process().create_time(), "niceness": os.nice(0)}

    def load(self, folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Load the variant in `folder`; return what the session says of itself. Raises WorkError."""
        from llama_bench.engines.onnxruntime import TimedSession

        self._session = TimedSession(folder, settings, inputs)
        return {"providers": self._session.providers, "threads": settings["intra_op_num_threads"]}

    def warm_up(self) -> dict[str, Any]:
        """Warm the session up; return runs, seconds and whether it became steady."""
        return asdict(slot.warm_up(self.session.run))

    def check(self, reference: Path, bound: float) -> list[dict[str, Any]]:
        """Compare the last run's outputs with the reference file: one dict an output."""
        from safetensors.numpy import load_file

        from llama_bench.bench.accuracy import compare

        return [asdict(row) for row in compare(self.session.outputs(), load_file(reference), bound)]

    def slot(self, runs: int) -> dict[str, Any]:
        """Time one slot; return washout runs and seconds, and the seconds of each timed run."""
        return asdict(slot.time_slot(self.session.run, runs))

    @property
    def session(self) -> TimedSession:
        if self._session is None:
            raise RuntimeError("load was not called")
        return self._session
