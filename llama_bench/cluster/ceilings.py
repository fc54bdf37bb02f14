"""The ceilings of a node: measured once a run and target before its first cell, and again when an arm beats them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from llama_bench import parts, results
from llama_bench.bench import machine, roofline
from llama_bench.cluster.job import Event, Job, event
from llama_bench.cluster.launch import Launcher, Lost
from llama_bench.stats.known import gather
from llama_bench.store import Store

MOST = 3
"""Measurements of a node's ceilings in a run. Other work on one of two cores halves what is seen, and an arm that is
timed when it is gone would be faster than its machine; the best of the measurements counts."""


def measure_ceilings(job: Job, launcher: Launcher, store: Store) -> Iterator[Event]:
    """Write what this node can do at most on the target's provider and threads, unless the run has it already.

    Kept by hardware and target: a node that comes back, or its twin, is not measured again. Without ceilings the
    fractions are missing and everything else goes on, so losing them is told and no failure.
    """
    if job.ceilings and not _stems(job, store):
        yield from _measure(job, launcher, store, "measuring the ceilings of this node")


def measure_beaten_ceilings(job: Job, launcher: Launcher, store: Store) -> Iterator[Event]:
    """Measure the ceilings again while an arm of this cell, whose restarts are done, is faster than they allow."""
    while job.ceilings and 0 < len(_stems(job, store)) < MOST and _beaten(job, store):
        yield from _measure(job, launcher, store, "measuring the ceilings again: an arm is above them")


def _beaten(job: Job, store: Store) -> bool:
    run = results.read_run(store, job.run)
    frames = results.scan(store.url(job.run), job.cell.id)
    mine = [cell for cell in run["cells"] if cell["id"] == job.cell.id]
    return any(bound.fault for bound in gather({**run, "cells": mine}, frames).bounds.values())


def _stems(job: Job, store: Store) -> set[str]:
    prefix = f"ceilings-{job.cell.target_name}-{machine.fingerprint(dict(job.node))}"
    return {stem for stem in parts.finished(store, job.run)["pieces"] if stem.startswith(prefix)}


def _measure(job: Job, launcher: Launcher, store: Store, why: str) -> Iterator[Event]:
    """Measure the ceilings in a process of its own and write them."""
    cell, hardware = job.cell, machine.fingerprint(dict(job.node))
    threads = cell.target.threads or int(job.node["physical_cores"])
    yield event("slot", job, detail=why)
    begin, started_at = time.perf_counter(), datetime.now(UTC)
    found = launcher.once(roofline.measure, cell.target.provider, threads)
    if isinstance(found, Lost):
        yield {"kind": "note", "label": cell.label, "detail": f"no ceilings: {found.message}"}
        found = []
    node = {"node": job.node_id, "hardware": hardware, "target": cell.target_name, "threads": threads}
    node |= {"measured_at": started_at}
    cache = None if cell.target.needs_gpu else job.node.get("cache_bytes")
    rows = [{**node, **asdict(one), "cache_bytes": one.cache_bytes or cache} for one in found]
    stem = f"ceilings-{cell.target_name}-{hardware}-{len(_stems(job, store))}"
    parts.write_part(store, job.run, "ceilings", stem, rows)
    wall = time.perf_counter() - begin
    piece: dict[str, Any] = {"piece": stem, "kind": "ceilings", "target": cell.target_name, "node": job.node_id}
    piece |= {"started_at": started_at, "wall_s": wall, "other_s": wall}
    parts.write_part(store, job.run, "pieces", stem, [piece])
