"""What a cluster of 1 to 16 nodes costs its driver: the wait between slots, CPU a piece, nodes that idle.

    python benchmarks/nodes.py [NODES ...]       1 4 16 unless said

The nodes are processes of this machine and simulated: an arm sleeps where it would compute (see tests/simulated), so
that 16 of them fit onto two cores. Processes are started by all nodes on the same cores, which real nodes do not:
slots that were timed meanwhile are left out, and the seconds of starting reported apart.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).parent.parent

SIMULATED = str(ROOT / "tests" / "simulated")

RUN_S = 0.010  # an arm's simulated run
CELLS_A_NODE = 2
SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20}


def sweep_of(cells: int) -> dict[str, Any]:
    """Return a sweep of so many cells that share one export: a target each, all of one tag."""
    model = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 24}
    model |= {"vocab_size": 32, "head": "none", "exporter": "torchscript", "opset": 17}
    return {
        "name": "nodes",
        "models": [model],
        "recipes": {"original": {"engine": "simulated"}, "other": {"engine": "simulated", "session": {"io": "host"}}},
        "workloads": {"prefill": {"sequence": 8, "outputs": "hidden"}},
        "targets": {f"t{n}": {"tag": "bench_cpu", "threads": 1} for n in range(cells)},
        "measure": {"restarts": 6, "blocks": 15, "runs": 3, "half_width": None, "confirm": False},
    }


@contextmanager
def cluster(nodes: int, store: Path) -> Iterator[None]:
    """Give a head that builds and so many nodes to time on; their processes have the simulated engine."""
    import ray
    from ray.cluster_utils import Cluster

    told = {"SIMULATED_STORE": str(store), "SIMULATED_RUN_S": str(RUN_S), "CUDA_VISIBLE_DEVICES": ""}
    os.environ.update(told)
    found = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 1, "resources": {"builder": 1}})
    try:
        for _ in range(nodes):
            found.add_node(wait=False, **SMALL, num_cpus=1, resources={"bench_cpu": 1})
        found.wait_for_nodes(timeout=120)
        ray.init(address=found.address, logging_level="ERROR", log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        found.shutdown()


def measure(nodes: int, folder: Path) -> None:
    import llama_bench
    from llama_bench.cluster import driver
    from llama_bench.cluster.events import Event
    from llama_bench.store import Store
    from llama_bench.sweep import Sweep

    store = Store(folder / "store")
    sweep = Sweep.model_validate(sweep_of(CELLS_A_NODE * nodes))
    with cluster(nodes, folder / "store"):
        used = [_cpu_s()]

        def hear(event: Event) -> None:
            if event.kind == "builds":  # it has planned, knows the nodes, and begins
                used.append(_cpu_s())

        result = driver.run(sweep, store, on_event=hear)
        used.append(_cpu_s())
    assert result.measured == CELLS_A_NODE * nodes, result
    frames = llama_bench.load(store.url(result.run))
    pieces, blocks = frames.pieces.collect(), frames.blocks.collect()
    restarts = pieces.filter(kind="restart")
    waits = waits_between_slots(blocks, restarts)
    handed = handovers(pieces)
    (before, _), (begun, begun_own), (ended, ended_own) = used
    starting = (restarts["start_s"] + restarts["load_s"] + restarts["warmup_s"]).to_numpy()
    print(
        f"{nodes:3} nodes  {pieces.height:4} pieces  driver {1e3 * (ended - begun) / pieces.height:6.2f} ms CPU "
        f"a piece, {1e3 * (ended_own - begun_own) / pieces.height:.2f} ms of it in our own thread, "
        f"{begun - before:.1f} s before the first  "
        f"wait between slots p50 {1e3 * np.quantile(waits, 0.5):5.1f} p95 {1e3 * np.quantile(waits, 0.95):5.1f} ms "
        f"({len(waits)} of {blocks.height} slots)  next cell on a node after p50 {np.quantile(handed, 0.5):.2f} "
        f"p95 {np.quantile(handed, 0.95):.2f} s  starting processes {starting.mean():.1f} s a restart",
        flush=True,
    )


def _cpu_s() -> tuple[float, float]:
    """Return the seconds of CPU that this process has used, Ray's threads in it included, and this thread alone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, time.thread_time()


def waits_between_slots(blocks: pl.DataFrame, restarts: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Return the seconds from each slot's end to the next one's start, but where any node was starting processes."""
    starting = [
        (begin.timestamp(), begin.timestamp() + start_s + load_s + warmup_s)
        for begin, start_s, load_s, warmup_s in restarts.select("started_at", "start_s", "load_s", "warmup_s").rows()
    ]
    slots = blocks.sort("started_at").with_columns(
        (pl.col("started_at").dt.timestamp("us") / 1e6).alias("begin"),
        (pl.col("washout_s") + pl.col("timed_s")).alias("took"),
    )
    waits = []
    for _, mine in slots.group_by("cell", "restart"):
        begin, end = mine["begin"].to_numpy(), (mine["begin"] + mine["took"]).to_numpy()
        for ended, next_begin in zip(end[:-1], begin[1:], strict=True):
            if not any(first < next_begin and ended < last for first, last in starting):
                waits.append(next_begin - ended)
    return np.array(waits)


def handovers(pieces: pl.DataFrame) -> np.ndarray[Any, Any]:
    """Return the seconds from each cell's last restart to the next cell's first piece on the same node."""
    found = []
    for _, mine in pieces.filter(pl.col("kind").is_in(["restart", "examine"])).sort("started_at").group_by("node"):
        rows = mine.select("cell", "started_at", "wall_s").rows()
        for (cell, begin, wall_s), (next_cell, next_begin, _) in pairwise(rows):
            if cell != next_cell:
                found.append(next_begin.timestamp() - begin.timestamp() - wall_s)
    return np.array(found)


def main() -> None:
    for nodes in map(int, sys.argv[1:] or ("1", "4", "16")):
        with tempfile.TemporaryDirectory(prefix="nodes-") as folder:
            measure(nodes, Path(folder))


if __name__ == "__main__":
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if SIMULATED not in path:  # this process plans the sweep, so it needs to know the engine from its start
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SIMULATED, str(ROOT), *path]))
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
