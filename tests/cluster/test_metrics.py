"""A run as Ray's metrics, read where its dashboard's Prometheus would read them."""

from __future__ import annotations

import time
import urllib.request

import pytest
import ray

from llama_bench.cluster import driver
from llama_bench.store import Store
from llama_bench.sweep import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def exported(name: str) -> dict[tuple[str, str], float]:
    """Return (kind, state) → number of the metric `name`, as this node's agent exports it."""
    [node] = ray.nodes()
    with urllib.request.urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=60) as page:
        lines = page.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith(f"ray_{name}{{") or line.startswith(f"ray_{name}_total{{"):
            labels = dict(part.split("=", 1) for part in line.partition("{")[2].rpartition("}")[0].split(","))
            kind, state = (labels.get(key, '""').strip('"') for key in ("kind", "state"))
            found[kind, state] = float(line.rpartition(" ")[2])
    return found


def test_a_run_counts_its_pieces_by_kind_and_state(sweep: Sweep, store: Store) -> None:
    driver.run(sweep, store)
    deadline, wanted = time.monotonic() + 200, {("build", "finished"): 3.0, ("cell", "finished"): 1.0}
    while not wanted.items() <= (found := exported("llama_bench_pieces")).items():
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found["restart", "finished"] == 2
    assert exported("llama_bench_pieces_waiting") == {("build", ""): 0.0, ("cell", ""): 0.0}
    assert exported("llama_bench_seconds")["restart", ""] > 0
