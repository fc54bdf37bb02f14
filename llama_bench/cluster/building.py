"""Building what a run needs: parents before children, every shared prefix once, tried again where that may help."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from llama_bench import parts
from llama_bench.claims import Claims, Driver
from llama_bench.cluster.build_task import OUT_OF_MEMORY, Fault, piece, submit
from llama_bench.cluster.connect import BUILDER, Node
from llama_bench.cluster.fleet import BRING_S, Fleet
from llama_bench.counts import model_bytes
from llama_bench.estimate import build_kind, build_memory
from llama_bench.model.weights import RESIDENT_BYTES
from llama_bench.plan import Artifact, Plan
from llama_bench.store import Store
from llama_bench.sweep import AnyModel
from llama_bench.sweep_own import model_of

POLL_S = 1.0
"""How often it is looked whether another driver has built what this one needs."""

BUILD_TRIES = 3
"""A build that was killed, or short of memory or room, is tried so often, on another builder where there is one."""

AHEAD = 2
"""Builds under way for each that the builders can run: one waits where one ends, the rest is left to other drivers."""

MEMORY_ERRORS = ("OutOfMemoryError", "WorkerCrashedError")
"""Errors of Ray that tell of too little memory; the kernel kills without a word, and that looks like a crash."""


@dataclass(frozen=True, slots=True)
class Built:
    """The end of one build: `error` is None, or why there is no artifact."""

    id: str
    state: str  # finished | reused | failed | skipped | known
    seconds: float = 0.0
    error: str | None = None


@dataclass(slots=True)
class _Try:
    """A build under way."""

    artifact: Artifact
    begin: float
    node: str | None = None


@dataclass(frozen=True, slots=True)
class Tell:
    """Whom the building tells of a start (a label), of a wait for another driver, and of a try that was lost."""

    started: Callable[[str], None] = lambda label: None
    elsewhere: Callable[[str, Driver], None] = lambda label, driver: None
    lost: Callable[[Artifact, str | None, str], None] = lambda artifact, node, message: None


@dataclass(slots=True)
class Building:
    """Builds what `wanted` (variant ids) needs and the store lacks.

    Call `start`, wait for one of `references`, give it to `take`, until `left` is False. An artifact that failed
    before (`known_failures`: id → message) is not tried again but `known`; what stands on a failed one is `skipped`
    with the parent's message. Memory that no builder has is a failure at once, not an endless wait. What another driver
    builds now is waited for, and built here should that driver fail or die.
    """

    plan: Plan
    wanted: Iterable[str]
    store: Store
    run: str
    known_failures: Mapping[str, str]
    claims: Claims
    fleet: Fleet
    tell: Tell = field(default_factory=Tell)
    needed: dict[str, Artifact] = field(init=False)
    _ready: deque[Artifact] = field(init=False)
    _children: dict[str, list[Artifact]] = field(init=False)
    _ends: dict[str, Built] = field(init=False, default_factory=dict)
    _running: dict[Any, _Try] = field(init=False, default_factory=dict)
    _elsewhere: dict[str, Artifact] = field(init=False, default_factory=dict)
    _told: set[str] = field(init=False, default_factory=set)
    _looked_at: float = field(init=False, default=0.0)
    _tries: Counter[str] = field(init=False, default_factory=Counter)
    _avoided: dict[str, set[str]] = field(init=False, default_factory=lambda: defaultdict(set))
    _memory: dict[str, int] = field(init=False, default_factory=dict)
    _half_done: set[str] = field(init=False)
    _without_builder: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.needed = closure(self.plan, self.wanted)
        self._ready = deque(artifact for artifact in self.needed.values() if artifact.parent is None)
        self._children = defaultdict(list)
        for artifact in self.needed.values():
            if artifact.parent is not None:
                self._children[artifact.parent].append(artifact)
        self._half_done = self._without_their_row()

    @property
    def left(self) -> bool:
        """Whether anything is still to be built."""
        return len(self._ends) < len(self.needed)

    @property
    def references(self) -> list[Any]:
        """What Ray is to be asked about: the streams of the builds under way."""
        return list(self._running)

    def start(self) -> Iterator[Built]:
        """Start what can be built now; yield the ends of what needs no building, or cannot be built."""
        if self._elsewhere and time.monotonic() - self._looked_at > POLL_S:
            self._looked_at = time.monotonic()
            self._ready.extend(self._elsewhere.values())
            self._elsewhere.clear()
        most = self.fleet.most_memory()
        if most is None and self.fleet.may_return(BUILDER):
            return
        yield from self._give_up_waiting()
        while self._ready and len(self._running) < self._at_most():
            artifact = self._ready.popleft()
            end = self._without_building(artifact, most)
            if end is None and (holder := self.claims.take(piece(artifact))) is not None:
                if artifact.id not in self._told:
                    self._told.add(artifact.id)
                    self.tell.elsewhere(artifact.label, holder)
                self._elsewhere[artifact.id] = artifact
                continue
            dead = self.claims.inherited.pop(piece(artifact), None)
            if dead is not None:
                self.tell.lost(artifact, None, f"its driver was lost: {dead}")
            if end is None and not self._is_half_done(artifact) and self.store.has(artifact.id):
                end = Built(artifact.id, "reused")  # another driver built it before we took it
            if end is None:
                self._submit(artifact, most or 0.0)
            else:
                yield self._ended(artifact, end)

    def take(self, reference: Any) -> Built | None:
        """Take in what a build under way tells; return its end, None while it goes on or is tried again."""
        under_way = self._running[reference]
        try:
            said = ray.get(next(reference))
        except (RayError, StopIteration) as error:
            kind = OUT_OF_MEMORY if type(error).__name__ in MEMORY_ERRORS else "lost"
            why = (str(error).strip().splitlines() or ["its task ended without a word"])[0]
            said = Fault(kind, f"{under_way.artifact.label}: {type(error).__name__}: {why}", True)
        if isinstance(said, str):
            under_way.node = said
            self.tell.started(under_way.artifact.label)
            return None
        del self._running[reference]
        artifact, seconds = under_way.artifact, time.perf_counter() - under_way.begin
        if said is None:
            return self._ended(artifact, Built(artifact.id, "finished", seconds))
        self._tries[artifact.id] += 1
        if not said.passing or self._tries[artifact.id] >= BUILD_TRIES:
            return self._ended(artifact, Built(artifact.id, "failed", seconds, said.message))
        self._again(under_way, said)
        return None

    def close(self) -> None:
        """End the builds under way."""
        for reference in self._running:
            ray.cancel(reference, force=True)

    def _give_up_waiting(self) -> Iterator[Built]:
        """Yield the ends of builds that wait for a builder which was asked for and does not come."""
        if not self._running or self.fleet.builders():
            self._without_builder = None
        elif self._without_builder is None:
            self._without_builder = time.monotonic()
        elif time.monotonic() - self._without_builder > BRING_S:
            self.close()
            waited, self._running = self._running, {}
            for one in waited.values():
                why = f"{one.artifact.label}: no node with {BUILDER} came within {BRING_S / 60:.0f} min"
                yield self._ended(one.artifact, Built(one.artifact.id, "failed", error=why))

    def _again(self, lost: _Try, fault: Fault) -> None:
        """Let a lost build be tried again: elsewhere where it can be, and with more memory where that was short."""
        artifact = lost.artifact
        self.tell.lost(artifact, lost.node, fault.message)
        if lost.node is not None:
            self._avoided[artifact.id].add(lost.node)
        if fault.kind == OUT_OF_MEMORY:
            self._memory[artifact.id] = 2 * self._memory_bytes(artifact)
        self._ready.append(artifact)

    def _submit(self, artifact: Artifact, most: float) -> None:
        memory = int(min(self._memory_bytes(artifact), most))
        builders = self.fleet.builders()
        place, large = self._place(artifact, builders), is_large(self.plan, artifact)
        stream = submit(artifact, self.store.uri, self.run, memory, builders, place, large=large)
        self._running[stream] = _Try(artifact, time.perf_counter())

    def _place(self, artifact: Artifact, builders: Iterable[Node]) -> Node | None:
        """Return where a lost build is tried again: on the largest builder that has not lost it; else anywhere."""
        avoided = self._avoided.get(artifact.id)
        others = [node for node in builders if avoided and node.id not in avoided]
        return max(others, key=lambda node: node.resources.get("memory", 0.0), default=None)

    def _at_most(self) -> float:
        """Return how many builds may be under way: what the builders can run that are there or can be brought."""
        here = sum(node.resources[BUILDER] for node in self.fleet.builders())
        come = sum(one.resources.get(BUILDER, 0.0) * one.most for one in self.fleet.types)
        return AHEAD * max(1.0, here, come)

    def _without_building(self, artifact: Artifact, most: float | None) -> Built | None:
        """Return how an artifact ends without being built: it is there, cannot be, or has failed; else None."""
        if not self._is_half_done(artifact) and self.store.has(artifact.id):
            return Built(artifact.id, "reused")
        parent = self._ends.get(artifact.parent or "")
        if parent is not None and parent.error is not None:
            return Built(artifact.id, "skipped", error=parent.error)
        if artifact.id in self.known_failures:
            return Built(artifact.id, "known", error=self.known_failures[artifact.id])
        if most is None:
            return Built(artifact.id, "failed", error=f"{artifact.label}: no node offers {BUILDER}")
        if (memory := memory_bytes(self.plan, artifact)) > most:
            need = f"needs {memory / 1e9:.1f} GB of memory, the largest builder has {most / 1e9:.1f} GB"
            return Built(artifact.id, "failed", error=f"{artifact.label}: {need}")
        return None

    def _ended(self, artifact: Artifact, end: Built) -> Built:
        self.claims.release([piece(artifact)])
        self._ends[artifact.id] = end
        self._ready.extendleft(reversed(self._children[artifact.id]))
        return end

    def _is_half_done(self, artifact: Artifact) -> bool:
        """Whether a try of the build was lost, maybe when only the row in `pieces` was missing."""
        return self._tries[artifact.id] > 0 or artifact.id in self._half_done

    def _without_their_row(self) -> set[str]:
        """Return the artifacts that a killed driver was building and that have no row in `pieces`."""
        if not (left := self.claims.left_behind()):
            return set()
        there = parts.stems_of(self.store, self.run, "pieces")
        return {a.id for a in self.needed.values() if piece(a) in left and piece(a) not in there}

    def _memory_bytes(self, artifact: Artifact) -> int:
        return self._memory.get(artifact.id) or memory_bytes(self.plan, artifact)


def closure(plan: Plan, wanted: Iterable[str]) -> dict[str, Artifact]:
    """Return the artifacts of `wanted` and all that they stand on, parents first."""
    needed: set[str] = set()
    for name in wanted:
        step: str | None = name
        while step is not None and step not in needed:
            needed.add(step)
            step = plan.artifacts[step].parent
    return {name: artifact for name, artifact in plan.artifacts.items() if name in needed}


def memory_bytes(plan: Plan, artifact: Artifact) -> int:
    """Estimate the peak memory of building `artifact`."""
    return build_memory(_model(plan, artifact), build_kind(artifact))


def is_large(plan: Plan, artifact: Artifact) -> bool:
    """Whether `artifact` is of a model so large that its bytes, not its graph, are what a build takes long for."""
    return model_bytes(_model(plan, artifact)) > RESIDENT_BYTES


def _model(plan: Plan, artifact: Artifact) -> AnyModel:
    """Return the model that `artifact` is made of in the end."""
    while artifact.parent is not None:
        artifact = plan.artifacts[artifact.parent]
    return model_of(artifact.spec["model"])
