"""What ONNX Runtime really executes: the graph after its own optimisation, and which provider runs each node."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from llama_bench.engines import ENGINES, Task
from llama_bench.errors import WorkError
from llama_bench.graph import canonical_sha256, histogram, load, model_bytes, nodes

__all__ = ["Executed", "canonical_sha256", "examine"]

EXTERNAL_FROM_BYTES = "1024"
"""Weights from this size go beside the saved graph, which as one file must stay below 2 GB."""


COMPILING = ("OpenVINOExecutionProvider", "TensorrtExecutionProvider")
"""Providers that compile their part of the graph: ONNX Runtime cannot save it, and knows only what they took."""

ASSIGNMENT = "session.record_ep_graph_assignment_info"
"""Configuration entry: keep which node of the graph went to which provider."""


@dataclass(frozen=True, slots=True)
class Executed:
    """The executed graph: its canonical hash, nodes, operator → nodes, and provider → operator → nodes.

    `placement` is of one profiled run: nodes that no run reaches (a branch not taken) are not in it. Of a provider that
    compiles, nobody knows the executed nodes: `nodes` and `histogram` are None, `sha256` is the stored graph's, and
    `placement` says which of the graph's nodes each provider took.
    """

    sha256: str
    nodes: int | None
    histogram: dict[str, int] | None
    placement: dict[str, dict[str, int]]
    placement_sha256: str


def examine(folder: Path, settings: Mapping[str, Any], task: Task, scratch: Path) -> Executed:
    """Load the variant in `folder` under `settings`, save the graph that ONNX Runtime executes, profile one run.

    Costs several times a plain load and as much disk as the weights in `scratch`, all of it freed again. Raises
    WorkError when the session fails, runs on another provider, or `scratch` has too little room.
    """
    if settings["provider"] in COMPILING:
        return _taken(folder, settings, task)
    scratch.mkdir(parents=True, exist_ok=True)
    wanted, free = model_bytes(folder / "model.onnx"), shutil.disk_usage(scratch).free
    # constant folding may keep a weight and a transposed copy of it
    if 2 * wanted > free:
        raise WorkError(f"{scratch}: saving the executed graph wants {2 * wanted >> 20} MiB, {free >> 20} MiB are free")
    with tempfile.TemporaryDirectory(dir=scratch, prefix="executed-") as name:
        saved = Path(name) / "model.onnx"

        def save_and_profile(options: Any) -> None:
            options.optimized_model_filepath = str(saved)
            entry = "session.optimized_model_external_initializers_"
            options.add_session_config_entry(f"{entry}file_name", "weights.bin")
            options.add_session_config_entry(f"{entry}min_size_in_bytes", EXTERNAL_FROM_BYTES)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(name) / "profile")

        timed = _open(folder, settings, task, save_and_profile)
        timed.run()
        events = json.loads(Path(timed.session.end_profiling()).read_text(encoding="utf-8"))
        model = load(saved)
        placed = placement(events)
        return Executed(
            sha256=canonical_sha256(saved),
            nodes=sum(1 for _ in nodes(model)),
            histogram=histogram(model),
            placement=placed,
            placement_sha256=_hash(placed),
        )


def _taken(folder: Path, settings: Mapping[str, Any], task: Task) -> Executed:
    """Examine a session whose provider compiles: load it and ask which nodes went where."""
    timed = _open(folder, settings, task, lambda options: options.add_session_config_entry(ASSIGNMENT, "1"))
    timed.run()
    parts = timed.session.get_provider_graph_assignment_info()
    placed = by_provider((part.ep_name, node.op_type) for part in parts for node in part.get_nodes())
    return Executed(canonical_sha256(folder / "model.onnx"), None, None, placed, _hash(placed))


def _open(folder: Path, settings: Mapping[str, Any], task: Task, adjust: Callable[[Any], None]) -> Any:
    return import_module(ENGINES[settings["engine"]].module).open_session(folder, settings, task, adjust=adjust)


def placement(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return provider → operator → nodes from the events of ONNX Runtime's profile; a node run often counts once."""
    where = {
        (event["name"], event["args"].get("node_index")): (event["args"]["provider"], event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    }
    return by_provider(where.values())


def by_provider(placed: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return provider → operator → nodes, both sorted, from a pair of provider and operator a node."""
    counts = Counter(placed)
    providers = sorted({provider for provider, _ in counts})
    return {p: {op: n for (provider, op), n in sorted(counts.items()) if provider == p} for p in providers}


def _hash(placed: Mapping[str, Mapping[str, int]]) -> str:
    return sha256(json.dumps(placed, sort_keys=True).encode()).hexdigest()
