"""A small sweep through faults of every kind: each piece is there once, nothing is torn, the tables are the same.

LLAMA_BENCH_FAULTS=10 makes it a hundred; without it the test is skipped, since it takes many minutes.
"""

from __future__ import annotations

import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from ray.cluster_utils import Cluster

import llama_bench
from llama_bench import engines, results, versions
from llama_bench import plan as planning
from llama_bench.bench import machine
from llama_bench.cluster.cell import measure_cell
from llama_bench.cluster.job import Job
from llama_bench.report import write_report
from llama_bench.store import Store
from llama_bench.sweep import Sweep

from ..simulated import sweep as recorded

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(2400)]


SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}
CPU: dict[str, Any] = {**SMALL, "num_cpus": 1, "resources": {"bench_cpu": 1}}
GPU: dict[str, Any] = {**SMALL, "num_cpus": 1, "num_gpus": 1, "resources": {"bench_gpu": 1}}

FAULTS = int(os.environ.get("LLAMA_BENCH_FAULTS", "0"))
"""Of each kind; ten of each take a quarter of an hour."""

SEED = 20

OUTAGE_S = 3.0
DEADLINE_S = 15.0
EVIDENCE_S = 45.0

DIED = r"its process was lost"
LOST = r"(WorkerCrashed|NodeDied|ActorUnavailable|ActorDied|ObjectLost|OwnerDied|Rpc)\w*Error"

EVIDENCE = {
    "actor": DIED,
    "crash": DIED,
    "hang": r"did not answer within",
    "coordinator": LOST,
    "node": LOST,
    "raylet": LOST,
    "driver": r"its driver was lost",
    "store": r"Not a directory",
    "disk": r"no room left",
    "memory": r"(export|reference) .*(WorkerCrashed|OutOfMemory)Error",
}
"""Kind of fault → what the message of its row in `failures` says."""

ROUND = (("actor", "crash", "hang"), ("coordinator", "node", "raylet", "disk"), ("store",), ("driver",))
"""Kinds that may follow each other without a finished restart between and give nothing up: an arm is lost once, a
coordinator once, and a new driver counts anew."""

EVERYWHERE = ("driver", "store")
"""Kinds that strike every cell at once."""


