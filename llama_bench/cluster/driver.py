"""The driver of a run: build what is missing, then measure cell by cell, and tell the watcher what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import ray

from llama_bench import plan as planning
from llama_bench import results, versions
from llama_bench.bench import machine
from llama_bench.claims import Claims, Driver
from llama_bench.cluster import connect, reach
from llama_bench.cluster.breakdown import Stages, measuring
from llama_bench.cluster.build import Built, build_all, closure
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event, OnEvent, RunResult
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.measure import Measuring
from llama_bench.cluster.metrics import Metrics, counted
from llama_bench.cluster.rows import where
from llama_bench.errors import WorkError
from llama_bench.estimate import reference_bytes
from llama_bench.model.weights import weight_bytes
from llama_bench.plan import Artifact, Cell, Plan
from llama_bench.store import Store
from llama_bench.sweep import Model, Sweep, Workload
from llama_bench.sweep_file import select


def run(
    sweep: Sweep,
    store: Store,
    *,
    only: str | None = None,
    retry_failed: bool = False,
    on_event: OnEvent = lambda event: None,
    trim: Callable[[Cell], Cell] = lambda cell: cell,
) -> RunResult:
    """Build and measure `sweep` into `store`, going on where an earlier call with the same fingerprint stopped.

    `only` limits what is built and measured now (see :func:`llama_bench.sweep_file.select`); `trim` may take arms from
    a planned cell. Raises InputError for a
    wrong `only`, WorkError when Ray cannot be reached or the store cannot take the results.
    """
    seconds, began = Stages(), datetime.now(UTC)
    chosen = select(sweep, only) if only else sweep
    whole = sweep.model_copy(update={"recipes": chosen.recipes})
    with seconds("plan"):
        plan = planning.make(whole, versions.stages())
        plan = replace(plan, cells=tuple(map(trim, plan.cells)))
        cells = [cell for cell in plan.cells if _is_chosen(cell, chosen)]
    with seconds("connect"):
        started_here = connect.connect()
        nodes = connect.nodes()
        working = [node for node in nodes if node.builds or any(map(node.serves, whole.targets.values()))]
        lame = {} if started_here else reach.unreachable(store, working)
        nodes = reach.without(nodes, lame)
        unserved = connect.unserved(whole.targets, nodes)
        serving = [node for node in nodes if any(node.serves(target) for target in whole.targets.values())]
        facts = connect.probe(serving)
    identity = Identity(
        sweep=whole.model_dump(mode="json"),
        code=versions.measuring(),
        versions=versions.libraries(),
        hardware=sorted(machine.fingerprint(fact) for fact in facts.values()),
    )
    found = find_or_start(store, plan, identity, unserved, facts)
    served = [cell for cell in cells if cell.target_name not in unserved]
    on_event = counted(Metrics(found.run, len(served)), on_event)
    on_event(Event("note", "run", detail=f"{store.url(found.run)} ({found.why})"))
    outcome = RunResult(found.run, unserved={name: why for name, why in unserved.items() if name in chosen.targets})
    for node in working:
        if node.id in lame:
            on_event(Event("doubt", node.address, detail=f"left out, it does not reach the store: {lame[node.id]}"))
    for name, why in outcome.unserved.items():
        on_event(Event("unserved", name, detail=why))
    for node in serving:
        for doubt in machine.doubts(facts[node.id]):
            on_event(Event("doubt", node.address, detail=doubt))
    try:
        with Claims(store, found.run) as claims:
            driver = _Driver(store, plan, outcome, claims, retry_failed, on_event)
            with seconds("build"):
                broken = driver.build(served, nodes)
            with seconds("measure"):
                driver.measure(served, broken, serving, facts)
    finally:
        if started_here:
            ray.shutdown()
    wall_s = seconds.spent.pop("measure")
    outcome.breakdown = {**seconds.spent, **measuring(store, outcome.run, began, wall_s)}
    return outcome


def _is_chosen(cell: Cell, chosen: Sweep) -> bool:
    return (
        cell.target_name in chosen.targets
        and cell.workload_name in chosen.workloads
        and any(cell.model == model for model in chosen.models)
    )


class _Driver:
    """The two halves of a run, and what they share: building, then measuring."""

    def __init__(
        self, store: Store, plan: Plan, outcome: RunResult, claims: Claims, retry_failed: bool, on_event: OnEvent
    ) -> None:
        self.store, self.plan, self.outcome, self.claims = store, plan, outcome, claims
        self.retry_failed, self.on_event = retry_failed, on_event

    # ── build ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def build(self, cells: Iterable[Cell], nodes: Iterable[Node]) -> dict[str, str]:
        """Build all that `cells` need; return artifact id → why it is missing."""
        todo = [cell for cell in cells if not self._finished(cell)]
        wanted = dict.fromkeys(name for cell in todo for name in (cell.reference, *(arm.variant for arm in cell.arms)))
        needed = closure(self.plan, wanted)
        total = len(needed)
        self._check_room(artifact for artifact in needed.values() if not self.store.has(artifact.id))
        self.on_event(Event("builds", "artifacts", total=total))
        broken: dict[str, str] = {}
        known, told = self._failed_before(), (self._started, self._built_elsewhere)
        ends = build_all(self.plan, wanted, self.store, self.outcome.run, nodes, known, self.claims, *told)
        for done, end in enumerate(ends, 1):
            label = self.plan.artifacts[end.id].label
            detail = end.error or ""
            self.on_event(Event("build", label, end.state, done, total, end.seconds, detail))
            if end.error is not None:
                broken[end.id] = end.error
                self._record(end, todo)
        return broken

    def _check_room(self, missing: Iterable[Artifact]) -> None:
        """Raise WorkError when the store has too little room for the weights and references of `missing`."""
        needed = 0
        for artifact in missing:
            if artifact.kind == "pass":
                continue
            model = Model.model_validate(artifact.spec["model"])
            workload = Workload.model_validate(artifact.spec["workload"])
            text = artifact.spec.get("text")
            needed += weight_bytes(model) if artifact.kind == "export" else reference_bytes(model, workload, text)
        room = self.store.free_bytes()
        if room is not None and room < needed:
            raise WorkError(
                f"store {self.store.uri} has {room / 1e9:.1f} GB of room, the sweep needs {needed / 1e9:.1f} GB: "
                "free some (`python -m llama_bench clean`) or name another with --store"
            )

    def _started(self, label: str) -> None:
        self.on_event(Event("build", label, "started"))

    def _built_elsewhere(self, label: str, holder: Driver) -> None:
        self.on_event(Event("note", label, detail=f"being built by another driver ({holder}): waiting for it"))

    def _failed_before(self) -> dict[str, str]:
        """Artifact id → message of the builds that failed in this run and are not to be tried again."""
        if self.retry_failed:
            return {}
        rows = results.scan(self.store.url(self.outcome.run))["failures"].collect().to_dicts()
        return {row["artifact"]: row["message"] for row in rows if row["stage"] == "build"}

    def _record(self, end: Built, cells: Iterable[Cell]) -> None:
        """Write one row of `failures` for each arm that cannot be built for want of this artifact."""
        if end.state == "known":
            self.outcome.failures.append(f"{end.error} (failed before; --retry-failed tries again)")
            return
        if end.state == "failed":
            self.outcome.failures.append(str(end.error))
        rows = [
            {**where(cell), "recipe": arm.name, "stage": "build", "artifact": end.id, "kind": end.state,
             "message": end.error, "at": datetime.now(UTC)}
            for cell in cells
            for arm in cell.arms
            if end.id in (arm.variant, cell.reference)
        ]  # fmt: skip
        attempt = len(results.finished(self.store, self.outcome.run)["failures"])
        rows = rows or [
            {"stage": "build", "artifact": end.id, "kind": end.state, "message": end.error, "at": datetime.now(UTC)}
        ]
        results.write_part(self.store, self.outcome.run, "failures", f"build-{end.id}-{attempt}", rows)

    # ── measure ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def measure(
        self,
        cells: Iterable[Cell],
        broken: Mapping[str, str],
        nodes: Iterable[Node],
        facts: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Measure every cell that is not finished: one at a time on a node, nodes side by side."""
        waiting = []
        for cell in cells:
            whole = replace(cell, arms=tuple(arm for arm in cell.arms if arm.variant not in broken))
            if self._finished(cell):
                self.outcome.reused += 1
                self.on_event(Event("cell", cell.label, "reused"))
            elif cell.reference in broken or cell.baseline not in {arm.name for arm in whole.arms}:
                self.on_event(Event("cell", cell.label, "failed", detail="its baseline could not be built"))
            else:
                waiting.append(whole)
        measure, outcome = self.plan.sweep.measure, self.outcome
        measuring = Measuring(self.store, measure, outcome, self.claims, self.retry_failed, self.on_event)
        measuring.run(waiting, nodes, facts)

    def _finished(self, cell: Cell) -> bool:
        """Whether the cell's parts are folded, which is done last (and nothing of it is to be tried again)."""
        if cell.id not in self._pieces:
            return False
        return not (self.retry_failed and cell.id in self._cells_with_failures)

    @property
    def _pieces(self) -> set[str]:
        if not hasattr(self, "_pieces_once"):
            self._pieces_once = results.finished(self.store, self.outcome.run)["pieces"]
        return self._pieces_once

    @property
    def _cells_with_failures(self) -> set[str]:
        rows = results.scan(self.store.url(self.outcome.run))["failures"].select("cell").collect()
        return set(rows["cell"].to_list())
