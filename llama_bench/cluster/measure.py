"""Measuring: one coordinator a cell, each inside a placement group that holds its node; nodes side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llama_bench import results
from llama_bench.bench import machine
from llama_bench.claims import Claims
from llama_bench.cluster import connect
from llama_bench.cluster.actors import SHARE, Actors
from llama_bench.cluster.assign import Family, family, order
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event, OnEvent, RunResult
from llama_bench.cluster.job import NODE_MEMORY_SHARE, Job
from llama_bench.cluster.rows import where
from llama_bench.errors import WorkError
from llama_bench.plan import Cell
from llama_bench.stats.progress import ONE_RESTART
from llama_bench.store import Store
from llama_bench.sweep import Measure

CELL_TRIES = 3  # a coordinator that was killed (out of memory, a lost node) goes on from its parts so often
LOOK_S = 2.0  # how often it is looked whether a node that is waited for still lives
HOLD_S = 120.0  # a node that somebody else holds for longer is a failure, not an endless wait


class Measuring:
    """Measures cells until none is left; `outcome` collects what came of them."""

    def __init__(
        self, store: Store, measure: Measure, outcome: RunResult, claims: Claims, retry_failed: bool, on_event: OnEvent
    ) -> None:
        self.store, self.measure, self.outcome, self.claims = store, measure, outcome, claims
        self.retry_failed, self.on_event = retry_failed, on_event
        self.waiting: list[Cell] = []
        self.homes: dict[Family, str] = {}
        self.begun: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.hardware: dict[str, str] = {}
        self.tries: Counter[str] = Counter()

    def run(self, cells: Iterable[Cell], nodes: Iterable[Node], facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Measure `cells`, each on a node that serves its target: one at a time on a node, nodes side by side.

        Cells that another driver measures are left to it, and named in the outcome.
        """
        self.waiting.extend(cells)
        self.nodes = list(nodes)
        idle = [*self.nodes]
        self.hardware = {node.id: machine.fingerprint(dict(facts[node.id])) for node in idle}
        self.begun = self._begun()
        running: dict[Any, tuple[Cell, Node, PlacementGroup]] = {}
        try:
            while True:
                for node in list(idle):
                    while node in idle and (fitting := self._take_for(node)) is not None:
                        group = self._hold(node, fitting)
                        if group is not None:
                            idle.remove(node)
                            running[self._start(fitting, node, group, facts[node.id])] = (fitting, node, group)
                            break
                        self.claims.release([fitting.id])
                        if node not in self.nodes:
                            idle.remove(node)
                if not running:
                    return
                cell, node, group = self._watch(running)
                remove_placement_group(group)
                self.claims.release([cell.id])
                idle += [node] if self._lives(node) else []
        finally:
            for generator, (_, _, group) in running.items():
                ray.cancel(generator, force=True)
                remove_placement_group(group)

    def _watch(self, running: dict[Any, tuple[Cell, Node, PlacementGroup]]) -> tuple[Cell, Node, PlacementGroup]:
        """Pass on what the coordinators tell until one of them has ended; take it out and return it."""
        while True:
            [ready], _ = ray.wait(list(running), num_returns=1)
            if not self._next_event(ready, running[ready][0]):
                return running.pop(ready)

    def _take_for(self, node: Node) -> Cell | None:
        """Take the next cell that `node` serves and nobody else has out of those that wait; None when there is none."""
        for cell in order(self.waiting, node, self.nodes, self.homes, self.begun, self.hardware):
            self.waiting.remove(cell)
            holder = self.claims.take(cell.id)
            if holder is not None:
                self.outcome.held[cell.label] = str(holder)
                self.on_event(Event("cell", cell.label, "held", detail=f"by {holder}"))
            elif not self.retry_failed and results.has_part(self.store, self.outcome.run, "pieces", cell.id):
                # finished by another driver since this one looked
                self.claims.release([cell.id])
                self.outcome.reused += 1
                self.on_event(Event("cell", cell.label, "reused"))
            else:
                self.homes.setdefault(family(cell), node.id)
                self.begun.setdefault(cell.id, self.hardware[node.id])
                return cell
        return None

    def _lives(self, node: Node) -> bool:
        """Whether `node` still lives; the cells that no other one serves have failed if it does not."""
        if node.id in {living.id for living in connect.nodes()}:
            return True
        self.nodes.remove(node)
        self.on_event(Event("note", node.address, detail="this node was lost"))
        for cell in [cell for cell in self.waiting if not any(left.serves(cell.target) for left in self.nodes)]:
            self.waiting.remove(cell)
            self._failed(
                cell, "unserved", f"no node offers {cell.target.tag} any more: {node.address} was the last one"
            )
        return False

    def _begun(self) -> dict[str, str]:
        """Return cell → machine of the restarts that earlier drivers left; not looked at where all nodes are alike."""
        if len(set(self.hardware.values())) < 2:
            return {}
        rows = results.scan(self.store.url(self.outcome.run))["machines"].select("cell", "hardware").collect()
        return dict(rows.iter_rows())

    def _hold(self, node: Node, cell: Cell) -> PlacementGroup | None:
        """Hold the node's CPUs and memory, one unit of the cell's tag, and its GPU where the target wants one.

        None when the node is lost, then the cell waits again; or, with a row of `failures`, when other work on Ray
        holds the node for too long.
        """
        bundle = {"CPU": node.resources["CPU"], "memory": float(_memory(node)), cell.target.tag: 1.0}
        bundle |= {"GPU": 1.0} if cell.target.needs_gpu else {}
        pinned = [{"ray.io/node-id": node.id}]
        group: PlacementGroup = placement_group([bundle], strategy="STRICT_PACK", bundle_label_selector=pinned)
        begin = time.monotonic()
        while not group.wait(LOOK_S):
            lives = node.id in {living.id for living in connect.nodes()}
            if lives and (time.monotonic() - begin < HOLD_S or self.claims.others()):
                continue  # another driver of this run may measure there as long as it takes
            remove_placement_group(group)
            self.waiting.insert(0, cell)
            if self._lives(node):
                self.waiting.remove(cell)
                why = f"{node.address} was not free within {HOLD_S:.0f} s: other work on Ray holds its CPUs or memory"
                self._failed(cell, "busy", why)
            return None
        return group

    def _start(self, cell: Cell, node: Node, group: PlacementGroup, facts: Mapping[str, Any]) -> Any:
        run, memory = self.outcome.run, _memory(node)
        job = Job(cell, self.measure, self.store.uri, run, node.id, facts, memory, self.retry_failed)
        strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
        task = ray.remote(num_cpus=SHARE, max_retries=0, num_returns="streaming")(_coordinate)
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
            self._lost(cell, error)
            return False
        if event.kind == "failure":
            self.outcome.failures.append(f"{event.label}: {event.detail}")
        self.on_event(event)
        return True

    def _lost(self, cell: Cell, error: RayError) -> None:
        """Write the row of a coordinator that ended early; it gets another try, from its parts, where that may help."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        message = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:500]
        self.tries[cell.id] += 1
        # killed, or without its store for a moment; any other exception of our own would come again
        may_help = not isinstance(error, RayTaskError) or isinstance(cause, WorkError)
        if not may_help or self.tries[cell.id] >= CELL_TRIES:
            self._failed(cell, type(cause).__name__, message)
            return
        self._write_failure(cell, ONE_RESTART, message)
        self.waiting.insert(0, cell)
        self.on_event(Event("note", cell.label, detail=f"its coordinator was lost, trying again: {message}"))

    def _failed(self, cell: Cell, kind: str, message: str) -> None:
        self._write_failure(cell, kind, message)
        self.outcome.failures.append(f"{cell.label}: {message}")
        self.on_event(Event("failure", cell.label, detail=message))
        self.on_event(Event("cell", cell.label, "failed"))

    def _write_failure(self, cell: Cell, kind: str, message: str) -> None:
        row = {**where(cell), "stage": "measure", "kind": kind, "message": message, "at": datetime.now(UTC)}
        attempt = len(results.finished(self.store, self.outcome.run)["failures"])
        results.write_part(self.store, self.outcome.run, "failures", f"{cell.id}-c{attempt:04d}", [row])


def _coordinate(job: Job) -> Iterator[dict[str, Any]]:
    """The coordinator's task: measures its cell with actors inside its own placement group."""
    yield from measure_cell(job, Actors(job.environment, job.cell.target.needs_gpu))


def _memory(node: Node) -> int:
    """Bytes of the node's memory that the arms of a cell may take together."""
    return int(NODE_MEMORY_SHARE * node.resources.get("memory", 0.0))
