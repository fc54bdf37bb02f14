"""How far a run is, from listings of its store alone: no part is opened, no Ray is asked, nothing is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llama_bench import claims, parts, results
from llama_bench.claims import Driver
from llama_bench.store import Store

State = Literal["finished", "measuring", "failed", "waiting"]

STATES: tuple[State, ...] = ("finished", "measuring", "failed", "waiting")
"""Of a cell: folded; some restarts are there; nothing but failures; nothing."""


@dataclass(frozen=True, slots=True)
class CellStatus:
    """One cell: its state, finished restarts (of one that is not folded), and rows of `failures` parts about it."""

    cell: str
    model: str
    workload: str
    target: str
    state: State
    restarts: int
    failures: int


@dataclass(frozen=True, slots=True)
class Status:
    """A run: what is built of what it needs, its cells, targets that no node served, the drivers that work on it."""

    run: str
    created_at: str
    artifacts: int
    built: int
    build_failures: int
    cells: tuple[CellStatus, ...]
    unserved: Mapping[str, str]
    drivers: tuple[Driver, ...]

    def count(self, state: State, target: str | None = None) -> int:
        """Return how many cells are in `state`, of one target or of all."""
        return sum(cell.state == state for cell in self.cells if target in (None, cell.target))

    @property
    def finished(self) -> bool:
        """Whether every cell of a served target is finished."""
        return all(cell.state == "finished" for cell in self.cells if cell.target not in self.unserved)


def read(store: Store, run: str) -> Status:
    """Return how far `run` (`<sweep>/<run id>`) is. Raises InputError when it has no run.json."""
    info = results.read_run(store, run)
    pieces, failures = (_by_cell(parts.stems_of(store, run, dataset)) for dataset in ("pieces", "failures"))
    wanted = set(info["artifacts"])
    whole = {key.split("/")[1] for key in store.keys("artifacts") if key.endswith("/manifest.json")}
    cells = tuple(_cell(entry, pieces, failures) for entry in info["cells"])
    drivers = tuple(claims.alive(store, run))
    unserved = info.get("unserved", {})
    built, build_failures = len(wanted & whole), failures["build"].total()
    return Status(run, info["created_at"], len(wanted), built, build_failures, cells, unserved, drivers)


def _by_cell(stems: set[str]) -> Mapping[str, Counter[str]]:
    """Return cell (or `build`) → how many of its parts there are of each kind: the first letter behind the dash."""
    found: dict[str, Counter[str]] = {"build": Counter()}
    for stem in stems:
        cell, _, rest = stem.partition("-")
        found.setdefault(cell, Counter())[rest[:1]] += 1
    return found


def _cell(
    entry: Mapping[str, Any], pieces: Mapping[str, Counter[str]], failures: Mapping[str, Counter[str]]
) -> CellStatus:
    cell = entry["id"]
    done, failed = pieces.get(cell, Counter[str]()), failures.get(cell, Counter[str]()).total()
    state: State = "waiting"
    if done[""]:
        state = "finished"
    elif done["r"] or done["x"]:
        state = "measuring"
    elif failed:
        state = "failed"
    return CellStatus(cell, entry["model"], entry["workload"], entry["target"], state, done["r"], failed)
