"""Somebody who breaks a cluster of this machine, one fault after another, while a sweep runs on it."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psutil
from ray.cluster_utils import Cluster

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}
CPU: dict[str, Any] = {**SMALL, "num_cpus": 1, "resources": {"bench_cpu": 1}}
GPU: dict[str, Any] = {**SMALL, "num_cpus": 1, "num_gpus": 1, "resources": {"bench_gpu": 1}}

DIED = r"its process was lost"
LOST = r"(WorkerCrashed|NodeDied|ActorUnavailable|ActorDied|ObjectLost|OwnerDied|Rpc)\w*Error"

EVIDENCE = {
    "actor": DIED,
    "crash": DIED,
    "hang": r"did not answer within",
    "coordinator": LOST,
    "node": LOST,
    "raylet": LOST,
    "disk": r"no room left",
    "memory": r"(export|reference) .*(WorkerCrashed|OutOfMemory)Error",
    "store": r"Not a directory",
    "driver": r"its driver was lost: process {pid} ",
}
"""Kind of fault → what the message of its row in `failures` says."""

OF_AN_ARM = ("actor", "crash", "hang")
OF_A_COORDINATOR = ("coordinator", "node", "raylet", "disk")
OF_ALL = ("store", "driver")
"""Kinds that strike every cell at once."""

EVIDENCE_S = 90.0
"""How long a fault's row is waited for; one that leaves none is made again."""

OUTAGE_S = 20.0
"""How long the store is away at most: until somebody has noticed."""

BUILD_TRIES = 2
"""Times that a build may be killed: it is given up after one more."""


@dataclass
class Fault:
    """One that was made, and whose row is waited for."""

    kind: str
    cell: str
    words: str
    rows_before: int
    mend: Callable[[], None]
    since: float = field(default_factory=time.monotonic)


