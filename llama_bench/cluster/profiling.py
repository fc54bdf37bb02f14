"""The kernels of a cell's arms on a GPU: sessions in processes of their own, loaded side by side, profiled in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.cluster.gpu import compiles
from llama_bench.cluster.launch import Launcher, Lost

if TYPE_CHECKING:
    from llama_bench.bench.kernels import Profile
    from llama_bench.cluster.job import Prepared
    from llama_bench.engines import Task, TimedSession

UNSEEN = "torch finds no GPU here, or is a build without CUPTI"
"""Why there is no profile of an arm's kernels where nothing failed."""


class Watched:
    """A process that holds one session and CUPTI, which may crash: call `load`, then `profile`."""

    def __init__(self) -> None:
        self._session: TimedSession | None = None

    def load(self, folder: Path, settings: Mapping[str, Any], task: Task) -> bool:
        """Load the session as it is timed and run it once; False where no kernels can be seen. Raises WorkError."""
        from llama_bench import engines
        from llama_bench.bench import kernels

        if not kernels.begin():
            return False
        self._session = engines.open_session(folder, settings, task)
        self._session.run()  # libraries load and choose kernels, which others may do beside
        return True

    def profile(self) -> Profile:
        """Return what the GPU does in the session's runs. Raises WorkError."""
        from llama_bench.bench import kernels

        if self._session is None:
            raise RuntimeError("load was not called")
        return kernels.profile(self._session)


def profiles(launcher: Launcher, sessions: Sequence[Prepared], task: Task, count: int) -> list[Profile | str]:
    """Return of each session its profile, or why there is none; up to `count` of them are loaded at once.

    One that fails beside others is tried again by itself. One that compiles is loaded alone: it chooses kernels by
    their times, and keeps its choice for the timed processes.
    """
    found: dict[int, Profile | str] = {}
    compiling = [[at] for at, one in enumerate(sessions) if compiles(one)]
    others = [at for at, one in enumerate(sessions) if not compiles(one)]
    for some in [*compiling, *(others[first : first + count] for first in range(0, len(others), count))]:
        found |= zip(some, _at_once(launcher, [sessions[at] for at in some], task), strict=True)
        failed = [at for at in some if isinstance(found[at], str) and found[at] != UNSEEN]
        for at in failed if len(some) > 1 else ():  # the others may have taken its memory
            [found[at]] = _at_once(launcher, [sessions[at]], task)
    return [found[at] for at in range(len(sessions))]


def _at_once(launcher: Launcher, sessions: Sequence[Prepared], task: Task) -> list[Profile | str]:
    processes = launcher.start(Watched, len(sessions))
    try:
        given = zip(processes, sessions, strict=True)
        calls = [process.call("load", one.folder, one.settings, task) for process, one in given]
        loaded = [call.wait() for call in calls]
        found: list[Profile | str] = []
        for process, answer in zip(processes, loaded, strict=True):
            profile = process.call("profile").wait() if answer is True else answer
            found.append(profile.message if isinstance(profile, Lost) else UNSEEN if profile is False else profile)
        return found
    finally:
        for process in processes:
            process.kill()
