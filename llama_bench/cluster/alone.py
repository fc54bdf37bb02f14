"""One run at a time on a machine without a cluster: two would time each other."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama_bench.cluster.events import Event, OnEvent

LOCK = "llama_bench.lock"
"""A file in the machine's folder for temporary files, which all its users share; nothing is written into it."""


@contextmanager
def on_this_machine(needed: bool, on_event: OnEvent) -> Iterator[None]:
    """Let the block run alone among those of this machine that ask for it, where that is `needed`; wait for others.

    The kernel lets go when the process ends, however it does.
    """
    if not needed:
        yield
        return
    descriptor = _open(Path(tempfile.gettempdir()) / LOCK)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_event(Event("note", "run", detail="another run is being timed on this machine: waiting for its end"))
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    """Open the file, which another user may have made: then it may be opened, but not made again."""
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
