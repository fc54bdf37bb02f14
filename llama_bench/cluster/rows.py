"""From what the arms of a restart said to the rows of its datasets. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from llama_bench.bench.kernels import Profile
from llama_bench.bench.machine import fingerprint
from llama_bench.engines.executed import Executed
from llama_bench.engines.onnxruntime import settings_sha256
from llama_bench.passes import find
from llama_bench.passes.info import Kind
from llama_bench.plan import Arm, Cell

Rows = dict[str, list[dict[str, Any]]]


def where(cell: Cell) -> dict[str, Any]:
    """The columns that say which cell a row belongs to."""
    return {"cell": cell.id, "model": cell.model.label, "workload": cell.workload_name, "target": cell.target_name}


def restart_rows(
    cell: Cell,
    *,
    restart: int,
    group: int,
    phase: str,
    started_at: datetime,
    seconds: Mapping[str, float],
    said: Mapping[str, Mapping[str, Any]],
    slots: Sequence[Mapping[str, Any]],
    node: Mapping[str, Any],
    moment: Mapping[str, Any],
    node_id: str,
    texts: Callable[[int, list[int]], Mapping[str, Any]] = lambda sequence, tokens: {},
) -> Rows:
    """Return dataset → rows of one finished restart; `pieces` is the last key, because it is to be written last.

    `said` is arm → stage → what the arm answered, `slots` what each slot gave, `seconds` columns of `pieces`, `moment`
    columns of `machines` that belong to this restart, `texts` the columns of `generations` for a sequence's new tokens.
    """
    control = {arm.name: arm.control for arm in cell.arms}
    replicate = {**where(cell), "restart": restart, "group": group, "phase": phase}
    process = {
        name: {"pid": answers["start"]["pid"], "process_started_at": _time(answers["start"]["process_started_at"])}
        for name, answers in said.items()
    }
    rows: Rows = {"timings": [], "blocks": [], "accuracy": [], "generations": [], "machines": []}
    for slot in slots:
        name = slot["arm"]
        turn = {**replicate, "block": slot["block"], "position": slot["position"], "recipe": name}
        turn |= {"control": control[name]}
        turn["kept"] = slot["kept"]
        for index, (value, busy_s) in enumerate(zip(slot["seconds"], slot["busy_s"], strict=True)):
            tokens = slot["token_s"][index] if slot["token_s"] else ()
            run = {"run_index": index, "seconds": value, "busy_s": busy_s or None, "token_s": tokens or None}
            rows["timings"].append({**turn, **run, **process[name]})
        rows["blocks"].append(
            {
                **turn,
                "log_seconds": sum(math.log(value) for value in slot["seconds"]) / len(slot["seconds"]),
                "washout_runs": slot["washout_runs"],
                "washout_s": slot["washout_s"],
                "timed_s": sum(slot["seconds"]),
                "started_at": slot["at"],
                "pid": process[name]["pid"],
                **asdict(slot["seen"]),
                **asdict(slot["energy"]),
            }
        )
    for name, answers in said.items():
        arm = {**replicate, "recipe": name, "control": control[name]}
        rows["accuracy"] += [{**arm, **check} for check in (*answers["check"], answers.get("text")) if check]
        made = answers.get("generated", [])
        rows["generations"] += [{**arm, **texts(i, tokens)} for i, tokens in enumerate(made)]
        memory = answers["memory"]
        rows["machines"].append({**arm, **process[name], **_machine(answers, node, node_id), **memory, **moment})
    blocks = {slot["block"]: slot["kept"] for slot in slots}
    piece = {"piece": f"{cell.id}-r{restart:04d}", "kind": "restart", "node": node_id, "started_at": started_at}
    piece |= {"blocks": len(blocks), "dropped": sum(not kept for kept in blocks.values())}
    rows["pieces"] = [{**replicate, **piece, **seconds}]
    return rows


def kind_of(arm: Arm) -> Kind:
    """Return the class of an arm: one approximate pass, or an engine's lower precision, makes it an approximation."""
    lower = arm.recipe.session.precision != "fp32"
    return "approximate" if lower or any(find(step).kind == "approximate" for step in arm.recipe.passes) else "exact"


def variant_row(
    cell: Cell,
    arm: Arm,
    manifest: Mapping[str, Any],
    effects: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    executed: Executed | None,
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Return the row of `variants`: what the arm's passes did (their `effects` added up) and what is executed.

    `executed` is None for an engine that executes no graph, `profile` where no GPU's kernels were seen.
    """
    histogram: dict[str, int] = {}
    for effect in effects:
        for op, count in effect["histogram_difference"].items():
            histogram[op] = histogram.get(op, 0) + count
    nodes = [effects[0]["nodes_before"], effects[-1]["nodes_after"]] if effects else [manifest["export"]["nodes"]] * 2
    return {
        **where(cell),
        "recipe": arm.name,
        "control": arm.control,
        "variant": arm.variant,
        "passes": json.dumps([step.label for step in arm.recipe.passes]),
        "engine": arm.recipe.engine,
        "class": kind_of(arm),
        "nodes_before": nodes[0],
        "nodes_after": nodes[1],
        "nodes_changed": sum(effect["nodes_changed"] for effect in effects),
        "histogram_difference": json.dumps({op: n for op, n in sorted(histogram.items()) if n}),
        "graph_bytes": sum(file["bytes"] for file in manifest["files"] if file["name"] == "model.onnx"),
        "weight_bytes": sum(size for _, size in manifest["weights"]),
        "build_s": manifest["build_s"],
        "changed": any(effect["changed"] for effect in effects),
        "graph_sha256": manifest["graph_sha256"],
        "executed_sha256": executed and executed.sha256,
        "executed_nodes": executed and executed.nodes,
        "executed_histogram": executed and executed.histogram and json.dumps(executed.histogram),
        "placement_sha256": executed and executed.placement_sha256,
        "placement": executed and json.dumps(executed.placement),
        "settings_sha256": settings_sha256(settings),
        "settings": json.dumps(settings, sort_keys=True),
        "kernel_runs": profile and profile.runs,
        "kernel_launches": profile and profile.launches,
        "kernel_busy_s": profile and profile.busy_s,
        "kernel_span_s": profile and profile.span_s,
        "kernel_wall_s": profile and profile.wall_s,
    }


def kernel_rows(cell: Cell, arm: Arm, profile: Profile | None) -> list[dict[str, Any]]:
    """Return the rows of `kernels` of an arm; none where no GPU's kernels were seen."""
    mine = {**where(cell), "recipe": arm.name, "control": arm.control}
    return [
        {**mine, "kernel": one.name, "class": one.kind, "count": one.count, "seconds": one.seconds}
        for one in (profile.kernels if profile else ())
    ]


def _machine(answers: Mapping[str, Any], node: Mapping[str, Any], node_id: str) -> dict[str, Any]:
    gpus = [gpu["name"] for gpu in node["gpus"]]
    return {
        "niceness": answers["start"]["niceness"],
        "threads": answers["load"]["threads"],
        "provider": answers["load"]["providers"][0],
        "warmup_runs": answers["warmup"]["runs"],
        "steady": answers["warmup"]["steady"],
        "node": node_id,
        **{key: node[key] for key in ("hostname", "cpu", "physical_cores", "logical_cores", "memory_bytes")},
        "gpu": ", ".join(gpus) or None,
        "hardware": fingerprint(dict(node)),
        "facts": json.dumps(node, sort_keys=True),
    }


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
