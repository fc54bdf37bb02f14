"""The “export” of an own model: its file is taken as it is, checked, and its weights go into the store by content."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from llama_bench.errors import WorkError
from llama_bench.own.describe import check, files_of, locate, sha256
from llama_bench.sweep_own import OwnModel


def take(model: OwnModel, folder: Path) -> dict[str, Any]:
    """Copy the model's file and its external data into the empty `folder` as `model.onnx`, and return the facts.

    The facts are ready for JSON: `nodes` of the main graph, `opset`, `seconds`, `exporter` (what wrote the file, in
    its own words). Raises InputError when the file is not on this machine, WorkError when its content is not what the
    sweep was read with, or when it is no valid ONNX model.
    """
    from llama_bench import graph

    started = time.perf_counter()
    files = unchanged(model)
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / (graph.MODEL if file == files[0] else file.name)
        if target.exists():
            raise WorkError(f"{file}: the data of {files[0].name} goes by the name {graph.MODEL}; name it otherwise")
        shutil.copyfile(file, target)
    check(files[0])
    proto = graph.load(folder / graph.MODEL)
    writer = " ".join(filter(None, (proto.producer_name, proto.producer_version)))
    return {
        "nodes": len(proto.graph.node),
        "seconds": time.perf_counter() - started,
        "exporter": writer or "unknown",
        "opset": model.opset,
    }


def unchanged(model: OwnModel) -> list[Path]:
    """Return the model's files, the graph first. Raises WorkError when they changed since the sweep was read."""
    path = locate(model.onnx, Path())
    files = files_of(path)
    if model.onnx_sha256 is not None and (found := sha256(path, files)) != model.onnx_sha256:
        was = model.onnx_sha256
        raise WorkError(f"{path}: changed since the sweep was read: hash {found[:16]}…, not {was[:16]}…")
    return files
