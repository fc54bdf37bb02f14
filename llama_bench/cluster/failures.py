"""What was lost and what failed, as rows of `failures`: every fault is one, with its reason."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from llama_bench import parts
from llama_bench.claims import Claims
from llama_bench.cluster.build_task import piece
from llama_bench.cluster.rows import where
from llama_bench.plan import Artifact, Cell
from llama_bench.stats.progress import ONE_RESTART
from llama_bench.store import Store


class Failures:
    """The driver's own rows of `failures`; a coordinator writes those of its arms."""

    def __init__(self, store: Store, run: str, claims: Claims) -> None:
        self._store, self._run, self._claims = store, run, claims

    def write(self, cell: Cell, *, kind: str, message: str, node: str | None = None, stage: str = "measure") -> None:
        """Write that a cell, or with `kind` "lost" one restart of it, came to nothing."""
        self._add(f"{cell.id}-c", [{**where(cell), "stage": stage, "kind": kind, "message": message, "node": node}])

    def build_lost(self, artifact: Artifact, node: str | None, message: str) -> None:
        """Write that one try of a build came to nothing."""
        row = {"stage": "build", "artifact": artifact.id, "kind": ONE_RESTART, "message": message, "node": node}
        self._add(f"{piece(artifact)}-", [row])

    def build_ended(self, artifact: Artifact, kind: str, message: str | None, cells: Iterable[Cell]) -> None:
        """Write one row for each arm of `cells` that cannot be timed for want of an artifact."""
        row = {"stage": "build", "artifact": artifact.id, "kind": kind, "message": message}
        rows = [
            {**where(cell), "recipe": arm.name, **row}
            for cell in cells
            for arm in cell.arms
            if artifact.id in (arm.variant, cell.reference)
        ]
        self._add(f"{piece(artifact)}-", rows or [row])

    def inherited(self, cell: Cell) -> None:
        """Write that the driver which had the cell before was lost, if so; builds that it had are just done again."""
        dead = self._claims.inherited.pop(cell.id, None)
        if dead is not None:
            self.write(cell, kind=ONE_RESTART, message=f"its driver was lost: {dead}", stage="driver")

    def store_waited(self, why: str) -> None:
        """Write that the store was not to be reached for a while, and that it was waited for."""
        self._add("store-", [{"stage": "store", "kind": ONE_RESTART, "message": why}])

    def _add(self, stem: str, rows: list[dict[str, Any]]) -> None:
        """Write rows under a number of their own; of two writers that count at once the second counts on."""
        number = len(parts.stems_of(self._store, self._run, "failures"))
        at = datetime.now(UTC)
        rows = [{**row, "at": at} for row in rows]
        while not parts.write_part(self._store, self._run, "failures", f"{stem}{number:04d}", rows):
            number += 1
