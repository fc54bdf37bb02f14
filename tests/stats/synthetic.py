"""Synthetic runs whose true ratios are known: a real sweep and plan, and rows as a measurement would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from llama_bench import plan
from llama_bench.parts import write_part
from llama_bench.results import write_run
from llama_bench.schemas import SCHEMAS
from llama_bench.store import Store
from llama_bench.sweep import CONTROL, Sweep

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True)
class Truth:
    """What is true of a recipe: its time relative to the baseline, what it changes, and what goes wrong with it."""

    ratio: float = 1.0
    executed: str | None = None  # another executed graph than the baseline's
    changed: int = 0
    removed: Mapping[str, int] = field(default_factory=dict)  # op → nodes that the pass removes
    within_bound: bool = True
    failure: str | None = None  # a message: the arm has no timings
    skipped: str | None = None  # why its engine is not here: the arm has no timings
    kind: str = "exact"
    engine: str = "onnxruntime"
    weight_bytes: int = 4_000_000
    perplexity_increase: float = 0.0
    kl: float = 1e-9
    top1: float = 1.0


@dataclass(frozen=True)
class World:
    """A run: run.json, and the rows of each dataset."""

    run: dict[str, Any]
    rows: dict[str, list[dict[str, Any]]]

    def datasets(self) -> dict[str, pl.LazyFrame]:
        """Every dataset with its own schema, as `results.scan` gives them."""
        return {name: _frame(self.rows[name], schema).lazy() for name, schema in SCHEMAS.items()}

    def disturb(self, restart: int, block: int, recipe: str, *, kept: bool, factor: float = 3.0) -> None:
        """Make `recipe` slower by `factor` in a block of every cell; one that is not `kept` is timed again after it."""
        for dataset in ("blocks", "timings"):
            again = []
            for row in self.rows[dataset]:
                if (row["restart"], row["block"]) != (restart, block):
                    continue
                if not kept:
                    last = max(other["block"] for other in self.rows[dataset] if other["restart"] == restart)
                    again.append({**row, "block": last + 1})
                row |= {"kept": kept}
                if dataset == "blocks":
                    row |= {"disturbed": "steal 12 %", "steal": 0.12}
                slower = factor if row["recipe"] == recipe and not row["control"] else 1.0
                if dataset == "blocks":
                    row["log_seconds"] += float(np.log(slower))
                else:
                    row["seconds"] *= slower
            self.rows[dataset] += again

    def slow_down(self, factor: float, recipe: str | None = None) -> None:
        """Make all times longer by `factor`, or those of one arm alone (the control goes by its own name)."""
        for row in [*self.rows["blocks"], *self.rows["timings"]]:
            if recipe in (None, CONTROL if row["control"] else row["recipe"]):
                key = "log_seconds" if "log_seconds" in row else "seconds"
                row[key] = row[key] + float(np.log(factor)) if key == "log_seconds" else row[key] * factor

    def profile(self, kernels: Mapping[str, Sequence[tuple[str, str, float, float]]], **settings: Any) -> None:
        """Let each arm's kernels (name, class, how often, seconds in all) have been seen, in every cell, on a GPU.

        The machine has ceilings: 10¹⁴ operations and 10¹² bytes a second, and no cache. `settings` are every arm's.
        """
        said = {"engine": "onnxruntime", "provider": "CUDAExecutionProvider", "config": {}, "provider_options": {}}
        for row in self.rows["variants"]:
            arm = CONTROL if row["control"] else row["recipe"]
            placed = {"CPUExecutionProvider": {"Gather": 2}, "CUDAExecutionProvider": {"MatMul": 9, "MemcpyToHost": 1}}
            row |= {"settings": json.dumps(said | settings), "placement": json.dumps(placed), "passes": "[]"}
            seen = kernels.get(arm, ())
            busy_s = sum(seconds for *_, seconds in seen)
            if seen:
                row |= {"kernel_runs": 5, "kernel_launches": sum(n for _, word, n, _ in seen if word != "copy")}
                row |= {"kernel_busy_s": busy_s, "kernel_span_s": 1.1 * busy_s, "kernel_wall_s": 1.2 * busy_s}
            mine = {key: row[key] for key in ("cell", "model", "workload", "target", "recipe", "control")}
            self.rows["kernels"] += [
                {**mine, "kernel": name, "class": word, "count": count, "seconds": seconds}
                for name, word, count, seconds in seen
            ]
        self.rows["machines"] = [{**row, "hardware": "gpu-box"} for row in self.rows["machines"]]
        for target in self.run["sweep"]["targets"]:
            ceiling = {"node": "n", "hardware": "gpu-box", "target": target, "cache_bytes": 0}
            for what, dtype, rate in (("matmul", "fp32", 1e14), ("read", "", 1e12)):
                self.rows["ceilings"].append({**ceiling, "what": what, "dtype": dtype, "per_second": rate})

    def move(self, restart: int, **machine: Any) -> None:
        """Let a restart of every cell have run on another machine: columns of `machines`."""
        for row in self.rows["machines"]:
            if row["restart"] == restart:
                row |= machine

    def write(self, folder: Path, name: str = "20260102T030405Z-f00d") -> Path:
        """Write the run into a local store as a measurement does, pieces last; return the run's folder."""
        store, run = Store(folder), f"synthetic/{name}"
        self.write_parts(store, run)
        assert write_run(store, run, self.run)
        return folder / run

    def write_parts(self, store: Store, run: str) -> None:
        """Write the rows of every dataset as parts of `run`, pieces last."""
        for dataset in sorted(SCHEMAS, key=lambda dataset: dataset == "pieces"):
            stems: dict[str, list[dict[str, Any]]] = {}
            for row in self.rows[dataset]:
                restart = row.get("restart")
                stem = f"{row['cell']}-x" if restart is None else f"{row['cell']}-r{restart:04d}"
                stems.setdefault(stem, []).append(row)
            for stem, rows in stems.items():
                assert write_part(store, run, dataset, stem, rows)


