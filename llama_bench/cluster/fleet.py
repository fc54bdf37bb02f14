"""The nodes of a cluster as they come and go, and what is known of each."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from llama_bench.bench import machine
from llama_bench.cluster import connect
from llama_bench.cluster.autoscaler import NodeType
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event, OnEvent
from llama_bench.cluster.reach import ANSWER_S, Introduction
from llama_bench.errors import WorkError
from llama_bench.store import Store
from llama_bench.sweep import Target

LOOK_S = 1.0
"""How often Ray is asked which nodes live."""

BRING_S = 1800.0
"""A node that an autoscaler was asked for and that has not come in so long will not come."""

ASK_AGAIN_S = 60.0
"""A node that did not reach the store is asked again after so long: what was in its way may be gone."""

REJOIN_S = 60.0
"""How long the last node of a tag is waited for after it was lost: a raylet that is started again comes back."""


class Fleet:
    """The living nodes that have work here: those that build or serve one of `targets`, and reach the store.

    `facts` and `hardware` say of each what machine it is; `types` are what an autoscaler could bring.
    """

    def __init__(
        self, store: Store, targets: Mapping[str, Target], types: Iterable[NodeType], on_event: OnEvent
    ) -> None:
        self._store, self._targets, self._on_event = store, targets, on_event
        self.types = list(types)
        self.nodes: list[Node] = []
        self.facts: dict[str, dict[str, Any]] = {}
        self.hardware: dict[str, str] = {}
        self._new: dict[str, Introduction] = {}
        self._lame: dict[str, tuple[str, float]] = {}  # node → why it does not reach the store, when it is asked again
        self._lost_at: dict[str, float] = {}  # tag → when its last node was lost
        self._looked_at = float("-inf")

    def wait_with(self, store: Store) -> None:
        """Use `store`, the same place with patience."""
        self._store = store

    def look(self, *, wait: bool = False) -> bool:
        """Take in the nodes that came and let go of those that went; True when any did.

        New ones are asked first whether they reach the store and what machine they are; `wait` is until each has said
        so. Raises WorkError when nodes were waited for and none reaches the store.
        """
        if not wait and time.monotonic() - self._looked_at < LOOK_S:
            return False
        self._looked_at = time.monotonic()
        alive = {node.id: node for node in connect.nodes()}
        changed = self._forget(alive)
        late = {node_id for node_id, (_, at) in self._lame.items() if time.monotonic() < at}
        known = {node.id for node in self.nodes} | set(self._new) | late
        for node in alive.values():
            if node.id not in known and (node.builds or self._serves(node)):
                self._new[node.id] = Introduction(self._store, node)
        changed |= self._welcome(ANSWER_S if wait else 0.0)
        if wait and self._lame and not self.nodes:
            node_id, (why, _) = next(iter(self._lame.items()))
            raise WorkError(f"no node reaches the store; {alive[node_id].address}: {why}")
        return changed

    def unserved(self) -> dict[str, str]:
        """Return target → why no node serves it now and none can be brought."""
        no_gpu = [facts.get("now", {}).get("no_gpu") for facts in self.facts.values()]
        found = connect.unserved(self._targets, self.nodes, no_gpu)
        return {name: why for name, why in found.items() if not self._can_come(self._targets[name])}

    def serving(self, target: Target) -> list[Node]:
        return [node for node in self.nodes if node.serves(target)]

    def builders(self) -> list[Node]:
        return [node for node in self.nodes if node.builds]

    def most_memory(self) -> float | None:
        """Return the memory of the largest builder that there is or can be brought, in bytes; None without any.

        It is infinite where a type does not say.
        """
        here = [node.resources.get("memory", 0.0) for node in self.builders()]
        come = [one.resources.get("memory", float("inf")) for one in self.types if one.builds and one.most > 0]
        return max([*here, *come], default=None)

    def has_lost(self, target: Target) -> bool:
        """Whether no node serves `target`, none can be brought, and none has come back in time."""
        if self.serving(target) or self._can_come(target) or any(new.node.serves(target) for new in self._new.values()):
            return False
        return not self.may_return(target.tag)

    def may_return(self, tag: str) -> bool:
        """Whether a node with `tag` was lost so short a time ago that it may come back."""
        return time.monotonic() - self._lost_at.get(tag, float("-inf")) < REJOIN_S

    def machines(self) -> list[str]:
        """Return what the run's identity knows of the machines that serve its targets.

        Of nodes that an autoscaler brings it is their type: whether one is there at the moment must not matter.
        """
        fixed = [node for node in self.nodes if self._serves(node) and not self._is_brought(node)]
        types = [one for one in self.types if any(map(one.serves, self._targets.values()))]
        return sorted(
            [self.hardware[node.id] for node in fixed]
            + [f"{one.name} of an autoscaler: {sorted(one.resources.items())}" for one in types]
        )

    def close(self) -> None:
        """Leave nothing behind of nodes that have not answered."""
        while self._new:
            self._new.popitem()[1].close()

    def _forget(self, alive: Mapping[str, Node]) -> bool:
        gone = [node for node in self.nodes if node.id not in alive]
        for node in gone:
            self.nodes.remove(node)
            for tag in node.tags:
                self._lost_at[tag] = time.monotonic()
            self._on_event(Event("note", node.address, detail=f"this node was lost ({', '.join(node.tags)})"))
        for node_id in [node_id for node_id in self._new if node_id not in alive]:
            self._new.pop(node_id).close()
        return bool(gone)

    def _welcome(self, wait_s: float) -> bool:
        """Take in the new nodes that have answered; True when any is ready for work."""
        came = False
        until = time.monotonic() + wait_s
        for node_id, new in list(self._new.items()):
            answer = new.answered(max(0.0, until - time.monotonic()))
            if answer is None:
                continue
            del self._new[node_id]
            if answer.why is not None:
                self._leave_out(new.node, answer.why)
                continue
            came = True
            self._lame.pop(node_id, None)
            self.nodes.append(new.node)
            self.facts[node_id], self.hardware[node_id] = answer.facts, machine.fingerprint(answer.facts)
            for doubt in machine.doubts(answer.facts) if self._serves(new.node) else ():
                self._on_event(Event("doubt", new.node.address, detail=doubt))
        self.nodes.sort(key=lambda node: node.id)
        return came

    def _leave_out(self, node: Node, why: str) -> None:
        """Give a node no work until it is asked again."""
        told, _ = self._lame.get(node.id, ("", 0.0))
        self._lame[node.id] = why, time.monotonic() + ASK_AGAIN_S
        if told != why:
            self._on_event(Event("doubt", node.address, detail=f"left out, it does not reach the store: {why}"))

    def _serves(self, node: Node) -> bool:
        return any(map(node.serves, self._targets.values()))

    def _can_come(self, target: Target) -> bool:
        return any(one.serves(target) and one.most > 0 for one in self.types)

    def _is_brought(self, node: Node) -> bool:
        """Whether `node` looks like one that the autoscaler brought: it has all that one of its types offers."""
        own = ("memory", "object_store_memory")
        return any(
            all(node.resources.get(key) == number for key, number in one.resources.items() if key not in own)
            for one in self.types
        )
