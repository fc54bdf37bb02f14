"""Whether every node of a cluster reaches the store: asked before any work starts, since a build takes minutes."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any

import ray
from ray.exceptions import RayError

from llama_bench.cluster.connect import SHARE, Node, on
from llama_bench.errors import LlamaBenchError, WorkError
from llama_bench.store import Store

ANSWER_S = 120.0  # a node that was just started imports for a while

OTHER = "it finds another store under this name: the folder is not shared between the machines"


def unreachable(store: Store, nodes: Iterable[Node]) -> dict[str, str]:
    """Return node id → why that node cannot work with `store`; empty when all can.

    The driver leaves a note that each node must find, and each node one that the driver must find: a folder of the
    same name on every machine's own disk is no store for them all.
    """
    key = f".probe-{secrets.token_hex(8)}"
    store.put(key, key.encode())
    asked = {node.id: f"{key}-{node.id}" for node in nodes}
    try_it = ray.remote(num_cpus=SHARE, max_retries=1)(answer)
    under_way = {
        node.id: try_it.options(scheduling_strategy=on(node)).remote(store.uri, key, asked[node.id]) for node in nodes
    }
    try:
        found = {node: _why(store, reference, asked[node]) for node, reference in under_way.items()}
    finally:
        store.delete([key, *asked.values()])
    return {node: why for node, why in found.items() if why is not None}


def answer(uri: str, key: str, mine: str) -> str | None:
    """On a node: find what the driver wrote at `key`, leave `mine`; return what is wrong, None when nothing is."""
    try:
        store = Store(uri)
        if store.length(key) is None:
            return OTHER
        store.get(key)
        store.put(mine, mine.encode())
    except LlamaBenchError as error:
        return str(error)
    return None


def _why(store: Store, reference: Any, key: str) -> str | None:
    try:
        said: str | None = ray.get(reference, timeout=ANSWER_S)
    except RayError as error:
        return f"it did not answer: {str(error).strip().splitlines()[0]}"
    return said if said is not None or store.length(key) is not None else OTHER


def without(nodes: Iterable[Node], lame: dict[str, str]) -> list[Node]:
    """Return the nodes that reach the store. Raises WorkError when none does."""
    nodes = list(nodes)
    left = [node for node in nodes if node.id not in lame]
    if nodes and not left:
        raise WorkError(f"no node reaches the store; {nodes[0].address}: {lame[nodes[0].id]}")
    return left
