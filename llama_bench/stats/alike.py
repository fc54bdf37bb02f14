"""What is the same in two runs: the question, the hardware, and the program that an arm executes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.bench.machine import PASSING
from llama_bench.stats.evidence import IDENTITY
from llama_bench.sweep import AnyModel, Sweep, Workload
from llama_bench.versions import ENGINE

Row = Mapping[str, Any]

BUILD = ("name", "source", "exporter", "opset", "constant_folding", "attention_mask", "flatten_tokens", "cache")
"""Keys of a model that say how it is made or called; with another one it still answers the same question."""

SEEN = ("cpu", "physical_cores", "logical_cores", "gpu")
"""Columns of `machines` that tell hardware apart where a run has no facts of its nodes."""


def other_question(a: Sweep, b: Sweep, model: str, workload: str) -> str | None:
    """Return what makes cells of one name another question in B than in A, None where it is the same one.

    Times of different shapes, weights or numbers of tokens are no change of anything; another exporter or opset is.
    """
    models = [next((one for one in sweep.models if one.label == model), None) for sweep in (a, b)]
    found = [
        *_differ(f"model {model}", *(_said(one) for one in models)),
        *_differ(f"workload {workload}", *(_said(sweep.workloads.get(workload)) for sweep in (a, b))),
    ]
    return f"not the same question in A and B: {'; '.join(found)}" if found else None


def _said(part: AnyModel | Workload | None) -> dict[str, Any]:
    return {} if part is None else part.model_dump(mode="json", exclude=set(BUILD))


def _differ(what: str, a: Row, b: Row) -> list[str]:
    return [f"{what}: {key} {a.get(key)} → {b.get(key)}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def hardware(machines: pl.LazyFrame) -> dict[str, list[dict[str, Any]]]:
    """Return, for each target, the lasting facts of each machine that timed it, from the dataset `machines`."""
    rows = machines.select("target", "hardware", "hostname", "facts", *SEEN).unique(maintain_order=True).collect()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_dicts():
        facts = json.loads(row["facts"]) if row["facts"] else {key: row[key] for key in SEEN if row[key] is not None}
        facts |= {"memory_gib": round(facts["memory_bytes"] / 2**30)} if facts.get("memory_bytes") else {}
        kept = {key: value for key, value in facts.items() if key not in PASSING}
        machine = kept | {"hardware": row["hardware"], "hostname": row["hostname"]}
        found.setdefault(row["target"], [])
        if machine not in found[row["target"]]:
            found[row["target"]].append(machine)
    return found


def same_hardware(a: Sequence[Row], b: Sequence[Row]) -> bool:
    """Return whether each machine of `a` is like one of `b` and the other way round (:func:`hardware`).

    Like are those of one fingerprint, or, since an older run may have recorded fewer facts, those whose common facts
    agree, the CPU among them. Nothing known is not the same.
    """
    return bool(a and b) and all(any(_like(x, y) for y in b) for x in a) and all(any(_like(x, y) for x in a) for y in b)


def _like(a: Row, b: Row) -> bool:
    if a["hardware"] is not None and a["hardware"] == b["hardware"]:
        return True
    common = a.keys() & b.keys() - {"hardware", "hostname"}
    return a.get("cpu") is not None and "cpu" in common and all(agree(a[key], b[key]) for key in common)


def agree(a: Any, b: Any) -> bool:
    """Return whether two facts are equal in all that both of them say."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(agree(a[key], b[key]) for key in a.keys() & b.keys())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(agree, a, b))
    return bool(a == b)


def same_program(a: Row | None, b: Row | None, run_a: Row, run_b: Row) -> str | None:
    """Return the sentence that proves that an arm is one program in both runs, None where it may not be.

    `a` and `b` are the arm's rows of `variants`, `run_a` and `run_b` each run.json. An arm of ONNX Runtime is the same
    when the executed graph (which holds the weights), placement and settings are, under the same version of ONNX
    Runtime. torch's engines show no graph: there all that shapes the arm must be equal, the code and libraries too.
    """
    if a is None or b is None or a["engine"] != b["engine"] or a["settings_sha256"] is None:
        return None
    engine = str(a["engine"])
    if engine == "onnxruntime":
        version = _versions(run_a, ENGINE)
        if any(a[key] is None or a[key] != b[key] for key in IDENTITY) or version != _versions(run_b, ENGINE):
            return None
        return f"executed graph {a['executed_sha256'][:8]}…, placement, settings and ONNX Runtime are equal"
    shaped = ("variant", "settings_sha256")
    if not engine.startswith("torch-") or any(a[key] is None or a[key] != b[key] for key in shaped):
        return None
    libraries = ("torch", "numpy", "python")
    if run_a.get("code") != run_b.get("code") or _versions(run_a, libraries) != _versions(run_b, libraries):
        return None
    return f"variant {a['variant'][:8]}…, settings, measuring code and torch are equal"


def _versions(run: Row, names: Iterable[str]) -> dict[str, Any]:
    """Versions of these libraries in a run; a run that says none is like no other."""
    said = run.get("versions") or {}
    found = {name: said[name] for name in names if name in said}
    return found or {"unknown": object()}
