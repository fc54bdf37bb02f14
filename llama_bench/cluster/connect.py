"""Starting or joining Ray, what its nodes offer, and which node can serve which target."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from llama_bench.bench import machine
from llama_bench.cluster.job import NICENESS, NO_GPU
from llama_bench.errors import WorkError
from llama_bench.sweep import Target

BUILDER, BENCH_CPU, BENCH_GPU = "builder", "bench_cpu", "bench_gpu"

OBJECT_STORE_BYTES = 256 * 2**20
"""Models and weights go through the store, never through Ray's object store: only events and small rows do."""

CONNECT_S = 5.0

LOCAL = {**NICENESS, "RAY_USAGE_STATS_ENABLED": "0"}
"""Environment of a Ray started here, which its workers inherit: one that has to be made for a worker takes 0.2 s."""

SHARE = 0.01
"""CPU of a probe: explicit, because a task of num_cpus=0 slips onto a node that is full (Ray 2.60)."""


@dataclass(frozen=True, slots=True)
class Node:
    """One living node of the cluster and what it offers (resources in Ray's units, memory in bytes), and its labels."""

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def serves(self, target: Target) -> bool:
        """Whether the node carries the target's tag, and a GPU where the target needs one."""
        return not self.lacks(target)

    def lacks(self, target: Target) -> str:
        """Return what the node would need to serve `target`; empty when it does."""
        wanted = [target.tag, *(["GPU"] if target.needs_gpu else [])]
        return " and ".join(name for name in wanted if self.resources.get(name, 0) < 1)

    @property
    def builds(self) -> bool:
        return self.resources.get(BUILDER, 0) >= 1

    @property
    def tags(self) -> list[str]:
        """The node's resources but Ray's own, and its GPUs."""
        own = ("CPU", "memory", "object_store_memory")
        return sorted(name for name in self.resources if name not in own and ":" not in name)


def connect(address: str | None = None) -> bool:
    """Join the cluster at `address` or RAY_ADDRESS, or start Ray on this machine; True when it was started here.

    A started Ray gets its tags from what the machine has: `builder`, `bench_cpu`, and `bench_gpu` where there is a
    GPU. Raises WorkError when there is no cluster at the address.
    """
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address:
        _check_listening(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            hint = "" if "RAY_AUTH_MODE" in os.environ else "; if it asks for a token, export RAY_AUTH_MODE=token"
            raise WorkError(f"no Ray cluster at {address!r}: {str(error).splitlines()[0]}{hint}") from error
        return False
    gpus = len(machine.gpus())
    with _environment(LOCAL | ({} if gpus else NO_GPU)):
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            resources=local_tags(os.cpu_count() or 1, gpus),
            **quiet,
        )
    return True


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for what is started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _check_listening(address: str) -> None:
    """Raise WorkError when nothing listens at `address`: ray.init itself would try again for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():  # "auto", or a name that Ray resolves
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise WorkError(f"no Ray cluster at {address!r}: {error.strerror or error}") from error


def local_tags(cpus: int, gpus: int) -> dict[str, float]:
    """Return the resource tags of a machine that both builds and measures: one unit of a bench tag is one cell."""
    return {BUILDER: float(cpus), BENCH_CPU: 1.0} | ({BENCH_GPU: 1.0} if gpus else {})


def nodes() -> list[Node]:
    """Return the living nodes in the order of their ids."""
    listed: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in listed if node["Alive"]]
    found = [
        Node(node["NodeID"], node["NodeManagerAddress"], dict(node["Resources"]), dict(node["Labels"]))
        for node in alive
    ]
    return sorted(found, key=lambda node: node.id)


def unserved(
    targets: Mapping[str, Target], offered: Iterable[Node], no_gpu: Iterable[str | None] = ()
) -> dict[str, str]:
    """Return target → why no node can serve it, with what the nodes offer; empty when every target is served.

    `no_gpu` are the reasons of nodes that find no GPU, one of which is told where all have the same. Ray itself waits
    for ever, without an error, for a resource that nobody has.
    """
    offered, reasons = list(offered), set(no_gpu) - {None}
    because = f"; {next(iter(reasons))}" if len(reasons) == 1 else ""
    offers = "; ".join(f"{node.address}: {', '.join(node.tags) or 'no tags'}" for node in offered) or "no nodes"
    return {
        name: f"no node offers {target.tag}{' with a GPU' if target.needs_gpu else ''} (the nodes offer {offers})"
        + (because if target.needs_gpu else "")
        for name, target in targets.items()
        if not any(node.serves(target) for node in offered)
    }


def on(node: Node, *, soft: bool = False) -> NodeAffinitySchedulingStrategy:
    """Return the strategy that runs a task on `node` and, unless `soft` and the node is gone, nowhere else."""
    return NodeAffinitySchedulingStrategy(node.id, soft=soft)
