"""Measuring: one coordinator a cell, each inside a placement group that holds its node; nodes side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from llama_bench import parts, results
from llama_bench.claims import Claims
from llama_bench.cluster.actors import SHARE, Actors
from llama_bench.cluster.assign import ELSEWHERE
from llama_bench.cluster.autoscaler import Asked, Need, need
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.connect import Node
from llama_bench.cluster.events import Event, OnEvent, RunResult
from llama_bench.cluster.failures import Failures
from llama_bench.cluster.fleet import BRING_S, LOOK_S, Fleet
from llama_bench.cluster.job import NODE_MEMORY_SHARE, Job, spared
from llama_bench.cluster.waiting import Waiting
from llama_bench.errors import LlamaBenchError
from llama_bench.plan import Cell
from llama_bench.stats.progress import ONE_RESTART
from llama_bench.store import Store
from llama_bench.sweep import Target

CEILINGS = "LLAMA_BENCH_CEILINGS"
"""Environment variable: at 0 the ceilings of nodes are not measured, which takes some seconds a run and target."""

HOLD_S = 120.0
"""A node that somebody else holds for longer is a failure, not an endless wait."""


@dataclass(slots=True)
class _Place:
    """A node that is held for one cell after the other: what holds it, and the cell that runs or is to run."""

    node: Node
    target: Target
    group: PlacementGroup
    since: float
    cell: Cell
    stream: Any = None
    failed: bool = False


class Measuring:
    """Measures the cells that are added: one at a time on a node, nodes side by side.

    Call `fill`, wait for one of `references`, give it to `take`, until `left` is False; `outcome` collects what came
    of the cells. Cells that another driver measures are left to it, and named in the outcome.
    """

    def __init__(
        self,
        store: Store,
        outcome: RunResult,
        claims: Claims,
        fleet: Fleet,
        failures: Failures,
        *,
        retry_failed: bool,
        on_event: OnEvent,
    ) -> None:
        self.store, self.outcome, self.claims = store, outcome, claims
        self.fleet, self.failures = fleet, failures
        self.retry_failed, self.on_event = retry_failed, on_event
        self._waiting = Waiting(fleet, self._begun_before)
        self._places: dict[str, _Place] = {}  # node id → where it is held for a cell
        self._asked = Asked(fleet.types)
        self._asked_since: dict[Need, float] = {}
        self._stale, self._filled_at = True, 0.0

    def add(self, cell: Cell) -> None:
        """Take in a cell of which all that it needs is built."""
        self._waiting.add(cell)
        self._stale = True

    @property
    def left(self) -> bool:
        """Whether any cell is being measured or waits for it."""
        return bool(self._waiting.cells or self._places)

    @property
    def references(self) -> list[Any]:
        """What Ray is to be asked about: the streams of the coordinators."""
        return [place.stream for place in self._places.values() if place.stream is not None]

    @property
    def holds(self) -> bool:
        """Whether a node is asked for that is not free yet."""
        return any(place.stream is None for place in self._places.values())

    def fill(self, *, building: bool) -> None:
        """Give idle nodes their next cell; while `building`, those that build stay free for it.

        Nodes that are missing are asked for where an autoscaler can bring them.
        """
        for place in [place for place in self._places.values() if place.stream is None]:
            self._try_hold(place)
        if not self._stale and time.monotonic() - self._filled_at < LOOK_S:
            return
        self._stale, self._filled_at = False, time.monotonic()
        for node, strangest in self._waiting.turns(lambda node: not (building and node.builds)):
            if node.id not in self._places:
                self._occupy(node, strangest)
        self._drop_unserved()
        self._ask()

    def take(self, reference: Any) -> None:
        """Pass on what a coordinator tells; when it has ended, its node takes the next cell."""
        place = next(place for place in self._places.values() if place.stream is reference)
        cell = place.cell
        try:
            event = Event(**ray.get(next(reference)))
        except StopIteration:
            failed = place.failed
            self.outcome.measured += not failed
            self._go_on(place)
            self.on_event(Event("cell", cell.label, "failed" if failed else "finished"))
        except RayError as error:
            self._let_go(place)
            self._lost(cell, place.node, error)
        else:
            if event.kind == "restart":
                self._waiting.went_on(cell)
                place.failed = False
            if event.kind == "failure":
                self.outcome.failures.append(f"{event.label}: {event.detail}")
                place.failed |= event.label == cell.label  # of no arm: unless a restart follows, nothing was measured
            self.on_event(event)

    def close(self) -> None:
        """Stop what is under way, and hold and ask for nothing any more."""
        self._asked.close()
        for place in self._places.values():
            if place.stream is not None:
                ray.cancel(place.stream, force=True)
            remove_placement_group(place.group)

    # ── nodes and cells ──────────────────────────────────────────────────────────────────────────────────────────────

    def _occupy(self, node: Node, strangest: int) -> None:
        """Hold `node` for the next cell that it may measure, and begin as soon as it is free."""
        cell = self._next_for(node, strangest)
        if cell is None:
            return
        self._asked.arrived(node)
        place = _Place(node, cell.target, _hold(node, cell.target), time.monotonic(), cell)
        self._places[node.id] = place
        self._try_hold(place)

    def _try_hold(self, place: _Place) -> None:
        """Begin the cell if the node is free by now; let go when the node is lost, or held by others for too long."""
        if place.group.wait(0):
            self._start(place)
        elif place.node not in self.fleet.nodes:
            self._let_go(place)
            self._wait_again(place.cell)
        elif time.monotonic() - place.since > HOLD_S and not self.claims.others():
            # another driver of this run may measure there as long as it takes
            self._let_go(place)
            address = place.node.address
            why = f"{address} was not free within {HOLD_S:.0f} s: other work on Ray holds its CPUs or memory"
            self._failed(place.cell, "busy", why)

    def _start(self, place: _Place) -> None:
        node, cell = place.node, place.cell
        job = Job(
            cell,
            cell.measure,
            self.store.uri,
            self.outcome.run,
            node.id,
            self.fleet.facts[node.id],
            _memory(node),
            self.retry_failed,
            ceilings=os.environ.get(CEILINGS, "") != "0",
            elsewhere=self._waiting.elsewhere(cell, node),
        )
        strategy = PlacementGroupSchedulingStrategy(place.group, 0, placement_group_capture_child_tasks=True)
        task = ray.remote(num_cpus=SHARE, max_retries=0, num_returns="streaming")(_coordinate)
        place.failed = False
        place.stream = task.options(scheduling_strategy=strategy, name=cell.label).remote(job)

    def _go_on(self, place: _Place) -> None:
        """Take the next cell on a node whose cell has ended; the node stays held where that needs the same of it."""
        self.claims.release([place.cell.id])
        cell = self._next_for(place.node) if place.node in self.fleet.nodes else None
        if cell is not None and cell.target == place.target:
            place.cell = cell
            self._start(place)
            return
        self._let_go(place)
        if cell is not None:
            self.claims.release([cell.id])
            self._wait_again(cell)

    def _let_go(self, place: _Place) -> None:
        """Give the node back, and its cell."""
        remove_placement_group(place.group)
        del self._places[place.node.id]
        self.claims.release([place.cell.id])
        self._stale = True

    def _next_for(self, node: Node, strangest: int = ELSEWHERE) -> Cell | None:
        """Take the next cell that `node` may measure and nobody else has out of those that wait."""
        for cell in self._waiting.candidates(node, strangest):
            self._waiting.remove(cell)
            holder = self.claims.take(cell.id)
            self.failures.inherited(cell)
            if holder is not None:
                self.outcome.held[cell.label] = str(holder)
                self.on_event(Event("cell", cell.label, "held", detail=f"by {holder}"))
            elif not self.retry_failed and parts.has_part(self.store, self.outcome.run, "pieces", cell.id):
                # finished by another driver since this one looked
                self.claims.release([cell.id])
                self.outcome.reused += 1
                self.on_event(Event("cell", cell.label, "reused"))
            else:
                self._waiting.begun(cell, node)
                return cell
        return None

    def _begun_before(self) -> dict[str, str]:
        """Return cell → hardware of the restarts that earlier drivers of the run left."""
        rows = results.scan(self.store.url(self.outcome.run))["machines"].select("cell", "hardware").collect()
        return dict(rows.iter_rows())

    def _wait_again(self, cell: Cell) -> None:
        self._waiting.again(cell)
        self._stale = True

    # ── what is missing ──────────────────────────────────────────────────────────────────────────────────────────────

    def _drop_unserved(self) -> None:
        """Give up the cells whose last node was lost and has not come back, or was asked for and has not come."""
        for cell in list(self._waiting.cells):
            asked = self._asked_since.get(need(cell.target))
            if self.fleet.has_lost(cell.target):
                why = f"no node offers {cell.target.tag} any more: the last one was lost"
            elif asked is not None and time.monotonic() - asked > BRING_S and not self.fleet.serving(cell.target):
                why = f"no node with {cell.target.tag} came within {BRING_S / 60:.0f} min of being asked for"
            else:
                continue
            self._waiting.remove(cell)
            self._failed(cell, "unserved", why)

    def _ask(self) -> None:
        """Ask for a node for each family that waits without one: its cells go together, since sizes are compared."""
        wanted = {}
        for key, (target, families) in self._waiting.homeless().items():
            room = self._asked.can_bring(target) - len(self.fleet.serving(target))
            wanted[key] = max(0, min(families, room))
            if wanted[key] and key not in self._asked_since:
                nodes = f"{wanted[key]} node{'s' if wanted[key] > 1 else ''}"
                self.on_event(Event("note", "autoscaler", detail=f"asked for {nodes} with {target.tag}"))
                self._asked_since[key] = time.monotonic()
        self._asked.ask(wanted)

    # ── failures ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lost(self, cell: Cell, node: Node, error: RayError) -> None:
        """Write the row of a coordinator that ended early; it gets another try, from its parts, where that may help."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        message = f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:500]
        again = self._waiting.lost(cell, node)
        # killed, or without its store for a moment; any other exception of our own would come again
        may_help = not isinstance(error, RayTaskError) or isinstance(cause, (LlamaBenchError, OSError))
        if not (may_help and again):
            self._failed(cell, type(cause).__name__, message)
            return
        self.failures.write(cell, kind=ONE_RESTART, message=message, node=node.id)
        self._wait_again(cell)
        self.on_event(Event("note", cell.label, detail=f"its coordinator was lost, trying again: {message}"))

    def _failed(self, cell: Cell, kind: str, message: str) -> None:
        self.failures.write(cell, kind=kind, message=message)
        self.outcome.failures.append(f"{cell.label}: {message}")
        self.on_event(Event("failure", cell.label, detail=message))
        self.on_event(Event("cell", cell.label, "failed"))


def _coordinate(job: Job) -> Iterator[dict[str, Any]]:
    """The coordinator's task: measures its cell with actors inside its own placement group."""
    yield from spared(measure_cell(job, Actors(job.environment, job.cell.target.needs_gpu)))


def _hold(node: Node, target: Target) -> PlacementGroup:
    """Hold the node's CPUs and memory, one unit of the target's tag, and its GPU where the target wants one."""
    bundle = {"CPU": node.resources["CPU"], "memory": float(_memory(node)), target.tag: 1.0}
    bundle |= {"GPU": 1.0} if target.needs_gpu else {}
    pinned = [{"ray.io/node-id": node.id}]
    group: PlacementGroup = placement_group([bundle], strategy="STRICT_PACK", bundle_label_selector=pinned)
    return group


def _memory(node: Node) -> int:
    """Bytes of the node's memory that the arms of a cell may take together."""
    return int(NODE_MEMORY_SHARE * node.resources.get("memory", 0.0))
