"""The driver of a run: build what is missing, then measure cell by cell, and tell the watcher what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llama_bench import plan as planning
from llama_bench import results, versions
from llama_bench.bench import machine
from llama_bench.cluster import connect
from llama_bench.cluster.build import Built, build_all, closure
from llama_bench.cluster.cell import SHARE, Job, measure_cell
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event
from llama_bench.cluster.identity import Identity, find_or_start
from llama_bench.cluster.rows import where
from llama_bench.errors import WorkError
from llama_bench.plan import Cell, Plan
from llama_bench.store import Store
from llama_bench.sweep import Sweep
from llama_bench.sweep_file import select

HOLD_S = 120.0  # a node that somebody else holds for longer is a failure, not an endless wait
NODE_MEMORY_SHARE = 0.9  # of a node's memory for the arms of a cell: the coordinator and Ray need the rest

OnEvent = Callable[[Event], None]


@dataclass(slots=True)
class RunResult:
    """How a run ended: `<sweep>/<run id>`, seconds by stage, cells measured and found finished, what failed."""

    run: str
    breakdown: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    reused: int = 0
    failures: list[str] = field(default_factory=list)
    unserved: dict[str, str] = field(default_factory=dict)


def run(
    sweep: Sweep,
    store: Store,
    *,
    only: str | None = None,
    retry_failed: bool = False,
    on_event: OnEvent = lambda event: None,
) -> RunResult:
    """Build and measure `sweep` into `store`, going on where an earlier call with the same fingerprint stopped.

    `only` limits what is built and measured now (see :func:`llama_bench.sweep_file.select`). Raises InputError for a
    wrong `only`, WorkError when Ray cannot be reached or the store cannot take the results.
    """
    seconds = _Stages()
    chosen = select(sweep, only) if only else sweep
    whole = sweep.model_copy(update={"recipes": chosen.recipes})
    with seconds("plan"):
        plan = planning.make(whole, versions.stages())
        cells = [cell for cell in plan.cells if _is_chosen(cell, chosen)]
    with seconds("connect"):
        started_here = connect.connect()
        nodes = connect.nodes()
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
    on_event(Event("note", "run", detail=f"{store.url(found.run)} ({found.why})"))
    outcome = RunResult(found.run, unserved={name: why for name, why in unserved.items() if name in chosen.targets})
    for name, why in outcome.unserved.items():
        on_event(Event("unserved", name, detail=why))
    for node in serving:
        for doubt in machine.doubts(facts[node.id]):
            on_event(Event("doubt", node.address, detail=doubt))
    served = [cell for cell in cells if cell.target_name not in unserved]
    driver = _Driver(store, plan, outcome, retry_failed, on_event)
    try:
        with seconds("build"):
            broken = driver.build(served, nodes)
        with seconds("measure"):
            driver.measure(served, broken, serving, facts)
    finally:
        if started_here:
            ray.shutdown()
    outcome.breakdown = {**seconds.spent, **_measuring(store, outcome.run, seconds.spent.pop("measure"))}
    return outcome


def _is_chosen(cell: Cell, chosen: Sweep) -> bool:
    return (
        cell.target_name in chosen.targets
        and cell.workload_name in chosen.workloads
        and any(cell.model == model for model in chosen.models)
    )


def _measuring(store: Store, run: str, wall_s: float) -> dict[str, float]:
    """Split the seconds of this call's measuring as the run's pieces were spent, by stage."""
    import polars as pl

    pieces = results.scan(store.url(run))["pieces"].filter(pl.col("kind") != "build").collect()
    columns = ("start_s", "load_s", "warmup_s", "washout_s", "timed_s")
    spent = {column: float(pieces[column].sum() or 0.0) for column in columns}
    total = float(pieces["wall_s"].sum() or 0.0)
    scale = wall_s / total if total else 0.0
    shares = {column.removesuffix("_s"): value * scale for column, value in spent.items()}
    return {**shares, "measuring, other": wall_s - sum(shares.values())}


class _Driver:
    """The two halves of a run, and what they share."""

    def __init__(self, store: Store, plan: Plan, outcome: RunResult, retry_failed: bool, on_event: OnEvent) -> None:
        self.store, self.plan, self.outcome = store, plan, outcome
        self.retry_failed, self.on_event = retry_failed, on_event

    # ── build ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def build(self, cells: Iterable[Cell], nodes: Iterable[Node]) -> dict[str, str]:
        """Build all that `cells` need; return artifact id → why it is missing."""
        todo = [cell for cell in cells if not self._finished(cell)]
        wanted = dict.fromkeys(name for cell in todo for name in (cell.reference, *(arm.variant for arm in cell.arms)))
        total = len(closure(self.plan, wanted))
        self.on_event(Event("builds", "artifacts", total=total))
        broken: dict[str, str] = {}
        ends = build_all(self.plan, wanted, self.store, self.outcome.run, nodes, self._failed_before(), self._started)
        for done, end in enumerate(ends, 1):
            label = self.plan.artifacts[end.id].label
            detail = end.error or ""
            self.on_event(Event("build", label, end.state, done, total, end.seconds, detail))
            if end.error is not None:
                broken[end.id] = end.error
                self._record(end, todo)
        return broken

    def _started(self, label: str) -> None:
        self.on_event(Event("build", label, "started"))

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
        rows = rows or [{"stage": "build", "artifact": end.id, "kind": end.state, "message": end.error}]
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
        idle = list(nodes)
        running: dict[Any, tuple[Cell, Node, PlacementGroup]] = {}
        try:
            while waiting or running:
                for node in list(idle):
                    fitting = next((cell for cell in waiting if node.serves(cell.target)), None)
                    if fitting is not None:
                        waiting.remove(fitting)
                        idle.remove(node)
                        group = self._hold(node, fitting)
                        running[self._start(fitting, node, group, facts[node.id])] = (fitting, node, group)
                [ready], _ = ray.wait(list(running), num_returns=1)
                cell, node, group = running[ready]
                if not self._next_event(ready, cell):
                    del running[ready]
                    remove_placement_group(group)
                    idle.append(node)
        finally:
            for generator, (_, _, group) in running.items():
                ray.cancel(generator, force=True)
                remove_placement_group(group)

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

    def _hold(self, node: Node, cell: Cell) -> PlacementGroup:
        """Hold all of the node's CPUs, one unit of the cell's tag, and its GPU where the target wants one."""
        bundle = {"CPU": node.resources["CPU"], cell.target.tag: 1.0} | ({"GPU": 1.0} if cell.target.needs_gpu else {})
        pinned = [{"ray.io/node-id": node.id}]
        group: PlacementGroup = placement_group([bundle], strategy="STRICT_PACK", bundle_label_selector=pinned)
        if not group.wait(HOLD_S):
            remove_placement_group(group)
            raise WorkError(f"{node.address} was not free within {HOLD_S:.0f} s: other work on Ray holds its CPUs")
        return group

    def _start(self, cell: Cell, node: Node, group: PlacementGroup, facts: Mapping[str, Any]) -> Any:
        memory = int(NODE_MEMORY_SHARE * node.resources.get("memory", facts["memory_bytes"]))
        job = Job(
            cell, self.plan.sweep.measure, self.store.uri, self.outcome.run, node.id, facts, memory, self.retry_failed
        )
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        task = ray.remote(num_cpus=SHARE, max_retries=0, num_returns="streaming")(measure_cell)
        return task.options(scheduling_strategy=strategy, name=cell.label).remote(job)

    def _next_event(self, generator: Any, cell: Cell) -> bool:
        """Pass the coordinator's next event on; False when it has ended."""
        try:
            event = Event(**ray.get(next(generator)))
        except StopIteration:
            self.outcome.measured += 1
            self.on_event(Event("cell", cell.label, "finished"))
            return False
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            message = f"{cell.label}: {type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
            self.outcome.failures.append(message)
            row = {**where(cell), "stage": "measure", "kind": type(cause).__name__, "message": message}
            attempt = len(results.finished(self.store, self.outcome.run)["failures"])
            row["at"] = datetime.now(UTC)
            results.write_part(self.store, self.outcome.run, "failures", f"{cell.id}-c{attempt:04d}", [row])
            self.on_event(Event("failure", cell.label, detail=message))
            self.on_event(Event("cell", cell.label, "failed"))
            return False
        if event.kind == "failure":
            self.outcome.failures.append(f"{event.label}: {event.detail}")
        self.on_event(event)
        return True


class _Stages:
    """Seconds by stage of this call."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - begin