@dataclass
class Chaos:
    """A cluster, a driver on it, and somebody who breaks them."""

    cluster: Cluster
    folder: Path
    environment: dict[str, str]
    rng: random.Random = field(default_factory=lambda: random.Random(SEED))
    nodes: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    hurt: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    driver: subprocess.Popen[bytes] | None = None
    drivers: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def store(self) -> Path:
        return self.folder / "store"

    # ── the cluster and its driver ───────────────────────────────────────────────────────────────────────────────────

    def add_node(self, what: dict[str, Any]) -> None:
        self.nodes.append((self.cluster.add_node(**what), what))

    def drive(self) -> None:
        """Start a driver, as a user would: the same command again."""
        command = [sys.executable, "-m", "llama_bench", "run", str(self.folder / "chaos.yaml")]
        command += ["--store", str(self.store), "--no-report", "--address", self.cluster.address]
        self.drivers += 1
        with (self.folder / f"driver{self.drivers}.log").open("wb") as log:
            self.driver = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)

    def done(self) -> bool:
        """Whether the run has ended; a driver that was lost, or found no store at its start, is started again."""
        assert self.driver is not None
        if self.driver.poll() is None:
            return False
        if self.driver.returncode == 0:
            return True
        assert self.driver.returncode != 2, self.log()
        assert self.drivers < 5 + 3 * FAULTS, self.log()
        self.drive()
        return False

    def log(self) -> str:
        return (self.folder / f"driver{self.drivers}.log").read_text()[-3000:]

    def processes(self, title: str) -> list[psutil.Process]:
        """Return the processes of this cluster whose title matches."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if re.match(title, " ".join(process.info["cmdline"] or [])):
                with suppress(psutil.Error):
                    if process.environ().get("SIMULATED_STORE") == str(self.store):
                        found.append(process)
        return found

    def coordinators(self) -> list[psutil.Process]:
        return self.processes(r"ray::h\d+-a2-l1/")

    # ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def strike(self, wanted: list[str], kinds: tuple[str, ...]) -> None:
        """Let some of the `wanted` faults of these `kinds` happen, one a cell, and one to a build; take them out.

        Only those count whose rows are there in the end.
        """
        until = time.monotonic() + EVIDENCE_S
        while not self.coordinators() and time.monotonic() < until and not self.done():
            time.sleep(0.2)
        before, struck = self.rows(), list[str]()
        if "memory" in wanted and kinds != ("driver",) and self._memory():
            struck.append("memory")
        whole = sorted(self.coordinators(), key=lambda process: process.pid)
        self.rng.shuffle(whole)
        left = [kind for kind in wanted if kind in kinds]
        while whole and left:
            kind, coordinator = left.pop(0), whole.pop()
            if kind in EVERYWHERE:
                whole = []
                struck += [kind] * getattr(self, f"_{kind}")()
            else:
                struck += [kind] * getattr(self, f"_{kind}")(coordinator)
        until = time.monotonic() + EVIDENCE_S
        hits = Counter(EVIDENCE[kind] for kind in struck)
        while time.monotonic() < until and not self.done() and not hits <= self.rows() - before:
            time.sleep(0.3)
        seen = self.rows() - before
        for kind in struck:
            if seen[EVIDENCE[kind]] > 0:
                seen[EVIDENCE[kind]] -= 1
                self.counts[kind] += 1
                wanted.remove(kind)
        print(
            f"{time.monotonic() - self.began:.0f} s", struck, self.counts.total(), "left:", Counter(wanted), flush=True
        )

    def rows(self) -> Counter[str]:
        """Return how many rows of `failures` tell of each kind of fault, by the words of `EVIDENCE`."""
        found: Counter[str] = Counter()
        with suppress(OSError, pl.exceptions.PolarsError):
            for part in sorted(self.store.glob("chaos/*/failures/*.parquet")):
                for message in pl.read_parquet(part)["message"].to_list():
                    found.update(words for words in set(EVIDENCE.values()) if re.search(words, message or ""))
        return found

    def _actor(self, coordinator: psutil.Process) -> bool:
        """Kill an arm of the coordinator's cell."""
        raylet = self._raylet_of(coordinator)
        arms = [arm for arm in self.processes("ray::Arm") if raylet and self._raylet_of(arm) == raylet]
        return bool(arms) and self._kill(self.rng.choice(sorted(arms, key=lambda process: process.pid)))

    def _coordinator(self, coordinator: psutil.Process) -> bool:
        return self._kill(coordinator)

    def _kill(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            process.kill()
            return True
        return False

    def _crash(self, coordinator: psutil.Process) -> bool:
        return self._order("crash", coordinator)

    def _hang(self, coordinator: psutil.Process) -> bool:
        return self._order("hang", coordinator)

    def _order(self, word: str, coordinator: psutil.Process) -> bool:
        """Leave an order for whoever runs next in the coordinator's cell."""
        with suppress(psutil.Error):
            found = re.match(r"ray::h(\d+)-a2-l1/of(\d+)/(\w{3})", coordinator.cmdline()[0])
            if found is not None:
                (self.folder / "orders" / f"{'-'.join(found.groups())}.{word}").touch()
                return True
        return False

    def _raylet_of(self, process: psutil.Process) -> int | None:
        """Return the process id of the raylet of a bench node that a process belongs to."""
        raylets = {node.all_processes["raylet"][0].process.pid for node, _ in self.nodes}
        with suppress(psutil.Error):
            return next((parent.pid for parent in process.parents() if parent.pid in raylets), None)
        return None

    def _node(self, coordinator: psutil.Process) -> bool:
        return self._lose(coordinator, lambda node: self.cluster.remove_node(node, allow_graceful=False))

    def _raylet(self, coordinator: psutil.Process) -> bool:
        def kill(node: Any) -> None:
            os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

        return self._lose(coordinator, kill)

    def _lose(self, coordinator: psutil.Process, how: Callable[[Any], None]) -> bool:
        """Lose the coordinator's node; another one of its kind comes."""
        raylet = self._raylet_of(coordinator)
        for node, what in self.nodes:
            if node.all_processes["raylet"][0].process.pid == raylet:
                self.nodes.remove((node, what))
                how(node)
                self.add_node(what)
                return True
        return False

    def _driver(self) -> bool:
        assert self.driver is not None
        self.driver.kill()
        self.driver.wait()
        return True

    def _store(self) -> bool:
        """Take the store away for a while, as a file server does that is started again."""
        away = self.store.with_name("away")
        self.store.rename(away)
        self.store.touch()
        time.sleep(OUTAGE_S)
        self.store.unlink()
        away.rename(self.store)
        return True

    def _disk(self, coordinator: psutil.Process) -> bool:
        """Let a coordinator find no room for what it writes, as a quota would, until it has noticed."""
        words = EVIDENCE["disk"]
        before, until = self.rows()[words], time.monotonic() + EVIDENCE_S
        with suppress(psutil.Error):
            usual = coordinator.rlimit(psutil.RLIMIT_FSIZE)
            coordinator.rlimit(psutil.RLIMIT_FSIZE, (1, usual[1]))
            while self.rows()[words] == before and time.monotonic() < until and coordinator.is_running():
                time.sleep(0.1)
            coordinator.rlimit(psutil.RLIMIT_FSIZE, usual)
        return True

    def _memory(self) -> bool:
        """Kill a build without a word, as the kernel does where memory is short; each one once."""
        for build in self.processes(r"ray::(export|reference) "):
            with suppress(psutil.Error):
                title = build.cmdline()[0]
                if title in self.hurt:
                    continue
                self.hurt.add(title)
                build.kill()
                return True
        return False

    # ── between faults ───────────────────────────────────────────────────────────────────────────────────────────────

    def rest(self) -> None:
        """Wait until each cell that is being measured has finished a restart: a fault in a row too many gives it up."""
        begun = len(self.coordinators())
        before, until = self.restarts().total(), time.monotonic() + 90
        while time.monotonic() < until and not self.done():
            if self.restarts().total() >= before + max(1, begun):
                return
            time.sleep(0.3)

    def restarts(self) -> Counter[str]:
        """Return cell → finished restarts; of one that is folded all."""
        found: Counter[str] = Counter()
        for path in self.store.glob("chaos/*/pieces/*.parquet"):
            cell, _, rest = path.stem.partition("-")
            found[cell] = RESTARTS if not rest else found[cell] + rest.startswith("r")
        return found


RESTARTS = 4

SWEEP = recorded.simulated(
    recorded.SWEEP
    | {
        "models": recorded.SWEEP["models"][: 1 + min(FAULTS, 3)],
        "measure": recorded.SWEEP["measure"] | {"restarts": RESTARTS},
    }
)


def start(cluster: Cluster, folder: Path, environment: dict[str, str]) -> Chaos:
    chaos = Chaos(cluster, folder, environment)
    for what in (CPU, CPU, GPU):
        chaos.add_node(what)
    cluster.wait_for_nodes()
    chaos.drive()
    return chaos


def run_to_its_end(chaos: Chaos, limit_s: float) -> None:
    until = time.monotonic() + limit_s
    while not chaos.done():
        assert time.monotonic() < until, chaos.log()
        time.sleep(0.5)


@pytest.fixture
def chaos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chaos]:
    """A cluster in a folder of its own, whose processes have the simulated engine."""
    (tmp_path / "orders").mkdir()
    (tmp_path / "chaos.yaml").write_text(recorded.as_file(SWEEP))
    told = recorded.environment(
        tmp_path / "store",
        SIMULATED_ORDERS=str(tmp_path / "orders"),
        SIMULATED_DEADLINE_S=str(DEADLINE_S),
        CUDA_VISIBLE_DEVICES="0",  # which Ray believes
    )
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0})
    try:
        cluster.add_node(**SMALL, num_cpus=1, resources={"builder": 1})
        yield start(cluster, tmp_path, {**os.environ, **told})
    finally:
        cluster.shutdown()


