"""The driver of a run: build what is missing, measure each cell as soon as it can be, and tell what happens."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import ray

from llama_bench import parts, results, versions
from llama_bench import plan as planning
from llama_bench.claims import Claims, Driver
from llama_bench.cluster import alone, connect
from llama_bench.cluster.autoscaler import node_types
from llama_bench.cluster.breakdown import Stages, measuring
from llama_bench.cluster.building import Building, Built, Tell
from llama_bench.cluster.events import Event, OnEvent, RunResult
from llama_bench.cluster.failures import Failures
from llama_bench.cluster.fleet import LOOK_S, Fleet
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.measure import Measuring
from llama_bench.cluster.metrics import Metrics, counted
from llama_bench.counts import model_bytes, reference_bytes
from llama_bench.errors import WorkError
from llama_bench.plan import Artifact, Cell, Plan
from llama_bench.stats.progress import ONE_RESTART
from llama_bench.store import Store
from llama_bench.sweep import Sweep, Workload
from llama_bench.sweep_file import select
from llama_bench.sweep_own import model_of

STORE_S = 300.0
"""How long the driver waits for a store that does not answer or has no room; what was measured by then is on disk."""

HOLDING_S = 0.02
"""How soon it is looked again whether a node is free that is about to be."""


def run(
    sweep: Sweep,
    store: Store,
    *,
    only: str | None = None,
    retry_failed: bool = False,
    on_event: OnEvent = lambda event: None,
    trim: Callable[[Cell], Cell] = lambda cell: cell,
    autoscaler: Path | None = None,
) -> RunResult:
    """Build and measure `sweep` into `store`, going on where an earlier call with the same fingerprint stopped.

    `only` limits what is built and measured now (see :func:`llama_bench.sweep_file.select`); `trim` may take arms from
    a planned cell; `autoscaler` is the file that says what nodes can be brought, unless the head has it (see
    :func:`llama_bench.cluster.autoscaler.node_types`). Raises InputError for a wrong `only`, WorkError when Ray cannot
    be reached or the store cannot take the results.
    """
    seconds, began = Stages(), datetime.now(UTC)
    chosen = select(sweep, only) if only else sweep
    whole = sweep.model_copy(update={"recipes": chosen.recipes})
    types = node_types(autoscaler)
    with seconds("plan"):
        plan = planning.make(whole, versions.stages())
        plan = replace(plan, cells=tuple(map(trim, plan.cells)))
        cells = [cell for cell in plan.cells if _is_chosen(cell, chosen)]
    with seconds("connect"):
        started_here = connect.connect()
        fleet = Fleet(store, whole.targets, types, on_event)
        fleet.look(wait=True)
    identity = Identity(
        sweep=whole.model_dump(mode="json"),
        code=versions.measuring(),
        versions=versions.libraries(),
        hardware=fleet.machines(),
    )
    unserved = fleet.unserved()
    found = find_or_start(store, plan, identity, unserved, fleet.facts)
    served = [cell for cell in cells if cell.target_name not in unserved]
    on_event = counted(Metrics(found.run, len(served)), on_event)
    on_event(Event("note", "run", detail=f"{store.url(found.run)} ({found.why})"))
    outcome = RunResult(found.run, unserved={name: why for name, why in unserved.items() if name in chosen.targets})
    for name, why in outcome.unserved.items():
        on_event(Event("unserved", name, detail=why))
    try:
        with alone.on_this_machine(started_here, on_event), Claims(store, found.run) as claims:
            driver = _Driver(store, plan, outcome, claims, fleet, retry_failed=retry_failed, on_event=on_event)
            driver.work(served, seconds)
    finally:
        fleet.close()
        if started_here:
            ray.shutdown()
    wall_s = seconds.spent.pop("measure", 0.0)
    outcome.breakdown = {**seconds.spent, **measuring(store, outcome.run, began, wall_s)}
    return outcome


def _is_chosen(cell: Cell, chosen: Sweep) -> bool:
    return (
        cell.target_name in chosen.targets
        and cell.workload_name in chosen.workloads
        and any(cell.model == model for model in chosen.models)
    )


class _Driver:
    """One loop that builds and measures side by side: a cell is measured when all that it needs is built.

    A node that also builds measures nothing before all is built.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        outcome: RunResult,
        claims: Claims,
        fleet: Fleet,
        *,
        retry_failed: bool,
        on_event: OnEvent,
    ) -> None:
        self.plan, self.outcome, self.claims, self.fleet = plan, outcome, claims, fleet
        self.retry_failed, self.on_event = retry_failed, on_event
        self._waits: list[str] = []
        self.store = store.patient(STORE_S, self._store_waits)
        claims.wait_with(self.store)
        fleet.wait_with(self.store)
        self.failures = Failures(self.store, outcome.run, claims)
        self.broken: dict[str, str] = {}  # artifact id → why it is missing

    def work(self, cells: Iterable[Cell], seconds: Stages) -> None:
        """Build and measure `cells` to their end; `seconds` takes the time until the first is measured as building."""
        todo = [cell for cell in cells if not self._reused(cell)]
        building = self._building(todo)
        measuring = Measuring(
            self.store,
            self.outcome,
            self.claims,
            self.fleet,
            self.failures,
            retry_failed=self.retry_failed,
            on_event=self.on_event,
        )
        missing = _Missing(todo)
        count = itertools.count(1)
        try:
            while building.left or measuring.left:
                began, stage = time.perf_counter(), "measure" if measuring.references else "build"
                self.fleet.look()
                ends = [*building.start(), *self._heard(building, measuring)]
                for end in ends:
                    self._built(end, next(count), len(building.needed), todo)
                    for cell in missing.arrived(end.id):
                        self._complete(cell, measuring)
                measuring.fill(building=building.left)
                seconds.add(stage, time.perf_counter() - began)
                self._tell_waits()
        finally:
            building.close()
            measuring.close()

    def _heard(self, building: Building, measuring: Measuring) -> Iterable[Built]:
        """Wait a moment for what builds and coordinators tell; pass it on, and return the builds that ended."""
        builds, cells = building.references, measuring.references
        if not builds and not cells:
            time.sleep(HOLDING_S if building.left or measuring.left else 0.0)
            return []
        ready, _ = ray.wait([*builds, *cells], num_returns=1, timeout=HOLDING_S if measuring.holds else LOOK_S)
        for stream in (stream for stream in ready if stream in cells):
            measuring.take(stream)
        ends = [building.take(stream) for stream in ready if stream in builds]
        return [end for end in ends if end is not None]

    def _building(self, todo: Iterable[Cell]) -> Building:
        wanted = dict.fromkeys(name for cell in todo for name in _needs(cell))
        tell = Tell(self._started, self._built_elsewhere, self._build_lost)
        known = self._failed_before()
        building = Building(self.plan, wanted, self.store, self.outcome.run, known, self.claims, self.fleet, tell)
        self._check_room(artifact for artifact in building.needed.values() if not self.store.has(artifact.id))
        self.on_event(Event("builds", "artifacts", total=len(building.needed)))
        return building

    def _check_room(self, missing: Iterable[Artifact]) -> None:
        """Raise WorkError when the store has too little room for the weights and references of `missing`."""
        needed = 0
        for artifact in missing:
            if artifact.kind == "pass":
                continue
            model = model_of(artifact.spec["model"])
            workload = Workload.model_validate(artifact.spec["workload"])
            text = artifact.spec.get("text")
            needed += model_bytes(model) if artifact.kind == "export" else reference_bytes(model, workload, text)
        room = self.store.free_bytes()
        if room is not None and room < needed:
            raise WorkError(
                f"store {self.store.uri} has {room / 1e9:.1f} GB of room, the sweep needs {needed / 1e9:.1f} GB: "
                "free some (`python -m llama_bench clean`) or name another with --store"
            )

    def _failed_before(self) -> dict[str, str]:
        """Artifact id → message of the builds that failed in this run and are not to be tried again."""
        if self.retry_failed:
            return {}
        rows = results.scan(self.store.url(self.outcome.run))["failures"].collect().to_dicts()
        return {
            row["artifact"]: row["message"] for row in rows if row["stage"] == "build" and row["kind"] != ONE_RESTART
        }

    # ── what happened ────────────────────────────────────────────────────────────────────────────────────────────────

    def _started(self, label: str) -> None:
        self.on_event(Event("build", label, "started"))

    def _built_elsewhere(self, label: str, holder: Driver) -> None:
        self.on_event(Event("note", label, detail=f"being built by another driver ({holder}): waiting for it"))

    def _build_lost(self, artifact: Artifact, node: str | None, message: str) -> None:
        self.failures.build_lost(artifact, node, message)
        self.on_event(Event("note", artifact.label, detail=f"its build was lost, trying again: {message}"))

    def _store_waits(self, why: str) -> None:
        self._waits.append(why)
        self.on_event(Event("note", "store", detail=f"waiting up to {STORE_S / 60:.0f} min for it: {why}"))

    def _tell_waits(self) -> None:
        """Write a row for each time that the store was waited for; it is there again."""
        while self._waits:
            self.failures.store_waited(self._waits.pop())

    def _built(self, end: Built, done: int, total: int, cells: Iterable[Cell]) -> None:
        """Tell the end of a build; of one that failed, write a row for each arm that cannot be timed for want of it."""
        artifact = self.plan.artifacts[end.id]
        self.on_event(Event("build", artifact.label, end.state, done, total, end.seconds, end.error or ""))
        if end.error is None:
            return
        self.broken[end.id] = end.error
        if end.state == "known":
            self.outcome.failures.append(f"{end.error} (failed before; --retry-failed tries again)")
            return
        if end.state == "failed":
            self.outcome.failures.append(end.error)
        self.failures.build_ended(artifact, end.state, end.error, cells)

    def _complete(self, cell: Cell, measuring: Measuring) -> None:
        """Let a cell be measured of which all is built that can be; without its baseline nothing is."""
        whole = replace(cell, arms=tuple(arm for arm in cell.arms if arm.variant not in self.broken))
        if cell.reference in self.broken or cell.baseline not in {arm.name for arm in whole.arms}:
            self.on_event(Event("cell", cell.label, "failed", detail="its baseline could not be built"))
        else:
            measuring.add(whole)

    def _reused(self, cell: Cell) -> bool:
        """Whether the cell's parts are folded, which is done last (and nothing of it is to be tried again)."""
        if cell.id not in self._pieces or (self.retry_failed and cell.id in self._cells_with_failures):
            return False
        self.outcome.reused += 1
        self.on_event(Event("cell", cell.label, "reused"))
        return True

    @cached_property
    def _pieces(self) -> set[str]:
        return parts.finished(self.store, self.outcome.run)["pieces"]

    @cached_property
    def _cells_with_failures(self) -> set[str]:
        rows = results.scan(self.store.url(self.outcome.run))["failures"].select("cell").collect()
        return set(rows["cell"].to_list())


class _Missing:
    """What each cell still waits for."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._needs = {cell.id: set(_needs(cell)) for cell in cells}
        self._of: dict[str, list[Cell]] = {}
        for cell in cells:
            for name in self._needs[cell.id]:
                self._of.setdefault(name, []).append(cell)

    def arrived(self, artifact: str) -> Iterable[Cell]:
        """Take in that an artifact was built, or never will be; yield the cells that wait for nothing any more."""
        for cell in self._of.pop(artifact, ()):
            self._needs[cell.id].discard(artifact)
            if not self._needs[cell.id]:
                yield cell


def _needs(cell: Cell) -> list[str]:
    """Return the ids of the artifacts that a cell is measured with."""
    return list(dict.fromkeys((cell.reference, *(arm.variant for arm in cell.arms))))
