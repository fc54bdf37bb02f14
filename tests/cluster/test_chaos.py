"""A small sweep through a hundred faults: each piece is there once, nothing is torn, the tables are the same."""

from __future__ import annotations

import importlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from .chaos import CPU, GPU, SMALL, Chaos
from .conftest import HEAD

LIMIT_S = 2400

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(LIMIT_S + 300),
]

SHARE = float(os.environ.get("LLAMA_BENCH_FAULTS", "1"))
"""Share of the faults that are made, for a quicker look."""

HUNDRED = {
    "actor": 10, "crash": 10, "hang": 8,
    "coordinator": 10, "node": 8, "raylet": 8, "disk": 10,
    "memory": 20, "store": 8, "driver": 8,
}  # fmt: skip
"""Kind of fault → how many; more of those that take little time."""

FAULTS = {kind: max(1, round(SHARE * count)) for kind, count in HUNDRED.items()}

SEED = 20

DEADLINE_S = 40.0
"""A session that does not answer for so long hangs; others answer far sooner, whatever else the machine does."""

RESTARTS = 7

SWEEP = recorded.simulated(
    recorded.SWEEP
    | {
        "models": recorded.SWEEP["models"][: max(1, round(3 * SHARE))],
        "measure": recorded.SWEEP["measure"] | {"restarts": RESTARTS},
    }
)


@pytest.fixture
def chaos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chaos]:
    """A cluster in a folder of its own, whose processes have the simulated engine, and a driver that has begun."""
    (tmp_path / "orders").mkdir()
    (tmp_path / "chaos.yaml").write_text(recorded.as_file(SWEEP))
    told = recorded.environment(
        tmp_path / "store",
        SIMULATED_ORDERS=str(tmp_path / "orders"),
        SIMULATED_DEADLINE_S=str(DEADLINE_S),
        CUDA_VISIBLE_DEVICES="",
        LLAMA_BENCH_CEILINGS="1",  # deadlines go by them, and the simulated ones take no time
        RAY_worker_niceness="0",  # builders and bench nodes share this machine
    )
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    rng = random.Random(SEED)
    wanted = list(Counter(FAULTS).elements())
    rng.shuffle(wanted)
    cluster = Cluster(initialize_head=True, head_node_args={**SMALL, **HEAD, "num_cpus": 0})
    try:
        cluster.add_node(wait=False, **SMALL, num_cpus=1, resources={"builder": 1})
        chaos = Chaos(cluster, tmp_path, {**os.environ, **told}, wanted, rng, RESTARTS)
        for what in (CPU, CPU, GPU):
            chaos.add_node(what)
        cluster.wait_for_nodes(timeout=200)
        chaos.drive()
        yield chaos
    finally:
        cluster.shutdown()


def go_through_all(chaos: Chaos) -> None:
    """Let every fault happen, and the run come to its end."""
    began, told = time.monotonic(), 0
    while not chaos.done():
        assert time.monotonic() < began + LIMIT_S, f"left: {chaos.wanted}; {chaos.log()}"
        chaos.look()
        if chaos.counts.total() >= told + 10:
            told = chaos.counts.total()
            print(f"{time.monotonic() - began:.0f} s: {told} faults, {chaos.finished.total()} restarts", flush=True)
        time.sleep(0.3)
    print(f"{time.monotonic() - began:.0f} s: {dict(chaos.counts)}, {chaos.drivers} drivers", flush=True)


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
    monkeypatch.setattr("llama_bench.cluster.arm.peak_bytes", simulated_engine.peak_bytes)
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


def test_a_sweep_through_faults_of_every_kind_ends_like_an_undisturbed_one(
    chaos: Chaos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_through_all(chaos)
    assert chaos.counts == FAULTS, chaos.wanted

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