@dataclass
class Chaos:
    """A cluster, a driver on it, and somebody who breaks them: `wanted` are the kinds of the faults still to make.

    A cell is its label, as Ray shows it for the cell's coordinator.
    """

    cluster: Cluster
    folder: Path
    environment: Mapping[str, str]
    wanted: list[str]
    rng: random.Random
    whole_restarts: int
    counts: Counter[str] = field(default_factory=Counter)
    waiting: list[Fault] = field(default_factory=list)
    nodes: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)
    driver: subprocess.Popen[bytes] | None = None
    drivers: int = 0
    of_cells: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    lost_by_then: dict[str, tuple[int, int]] = field(default_factory=dict)
    seen: dict[Path, list[dict[str, Any]]] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    # ── the cluster and its driver ───────────────────────────────────────────────────────────────────────────────────

    def add_node(self, what: dict[str, Any]) -> None:
        """Start a bench node: of CPUs alone with an environment in which arms need none of their own."""
        os.environ["CUDA_VISIBLE_DEVICES"] = "0" if what.get("num_gpus") else ""  # which Ray believes
        self.nodes.append((self.cluster.add_node(wait=False, **what), what))

    def drive(self) -> None:
        """Start a driver, as a user would: the same command again."""
        command = [sys.executable, "-m", "llama_bench", "run", str(self.folder / "chaos.yaml")]
        command += ["--store", str(self.store), "--no-report", "--address", self.cluster.address]
        self.drivers += 1
        with self.log_file.open("wb") as log:
            self.driver = subprocess.Popen(command, env=dict(self.environment), stdout=log, stderr=subprocess.STDOUT)

    def done(self) -> bool:
        """Whether the run has ended; a driver that was lost, or found no store at its start, is started again."""
        assert self.driver is not None
        if self.driver.poll() is None:
            return False
        if self.driver.returncode == 0:
            return True
        assert self.driver.returncode < 0 or "Not a directory" in self.log(), self.log()
        assert self.drivers < 40, self.log()
        self.drive()
        return False

    @property
    def log_file(self) -> Path:
        return self.folder / f"driver{self.drivers}.log"

    def log(self) -> str:
        return self.log_file.read_text()[-3000:]

    # ── one look, and what it leads to ───────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Find the rows of the faults that were made, and make those that may come now."""
        self._settle()
        if any(fault.kind in OF_ALL for fault in self.waiting):
            return
        coordinators = self.coordinators()
        self._let_builds_die()
        if self._all_are_due():
            if coordinators and not self.waiting and max(map(self._lost_coordinators, coordinators)) < 2:
                kind = next(kind for kind in self.wanted if kind in OF_ALL)
                self.of_cells = 0
                self._make(kind, "", getattr(self, f"_{kind}"))
            return
        for cell, process in coordinators.items():
            if cell not in {fault.cell for fault in self.waiting}:
                self._strike(cell, process)

    def _settle(self) -> None:
        """Count the faults whose rows are there; those that left none are wanted again."""
        finished = self.restarts()
        for cell in finished:
            if finished[cell] > self.finished[cell]:
                self.lost_by_then[cell] = self._losses(cell)
        self.finished = finished
        for fault in list(self.waiting):
            there = self._count(fault.words, fault.cell) > fault.rows_before
            too_late = time.monotonic() - fault.since > EVIDENCE_S or finished[fault.cell] == self.whole_restarts
            if there or too_late:
                fault.mend()
                self.waiting.remove(fault)
                print(
                    f"{time.monotonic() - self.begin:5.0f} s  {fault.kind} {fault.cell}: "
                    f"{'told' if there else 'NOT told'} after {time.monotonic() - fault.since:.1f} s, "
                    f"{self.counts.total()} faults, {self.finished.total()} restarts",
                    flush=True,
                )
                if there:
                    self.counts[fault.kind] += 1
                else:
                    self.wanted.append(fault.kind)

    def _all_are_due(self) -> bool:
        """Whether it is the turn of a fault that strikes every cell: they are spread evenly over the others."""
        left = sum(kind in OF_ALL for kind in self.wanted)
        others = sum(kind not in (*OF_ALL, "memory") for kind in self.wanted)
        return left > 0 and self.of_cells * (left + 1) > others

    def _strike(self, cell: str, process: psutil.Process) -> None:
        """Make one of the wanted faults in a cell, unless one more could give it or an arm of it up."""
        arms, coordinators = self._lost_arms(cell), self._lost_coordinators(cell)
        kinds = [*(OF_AN_ARM if not arms else ()), *(OF_A_COORDINATOR if not coordinators else ())]
        for kind in dict.fromkeys(kind for kind in self.wanted if kind in kinds):
            if self._make(kind, cell, lambda kind=kind: getattr(self, f"_{kind}")(cell, process)):
                self.of_cells += 1
                return

    def _make(self, kind: str, cell: str, act: Callable[[], Callable[[], None] | None]) -> bool:
        """Make a fault; False when there was nothing to make it with."""
        assert self.driver is not None
        words = EVIDENCE[kind].format(pid=self.driver.pid)
        before = self._count(words, cell)
        mend = act()
        if mend is None:
            return False
        self.wanted.remove(kind)
        self.waiting.append(Fault(kind, cell, words, before, mend))
        return True

    # ── what is on disk ──────────────────────────────────────────────────────────────────────────────────────────────

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of `failures`."""
        for part in self.store.glob("chaos/*/failures/*.parquet"):
            if part not in self.seen:
                with suppress(OSError, pl.exceptions.PolarsError):
                    self.seen[part] = pl.read_parquet(part).to_dicts()
        return [row for rows in self.seen.values() for row in rows]

    def _count(self, words: str, cell: str) -> int:
        """Return how many rows, of a cell when one is named, say `words`."""
        rows = (row for row in self.rows() if not cell or _label(row) == cell)
        return sum(re.search(words, row["message"] or "") is not None for row in rows)

    def _losses(self, cell: str) -> tuple[int, int]:
        """Return how often a cell has lost an arm and its coordinator."""
        rows = [row for row in self.rows() if _label(row) == cell and row["stage"] != "driver"]
        arms = sum(row["restart"] is not None for row in rows)
        return arms, len(rows) - arms

    def _lost_arms(self, cell: str) -> int:
        return self._losses(cell)[0] - self.lost_by_then.get(cell, (0, 0))[0]

    def _lost_coordinators(self, cell: str) -> int:
        return self._losses(cell)[1] - self.lost_by_then.get(cell, (0, 0))[1]

    def restarts(self) -> Counter[str]:
        """Return cell → finished restarts; of one that is folded all."""
        found: Counter[str] = Counter()
        labels: dict[str, str] = {}
        for file in self.store.glob("chaos/*/run.json"):
            cells = json.loads(file.read_text())["cells"]
            labels = {cell["id"]: _label(cell) for cell in cells}
        for path in self.store.glob("chaos/*/pieces/*.parquet"):
            cell, _, rest = path.stem.partition("-")
            if cell in labels:
                found[labels[cell]] += self.whole_restarts if not rest else rest.startswith("r")
        return found

    # ── who can be struck ────────────────────────────────────────────────────────────────────────────────────────────

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the processes of this cluster whose title matches, in the order of their numbers."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if re.match(title, " ".join(process.info["cmdline"] or [])):
                with suppress(psutil.Error):
                    if process.environ().get("SIMULATED_STORE") == str(self.store):
                        found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def coordinators(self) -> dict[str, psutil.Process]:
        """Return cell → its coordinator's process."""
        found = {}
        for process in self.processes(r"ray::h\d+-a2-l1/"):
            with suppress(psutil.Error, IndexError):
                title = process.cmdline()[0].removeprefix("ray::").split()[0]
                found[title] = process
        return found

    def _raylet_of(self, process: psutil.Process) -> int | None:
        """Return the process id of the raylet of a bench node that a process belongs to."""
        raylets = {node.all_processes["raylet"][0].process.pid for node, _ in self.nodes}
        with suppress(psutil.Error):
            return next((parent.pid for parent in process.parents() if parent.pid in raylets), None)
        return None

    # ── faults: each returns what undoes it, or None when there was nothing to make it with ───────────────────────────

    def _actor(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        """Kill an arm of the coordinator's cell."""
        raylet = self._raylet_of(coordinator)
        arms = [arm for arm in self.processes("ray::Arm") if raylet and self._raylet_of(arm) == raylet]
        return _kill(self.rng.choice(arms)) if arms else None

    def _coordinator(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        return _kill(coordinator)

    def _crash(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        return self._order("crash", cell)

    def _hang(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        return self._order("hang", cell)

    def _order(self, word: str, cell: str) -> Callable[[], None]:
        """Leave an order for whoever runs next in a cell."""
        hidden, length, provider = re.findall(r"h(\d+)-a2-l1/of(\d+)/(\w{3})", cell)[0]
        order = self.folder / "orders" / f"{hidden}-{length}-{provider}.{word}"
        order.touch()
        return lambda: order.unlink(missing_ok=True)

    def _node(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        return self._lose(coordinator, lambda node: self.cluster.remove_node(node, allow_graceful=False))

    def _raylet(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        def kill(node: Any) -> None:
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

        return self._lose(coordinator, kill)

    def _lose(self, coordinator: psutil.Process, how: Callable[[Any], None]) -> Callable[[], None] | None:
        """Lose the coordinator's node; another one of its kind comes."""
        raylet = self._raylet_of(coordinator)
        for node, what in self.nodes:
            if node.all_processes["raylet"][0].process.pid == raylet:
                self.nodes.remove((node, what))
                how(node)
                self.add_node(what)
                return _nothing
        return None

    def _disk(self, cell: str, coordinator: psutil.Process) -> Callable[[], None] | None:
        """Let a coordinator find no room for what it writes, as a quota would, until it has noticed."""
        with suppress(psutil.Error):
            usual = coordinator.rlimit(psutil.RLIMIT_FSIZE)
            coordinator.rlimit(psutil.RLIMIT_FSIZE, (1, usual[1]))

            def mend() -> None:  # its process may be given other work
                with suppress(psutil.Error):
                    coordinator.rlimit(psutil.RLIMIT_FSIZE, usual)

            return mend
        return None

    def _driver(self) -> Callable[[], None]:
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        return _nothing

    def _store(self) -> Callable[[], None]:
        """Take the store away until somebody has noticed, as a file server does that is started again."""
        away, before = self.store.with_name("away"), self.coordinators()
        told = self._outages()
        self.store.rename(away)
        self.store.touch()
        until = time.monotonic() + OUTAGE_S
        while time.monotonic() < until and self._outages() == told:
            if any(not process.is_running() for process in before.values()):
                break
            time.sleep(0.2)
        self.store.unlink()
        away.rename(self.store)
        return _nothing

    def _outages(self) -> int:
        """How often the driver has said that the store is away: an earlier outage is no news."""
        return self.log_file.read_text().count(EVIDENCE["store"])

    def _let_builds_die(self) -> None:
        """Kill a build without a word, as the kernel does where memory is short."""
        if "memory" not in self.wanted or any(fault.kind == "memory" for fault in self.waiting):
            return
        for build in self.processes(r"ray::(export|reference) "):
            with suppress(psutil.Error):
                title = build.cmdline()[0]
                if self.killed[title] < BUILD_TRIES and self._make("memory", "", lambda one=build: _kill(one)):
                    self.killed[title] += 1
                    return


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['model']}/{row['workload']}/{row['target']}"


def _kill(process: psutil.Process) -> Callable[[], None] | None:
    with suppress(psutil.Error):
        process.kill()
        return _nothing
    return None


def _nothing() -> None:
    """Undo nothing."""