class Here:
    """A launcher that starts no processes: each arm is an object of this one."""

    deadline_s = 0.0

    def start(self, make: Callable[[], Any], count: int) -> list[Any]:
        return [Answering(make()) for _ in range(count)]

    def once(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


@dataclass
class Answering:
    """An arm that answers as soon as it is called."""

    held: Any
    answer: Any = None

    def call(self, method: str, *arguments: Any) -> Answering:
        return Answering(self.held, getattr(self.held, method)(*arguments))

    def wait(self) -> Any:
        return self.answer

    def kill(self) -> None: ...


def undisturbed(chaos: Chaos, run: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Measure the cells of `run` again, without Ray and without faults, on the artifacts that it built."""
    store = folder / "store"
    shutil.copytree(chaos.store / "artifacts", store / "artifacts")
    shutil.copytree(chaos.store / "weights", store / "weights")
    (store / run).mkdir(parents=True)
    shutil.copy(chaos.store / run / "run.json", store / run)
    for key, value in recorded.environment(store).items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SIMULATED_ORDERS")
    monkeypatch.syspath_prepend(recorded.HERE)
    monkeypatch.setitem(engines.ENGINES, "simulated", engines.EngineInfo("simulated_engine", "", graph=False))
    simulated_engine = importlib.import_module("simulated_engine")
    monkeypatch.setattr("llama_bench.cluster.restart.Monitor", simulated_engine.Quiet)
    monkeypatch.setattr("llama_bench.bench.roofline.measure", simulated_engine.ceilings)
    planned = planning.make(Sweep.model_validate(SWEEP), versions.stages())
    facts = machine.facts()
    for cell in planned.cells:
        for _ in measure_cell(Job(cell, planned.sweep.measure, str(store), run, "here", facts, 10**12), Here()):
            pass
    return store


def tables(store: Path) -> dict[str, str]:
    """Return everything that is said of speed and accuracy: the views, and the report's tables of results."""
    frames = llama_bench.load(store / "chaos")
    found = {name: getattr(frames, name).collect() for name in ("speedups", "cells", "accuracy_by_arm")}
    text = {name: frame.write_csv() for name, frame in found.items()}
    write_report(str(store / "chaos"), store.parent / "report")
    page = (store.parent / "report" / "report.md").read_text()
    return {**text, "results": page.partition("## Results")[2].partition("\n## ")[0]}


@pytest.mark.skipif(FAULTS == 0, reason="$LLAMA_BENCH_FAULTS says how many faults of each kind")
def test_a_sweep_through_faults_of_every_kind_ends_like_an_undisturbed_one(
    chaos: Chaos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [kind for kind in EVIDENCE for _ in range(FAULTS)]
    chaos.rng.shuffle(wanted)
    while wanted and not chaos.done():
        for kinds in ROUND:
            chaos.strike(wanted, kinds)
        chaos.rest()
    run_to_its_end(chaos, 600)
    print(dict(chaos.counts), "drivers:", chaos.drivers)
    assert chaos.counts == dict.fromkeys(EVIDENCE, FAULTS), chaos.log()

    store = Store(chaos.store)
    [name] = results.runs(store, "chaos")
    run = f"chaos/{name}"
    frames, info = llama_bench.load(store.url(run)), results.read_run(store, run)
    restarts = frames.pieces.filter(kind="restart").collect()
    assert restarts.group_by("cell").len()["len"].to_list() == [RESTARTS] * len(info["cells"])
    assert restarts.height == restarts.select("cell", "restart").unique().height
    builds = frames.pieces.filter(kind="build").collect()["piece"].to_list()
    assert sorted(builds) == sorted(f"build-{artifact}" for artifact in info["artifacts"])
    assert all(store.has(artifact) for artifact in info["artifacts"])
    assert not [path for path in chaos.store.rglob("*#*") if ".cache" not in path.parts]  # nothing half written
    assert set(frames.failures.collect()["kind"]) == {"lost"}
    quiet = tables(undisturbed(chaos, run, tmp_path / "quiet", monkeypatch))
    for what, text in tables(chaos.store).items():
        assert text == quiet[what], what