def world(
    recipes: Mapping[str, Truth],
    *,
    sizes: tuple[int, ...] = (512,),
    targets: Mapping[str, str] | None = None,
    unserved: Mapping[str, str] | None = None,
    restarts: int = 6,
    pilot: int = 6,
    blocks: int = 4,
    runs: int = 5,
    spread: float = 0.005,
    seed: int = 1,
    half_width: float | None = 0.01,
    confirm: str | None = None,
    fresh: float | None = None,
    workload: Mapping[str, Any] | None = None,
    workloads: Mapping[str, Mapping[str, Any]] | None = None,
    source: str | None = None,
    text: bool = False,
) -> World:
    """Return a run of *original* and `recipes`; `spread` is the standard deviation of ln seconds between restarts.

    With `confirm` that recipe has `pilot` fresh restarts after the main ones, in which its true ratio is `fresh` (its
    own when left out). `workload` is another than the usual prefill, `workloads` are several of one kind, `source` is
    what run.json says of the weights; with `text` every arm is scored on text, and says how much memory it takes.
    """
    tags = dict(targets or {"B": "CPUExecutionProvider"})
    said = dict(next(iter(workloads.values())) if workloads else workload or {"sequence": 16, "batch": 2})
    cached = said.get("kind", "prefill") != "prefill"
    sweep = Sweep.model_validate(
        {
            "name": "synthetic",
            "models": [{"hidden_size": size, "num_attention_heads": 4, "cache": cached} for size in sizes],
            "recipes": {"original": {}, **{name: {} for name in recipes}},
            "workloads": workloads or {said.get("kind", "prefill"): said},
            "targets": {name: {"tag": f"bench_{name}", "provider": provider} for name, provider in tags.items()},
            "measure": {"restarts": pilot, "blocks": blocks, "runs": runs, "half_width": half_width},
        }
    )
    cells = [cell for cell in plan.make(sweep, {}).cells if cell.target_name not in (unserved or {})]
    run = {
        "sweep": sweep.model_dump(mode="json"),
        "created_at": "2026-01-02T03:04:05Z",
        "fingerprint": "f00d",
        "versions": {"onnxruntime": "1.31.1"},
        "machines": [{"hostname": "host", "cpu": "A CPU", "physical_cores": 2, "memory_bytes": 2**34, "gpus": []}],
        "cells": [{**cell.entry, **({"source": source} if source else {})} for cell in cells],
        "unserved": dict(unserved or {}),
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
    rng = np.random.default_rng(seed)
    for cell in cells:
        key = {"cell": cell.id, "model": cell.model.label, "workload": cell.workload_name, "target": cell.target_name}
        ratios = _examine(rows, key, cell, recipes)
        for restart in range(restarts):
            replicate = {**key, "restart": restart, "group": 0, "phase": "main"}
            _restart(rows, replicate, cell, recipes, ratios, blocks, runs, spread, rng)
        if confirm is not None:
            three = {name: ratios[name] for name in ("original", CONTROL, confirm)}
            three[confirm] = three[confirm] if fresh is None else fresh
            for restart in range(restarts, restarts + pilot):
                replicate = {**key, "restart": restart, "group": 0, "phase": "confirm"}
                _restart(rows, replicate, cell, recipes, three, blocks, runs, spread, rng)
        if text:
            _answers(rows, key, cell, recipes, ratios)
    return World(run, rows)


def _examine(
    rows: dict[str, list[dict[str, Any]]], key: Mapping[str, Any], cell: plan.Cell, recipes: Mapping[str, Truth]
) -> dict[str, float]:
    """Append what examining `cell` writes; return the true ratio of each arm that can be timed."""
    truths = {arm.name: recipes.get(arm.name, Truth()) for arm in cell.arms}
    for name, truth in truths.items():
        rows["variants"].append({**key, **_variant(name, truth, cell)})
        if truth.failure:
            failure = {"recipe": name, "stage": "build", "kind": "WorkError", "message": truth.failure, "at": START}
            rows["failures"].append({**key, **failure})
        if truth.skipped:
            failure = {"recipe": name, "stage": "engine", "kind": "skipped", "message": truth.skipped, "at": START}
            rows["failures"].append({**key, **failure})
    rows["pieces"].append({**key, "piece": f"{cell.id}-x", "kind": "examine", "wall_s": 3.0})
    return {name: truth.ratio for name, truth in truths.items() if truth.failure is None and truth.skipped is None}


def _restart(
    rows: dict[str, list[dict[str, Any]]],
    replicate: Mapping[str, Any],
    cell: plan.Cell,
    recipes: Mapping[str, Truth],
    ratios: Mapping[str, float],
    blocks: int,
    runs: int,
    spread: float,
    rng: np.random.Generator,
) -> None:
    """Append what a restart writes; the arms share the drift between blocks, not the spread between restarts."""
    base_s = 2e-3 * (cell.model.hidden_size / 512) ** 2
    level = {name: rng.normal(0, spread) for name in ratios}
    new_tokens = cell.workload.new_tokens
    first = "tokens" if new_tokens else "logits"
    for name in ratios:
        bound = {
            "output": first,
            "class": recipes.get(name, Truth()).kind,
            "max_abs": 1e-3,
            "max_rel": 2e-3,
            "nonfinite": 0,
            "bound": 1e-3,
        }
        inside = recipes.get(name, Truth()).within_bound
        arm = {"recipe": name, "control": name == CONTROL}
        rows["accuracy"].append({**replicate, **arm, **bound, "within_bound": inside})
        rows["machines"].append({**replicate, **arm, "hostname": "host", "cpu": "A CPU", "physical_cores": 2})
    for block in range(blocks):
        drift = rng.normal(0, 0.05)
        for position, name in enumerate(rng.permutation(list(ratios)).tolist()):
            logs = np.log(base_s * ratios[name]) + level[name] + drift + rng.normal(0, 0.002, runs)
            slot = {"block": block, "position": position, "recipe": name, "control": name == CONTROL, "pid": 1}
            slot |= {**replicate, "kept": True}
            rows["blocks"].append({**slot, "log_seconds": float(logs.mean())})
            for i, seconds in enumerate(np.exp(logs).tolist()):
                token_s = _token_s(seconds, new_tokens) if new_tokens else None
                rows["timings"].append({**slot, "run_index": i, "seconds": seconds, "token_s": token_s})
    phases = {"start_s": 2.0, "load_s": 1.0, "warmup_s": 1.5, "washout_s": 0.5, "timed_s": 4.5, "other_s": 0.5}
    number = replicate["restart"]
    piece = {"piece": f"{cell.id}-r{number:04d}", "kind": "restart", "wall_s": 10.0, "blocks": blocks, "dropped": 0}
    rows["pieces"].append({**replicate, **piece, **phases, "started_at": START + timedelta(seconds=10 * number)})


def _token_s(seconds: float, new_tokens: int) -> list[float]:
    """The first token takes three tenths of a run, every tenth of the later ones three times as long as the others."""
    weights = [3.0 if i % 10 == 5 else 1.0 for i in range(1, new_tokens)]
    return [0.3 * seconds, *(0.7 * seconds * weight / sum(weights) for weight in weights)]


def _answers(
    rows: dict[str, list[dict[str, Any]]],
    key: Mapping[str, Any],
    cell: plan.Cell,
    recipes: Mapping[str, Truth],
    ratios: Mapping[str, float],
) -> None:
    """Append what every arm says of a text in its first restart, what it generates, and the memory it takes."""
    first = {**key, "restart": 0, "group": 0, "phase": "main"}
    for name in ratios:
        truth = recipes.get(name, Truth())
        arm = {**first, "recipe": name, "control": name == CONTROL}
        found = {"output": "text", "class": truth.kind, "kl": truth.kl, "top1": truth.top1, "nonfinite": 0}
        found |= {"perplexity": 12.0 * (1 + truth.perplexity_increase), "reference_perplexity": 12.0}
        found |= {"tokens": 510, "window": 256, "stride": 255, "within_bound": truth.within_bound}
        if not truth.within_bound:
            found |= {"violated": f"perplexity increase {truth.perplexity_increase:g} is above 0.1"}
        rows["accuracy"].append({**arm, **found})
        new = cell.workload.new_tokens
        for sequence in range(cell.workload.batch if new else 0):
            agreed = new if truth.kind == "exact" else new // 2
            tokens = [*range(agreed), *(-1 for _ in range(new - agreed))]
            said = " ".join(f"word{token}" for token in tokens)
            text = {"sequence": sequence, "tokens": tokens, "agreed": agreed, "prompt": "Once", "text": said}
            rows["generations"].append({**arm, **text})
        for row in rows["machines"]:
            if (row["cell"], row["recipe"], row["control"]) == (key["cell"], name, name == CONTROL):
                row |= {"peak_bytes": 300_000_000 + truth.weight_bytes + 1_000 * row["restart"]}


def _variant(name: str, truth: Truth, cell: plan.Cell) -> dict[str, Any]:
    removed = sum(truth.removed.values())
    return {
        "recipe": name,
        "control": name == CONTROL,
        "variant": f"variant-{name}",
        "engine": truth.engine,
        "class": truth.kind,
        "graph_bytes": 1_000,
        "weight_bytes": truth.weight_bytes,
        "nodes_before": 100,
        "nodes_after": 100 - removed,
        "nodes_changed": truth.changed or removed,
        "histogram_difference": "{" + ", ".join(f'"{op}": {-n}' for op, n in truth.removed.items()) + "}",
        "executed_sha256": (truth.executed or "3f2a" * 16) if truth.engine == "onnxruntime" else None,
        "placement_sha256": "ab" * 32 if truth.engine == "onnxruntime" else None,
        "settings_sha256": "cd" * 32,
    }


def _frame(rows: list[dict[str, Any]], schema: pa.Schema) -> pl.DataFrame:
    frame = pl.from_arrow(pa.Table.from_pylist(rows, schema=schema))
    assert isinstance(frame, pl.DataFrame)
    return frame
