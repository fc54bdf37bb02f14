"""Processes as Ray actors and tasks, inside the placement group of their coordinator."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from llama_bench.cluster.launch import DEADLINE_S, Call, Process, died, late, raised

SHARE = 0.01  # CPU of an actor: explicit, since the group holds the cores and num_cpus=0 slips onto full nodes


class Actors:
    """The launcher of a run; `environment` is that of the arms' processes, `gpu` whether they need one."""

    def __init__(self, environment: Mapping[str, str], gpu: bool) -> None:
        self._gpu = gpu
        self.deadline_s = DEADLINE_S
        # A worker inherits what its node's raylet has. An environment of its own costs it another 0.2 s to start.
        self._extra = {key: value for key, value in environment.items() if os.environ.get(key) != value}

    def start(self, make: Callable[[], Any], count: int) -> list[Process]:
        """Start `count` actors, which share the node's GPU where they need it."""
        actor = ray.remote(max_restarts=0, max_task_retries=0, **self._options(count))(make)
        return [ActorProcess(actor.remote(), self.deadline_s) for _ in range(count)]

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns in a worker that is used for nothing else."""
        task = ray.remote(max_calls=1, max_retries=0, **self._options(1))(function)
        return ActorCall(task.remote(*arguments), self.deadline_s).wait()

    def _options(self, share: int) -> dict[str, Any]:
        options: dict[str, Any] = {"num_cpus": SHARE}
        if self._extra:
            options["runtime_env"] = {"env_vars": self._extra}
        if self._gpu:
            options["num_gpus"] = int(10_000 / share) / 10_000
        return options


class ActorProcess:
    """One actor."""

    def __init__(self, handle: Any, deadline_s: float) -> None:
        self._handle, self._deadline_s = handle, deadline_s

    def call(self, method: str, *arguments: Any) -> Call:
        return ActorCall(getattr(self._handle, method).remote(*arguments), self._deadline_s)

    def kill(self) -> None:
        ray.kill(self._handle, no_restart=True)


class ActorCall:
    """A method of an actor under way, or a task."""

    def __init__(self, reference: Any, deadline_s: float) -> None:
        self._reference, self._deadline_s = reference, deadline_s

    def wait(self) -> Any:
        """Return the call's value, or how it was lost; one that is late is cancelled, for its worker to be free."""
        try:
            return ray.get(self._reference, timeout=self._deadline_s)
        except GetTimeoutError:
            _cancel(self._reference)
            return late(self._deadline_s)
        except RayTaskError as error:
            return raised(error.cause)
        except RayError as error:  # the process died, the node ran out of memory, the node went away
            return died(type(error).__name__, str(error).strip().splitlines()[0])


def _cancel(reference: Any) -> None:
    """End what computes `reference`; an actor's method cannot be, its process is killed by who started it."""
    with suppress(RayError, ValueError, TypeError):
        ray.cancel(reference, force=True)
