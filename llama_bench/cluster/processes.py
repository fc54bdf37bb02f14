"""Plain fresh processes of this machine, without Ray: what a calibration needs hundreds of, and tests can watch.

A process is a new Python that is told over a socket what to hold and what to call. Both ends are this program.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from llama_bench.cluster.launch import DEADLINE_S, Call, Function, Lost, Process, died, late, raised
from llama_bench.errors import WorkError

CHILD = "import sys; from llama_bench.cluster.processes import serve; serve(*map(int, sys.argv[1:]))"


class Processes:
    """The launcher of a calibration; `environment` is added to this process's own, `cores` are all that may be used."""

    def __init__(self, environment: Mapping[str, str], cores: Sequence[int] | None = None) -> None:
        self._environment = {**os.environ, **environment}
        self._cores = cores or ()
        self.deadline_s = DEADLINE_S

    def start(self, make: Callable[[], Any], count: int) -> list[Process]:
        """Start `count` processes side by side."""
        return [PlainProcess(make, self._environment, self.deadline_s, self._cores) for _ in range(count)]

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns in a process that ends with it."""
        process = PlainProcess(Function, self._environment, self.deadline_s, self._cores)
        try:
            return process.call("run", function, *arguments).wait()
        finally:
            process.kill()


class PlainProcess:
    """One process, and the calls that it answers one after the other."""

    def __init__(
        self, make: Callable[[], Any], environment: Mapping[str, str], deadline_s: float, cores: Sequence[int] = ()
    ) -> None:
        self._deadline_s = deadline_s
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", CHILD, str(theirs.fileno()), *map(str, cores)]
            self._process = subprocess.Popen(
                command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._connection = Connection(ours.detach())
        self._send(make)

    def call(self, method: str, *arguments: Any) -> Call:
        self._send((method, arguments))
        return self

    def wait(self) -> Any:
        """Return the value of the oldest call that was not waited for, or how it was lost."""
        try:
            if not self._connection.poll(self._deadline_s):
                return late(self._deadline_s)
            worked, value = self._connection.recv()
        except (EOFError, OSError):
            return self._death()
        return value if worked else raised(value)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:  # it has died; `wait` says so
            return

    def _death(self) -> Lost:
        status = self._process.wait()
        why = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return died("died", why)


def serve(descriptor: int, *cores: int) -> None:
    """Be the process, on `cores` where some are named: make the object, answer calls until the other end is gone."""
    if cores:
        os.sched_setaffinity(0, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other end's to answer
    connection = Connection(descriptor)
    try:
        held = connection.recv()()
        while True:
            method, arguments = connection.recv()
            try:
                answer = True, getattr(held, method)(*arguments)
            except Exception as error:  # whatever it is, the other end decides
                answer = False, error if isinstance(error, WorkError) else _plain(error)
            connection.send(answer)
    except (EOFError, OSError):
        return


def _plain(error: Exception) -> Exception:
    """Return an error that can be sent, with the other's name and words: not every library's own can."""
    return RuntimeError(f"{type(error).__name__}: {error}")
