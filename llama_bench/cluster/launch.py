"""What starts processes for a cell: Ray actors in a run, plain processes for a calibration. The rest does not care."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from llama_bench.errors import GpuMemoryError, StoreError, WorkError

DEADLINE_S = 1800.0
"""For one call of one process where nothing better is known: a session that hangs costs its restart, not the sweep."""

FILES_AWAY = (
    "no such file",
    "not a directory",
    "file doesn't exist",  # ONNX Runtime
    "stale file handle",  # NFS
    "input/output error",
    "transport endpoint is not connected",
)
"""Words of libraries that did not find what was there when the cell began: its store is away for a moment."""

GPU_MEMORY = "gpu memory"
"""Kind of a failure: a GPU had too little memory left. Fewer arms at a time may fit."""

LIBRARY = "shared object file"
"""Words of the loader for a library that is not installed, which are followed by "no such file" too."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A call that came to nothing: the arm, what it was doing, why, and whether trying again is pointless."""

    arm: str | None
    stage: str
    kind: str
    message: str
    final: bool


class Call(Protocol):
    """A call that is under way."""

    def wait(self) -> Any:
        """Return the call's value, or how it was lost."""


class Process(Protocol):
    """A fresh operating-system process that holds one object."""

    def call(self, method: str, *arguments: Any) -> Call:
        """Call a method of the object; does not wait."""

    def kill(self) -> None:
        """End the process at once."""


class Function:
    """What a process holds that is only to call a function: nothing."""

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns."""
        return function(*arguments)


class Launcher(Protocol):
    """Starts processes on the node whose cell is measured; a call of one that takes `deadline_s` is lost."""

    deadline_s: float

    def start(self, make: Callable[[], Any], count: int) -> list[Process]:
        """Start `count` fresh processes, each holding what `make` returns there; does not wait for them."""

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns in a process of its own, or how that was lost."""


def raised(error: BaseException) -> Lost:
    """Return how a call was lost that raised `error`: the same call would raise it again, unless files were away."""
    message = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {error}"
    kind = GPU_MEMORY if isinstance(error, GpuMemoryError) else type(error).__name__
    return Lost(None, "", kind, " ".join(message.split()), not _tells_of_files_away(error))


def _tells_of_files_away(error: BaseException) -> bool:
    text = str(error).lower()
    if LIBRARY in text:
        return False
    return isinstance(error, (OSError, StoreError)) or any(words in text for words in FILES_AWAY)


def late(deadline_s: float) -> Lost:
    """Return how a call was lost that did not answer in time."""
    return Lost(None, "", "timeout", f"did not answer within {deadline_s:.0f} s", False)


def died(kind: str, why: str) -> Lost:
    """Return how a call was lost whose process died (out of memory, killed, a lost node)."""
    return Lost(None, "", kind, f"its process was lost: {why}", False)
