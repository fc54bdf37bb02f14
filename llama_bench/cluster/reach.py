"""Introducing a node: whether it reaches the store, and what machine it is; asked before it is given any work."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from llama_bench.bench import machine
from llama_bench.cluster.connect import SHARE, Node, on
from llama_bench.errors import LlamaBenchError
from llama_bench.store import Store

ANSWER_S = 120.0  # a node that was just started imports for a while

OTHER = "it finds another store under this name: the folder is not shared between the machines"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node said: why it cannot work with the store, or None; and :func:`llama_bench.bench.machine.facts`."""

    why: str | None
    facts: dict[str, Any]


class Introduction:
    """A node that is being asked.

    The driver leaves a note that the node must find, and the node one that the driver must find: a folder of the same
    name on every machine's own disk is no store for them all.
    """

    def __init__(self, store: Store, node: Node) -> None:
        self.node, self._store = node, store
        self._note = f".probe-{secrets.token_hex(8)}"
        self._reply = f"{self._note}-{node.id}"
        store.put(self._note, self._note.encode())
        ask = ray.remote(num_cpus=SHARE, max_retries=1)(answer)
        self._reference = ask.options(scheduling_strategy=on(node)).remote(store.uri, self._note, self._reply)
        self._until = time.monotonic() + ANSWER_S

    def answered(self, wait_s: float = 0.0) -> Answer | None:
        """Return the node's answer, None while there is none; who does not answer in time does not reach the store."""
        ready, _ = ray.wait([self._reference], timeout=wait_s)
        if not ready and time.monotonic() < self._until:
            return None
        try:
            return self._answer()
        finally:
            self.close()

    def close(self) -> None:
        """Remove what was left for each other."""
        self._store.delete([self._note, self._reply])

    def _answer(self) -> Answer:
        try:
            why, facts = ray.get(self._reference, timeout=0)
        except RayError as error:
            return Answer(f"it did not answer: {str(error).strip().splitlines()[0]}", {})
        return Answer(why if why is not None or self._store.length(self._reply) is not None else OTHER, facts)


def answer(uri: str, note: str, reply: str) -> tuple[str | None, dict[str, Any]]:
    """On a node: find what the driver wrote as `note`, leave `reply`; return what is wrong, or None, and the facts."""
    return _reached(uri, note, reply), machine.facts()


def _reached(uri: str, note: str, reply: str) -> str | None:
    try:
        store = Store(uri)
        if store.length(note) is None:
            return OTHER
        store.get(note)
        store.put(reply, reply.encode())
    except LlamaBenchError as error:
        return str(error)
    return None
