"""What an arm executes that its baseline does not: the passes' work, executed graph, placement and settings. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_bench.stats.evidence import IDENTITY

Row = Mapping[str, Any]

CPU = "CPUExecutionProvider"

COPIES = ("MemcpyFromHost", "MemcpyToHost")
"""Nodes that ONNX Runtime adds where a tensor goes from one provider's memory to another's."""

ABSENT = "–"
"""What stands for a setting that one of the two does not have."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that differs, as text: `io`, `provider_options.use_tf32`."""

    name: str
    baseline: str
    arm: str


@dataclass(frozen=True, slots=True)
class Change:
    """An arm's row of `variants` beside its baseline's. None is what an engine without a graph does not have.

    `nodes_…` and `by_passes` (op → nodes gained or lost) are of the stored graph; `executed_…` and `executed` (op →
    nodes more or fewer than the baseline executes) of what runs. `same` says of each part of a no-op's proof whether it
    equals the baseline's, `moved` provider → op → nodes more or fewer than the baseline places there.
    """

    passes: tuple[str, ...]
    engine: str
    kind: str | None
    nodes_before: int | None
    nodes_after: int | None
    nodes_changed: int | None
    by_passes: Mapping[str, int]
    graph_bytes: int | None
    weight_bytes: int | None
    baseline_graph_bytes: int | None
    baseline_weight_bytes: int | None
    executed_sha256: str | None
    baseline_executed_sha256: str | None
    executed_nodes: int | None
    baseline_executed_nodes: int | None
    executed: Mapping[str, int]
    moved: Mapping[str, Mapping[str, int]]
    same: Mapping[str, bool | None]
    settings: tuple[Setting, ...]


def change(arm: Row | None, baseline: Row | None) -> Change | None:
    """Return what the arm does otherwise than its baseline; both are rows of `variants`. None where it has none."""
    if arm is None:
        return None
    base: Row = baseline or {}
    mine, theirs = _placed(arm), _placed(base)
    return Change(
        passes=tuple(_read(arm["passes"], [])),
        engine=arm["engine"] or "onnxruntime",
        kind=arm["class"],
        nodes_before=arm["nodes_before"],
        nodes_after=arm["nodes_after"],
        nodes_changed=arm["nodes_changed"],
        by_passes=_kinds(_read(arm["histogram_difference"], {})),
        graph_bytes=arm["graph_bytes"],
        weight_bytes=arm["weight_bytes"],
        baseline_graph_bytes=base.get("graph_bytes"),
        baseline_weight_bytes=base.get("weight_bytes"),
        executed_sha256=arm["executed_sha256"],
        baseline_executed_sha256=base.get("executed_sha256"),
        executed_nodes=arm["executed_nodes"],
        baseline_executed_nodes=base.get("executed_nodes"),
        executed=_less(_read(arm["executed_histogram"], {}), _read(base.get("executed_histogram"), {}))
        if arm["executed_histogram"] and base.get("executed_histogram")
        else {},
        moved={
            provider: found
            for provider in sorted({*mine, *theirs})
            if (found := _less(mine.get(provider, {}), theirs.get(provider, {})))
        }
        if mine and theirs
        else {},
        same={key: _equal(arm[key], base.get(key)) for key in IDENTITY},
        settings=_settings(_read(arm["settings"], {}), _read(base.get("settings"), {})),
    )


def placed(variant: Row, gpu: bool) -> dict[str, int | None]:
    """Return how many nodes a GPU's session runs on the CPU, and how many copy between the two.

    `variant` is a row of `variants`. Both are None where `gpu` is False, and where nothing is known of its placement.
    """
    found = _placed(variant) if gpu else {}
    if not found:
        return {"cpu_nodes": None, "memcpy_nodes": None}
    copies = sum(count for ops in found.values() for op, count in ops.items() if op in COPIES)
    return {"cpu_nodes": sum(found.get(CPU, {}).values()), "memcpy_nodes": copies}


def _settings(mine: Row, theirs: Row) -> tuple[Setting, ...]:
    """The settings that differ; none where one side does not say any."""
    if not mine or not theirs:
        return ()
    arm, base = _flat(mine), _flat(theirs)
    names = [*base, *(name for name in arm if name not in base)]
    return tuple(
        Setting(name, base.get(name, ABSENT), arm.get(name, ABSENT))
        for name in names
        if base.get(name) != arm.get(name)
    )


def _flat(settings: Row, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def _placed(row: Row) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = _read(row.get("placement"), {}) or {}
    return found


def _less(mine: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    """Op → how many more `mine` has, ops that are as many left out."""
    return _kinds({op: mine.get(op, 0) - theirs.get(op, 0) for op in sorted({*mine, *theirs})})


def _kinds(counts: Mapping[str, int]) -> dict[str, int]:
    return {op: count for op, count in counts.items() if count}


def _equal(mine: object, theirs: object) -> bool | None:
    return None if mine is None or theirs is None else mine == theirs


def _read(text: str | None, otherwise: Any) -> Any:
    return json.loads(text) if text else otherwise
