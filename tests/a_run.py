"""Restarts as a coordinator writes them, and everything that a run shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_bench import parts, results
from llama_bench.store import Store

RUN = "sweep/20261123-131502-ab12cd34"
REPLICATED = ("timings", "blocks", "accuracy", "machines")


def rows(cell: str, restart: int, count: int = 3) -> list[dict[str, Any]]:
    return [{"cell": cell, "restart": restart, "group": 0, "recipe": f"r{n}"} for n in range(count)]


def write_restart(store: Store, cell: str, restart: int, *, finished: bool = True, run: str = RUN) -> None:
    stem = f"{cell}-r{restart:04d}"
    for dataset in REPLICATED:
        parts.write_part(store, run, dataset, stem, rows(cell, restart))
    if finished:
        piece = {"piece": stem, "kind": "restart", "cell": cell, "restart": restart, "wall_s": 1.5}
        parts.write_part(store, run, "pieces", stem, [piece])


def contents(store: Store, run: str = RUN) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that scan gives, in one order."""
    frames = results.scan(Path(store.uri) / run)
    return {name: sorted(frame.collect().rows(), key=repr) for name, frame in frames.items()}


def lengths(store: Store, run: str = RUN) -> Mapping[str, int]:
    return {name: len(found) for name, found in contents(store, run).items() if found}
