"""The ceilings of a node, measured once a run and target before its first cell is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from llama_bench import results
from llama_bench.bench import machine, roofline
from llama_bench.cluster.job import Event, Job, event
from llama_bench.cluster.launch import Launcher, Lost
from llama_bench.store import Store


def measure_ceilings(job: Job, launcher: Launcher, store: Store) -> Iterator[Event]:
    """Write what this node can do at most on the target's provider and threads, unless the run has it already.

    Kept by hardware and target: a node that comes back, or its twin, is not measured again. Without ceilings the
    fractions are missing and everything else goes on, so losing them is told and no failure.
    """
    cell, hardware = job.cell, machine.fingerprint(dict(job.node))
    stem = f"ceilings-{cell.target_name}-{hardware}"
    if not job.ceilings or stem in results.finished(store, job.run)["pieces"]:
        return
    threads = cell.target.threads or int(job.node["physical_cores"])
    yield event("slot", job, detail="measuring the ceilings of this node")
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    found = launcher.once(roofline.measure, cell.target.provider, threads)
    if isinstance(found, Lost):
        yield {"kind": "note", "label": cell.label, "detail": f"no ceilings: {found.message}"}
        return
    node = {"node": job.node_id, "hardware": hardware, "target": cell.target_name, "threads": threads}
    node |= {"measured_at": started_at}
    cache = None if cell.target.needs_gpu else job.node.get("cache_bytes")
    rows = [{**node, **asdict(one), "cache_bytes": one.cache_bytes or cache} for one in found]
    results.write_part(store, job.run, "ceilings", stem, rows)
    wall = time.perf_counter() - begin
    piece: dict[str, Any] = {"piece": stem, "kind": "ceilings", "target": cell.target_name, "node": job.node_id}
    piece |= {"started_at": started_at, "wall_s": wall, "other_s": wall}
    results.write_part(store, job.run, "pieces", stem, [piece])
