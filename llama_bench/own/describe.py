"""What an ONNX file says of itself when a sweep is read: inputs, weights, opset, and the hash of all its bytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench import versions
from llama_bench.errors import InputError, WorkError, nearest
from llama_bench.model import cached
from llama_bench.own import count, infer
from llama_bench.sweep_own import OwnCost, OwnModel

if TYPE_CHECKING:
    from onnx import ModelProto

CODE = ("own.describe", "own.count", "own.infer", "external_data", "graph")
"""What a description depends on besides the file."""

DRAWS = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
"""Operators whose answers are others in every run, so that nothing can be checked against them."""


def describe(onnx: str, base: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an own model that follow from its file and the `inputs` that a sweep gives: see OwnModel.

    A relative path starts from `base`. Reads the graph without its weights, and once all bytes for their hash; both
    are remembered by size and time of change. Raises InputError when the file is no usable model, and
    :class:`llama_bench.own.infer.Unclear`, which says at which key, when an input cannot be inferred or a given one
    does not fit.
    """
    path = locate(onnx, base)
    try:
        known = cached.remembered(["own", versions.code(*CODE)], [path], lambda: _description(path))
        files = [path, *(path.parent / name for name in known["data"])]
        digest = sha256(path, files)
    except WorkError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise InputError(f"{error.filename or path}: {error.strerror or error}") from None
    inputs = infer.inputs(path, known["inputs"], given)
    keys = ("opset", "weight_bytes", "product_bytes", "reduced")
    return {"onnx": str(path), "onnx_sha256": digest, "inputs": inputs, **{key: known[key] for key in keys}}


def locate(onnx: str, base: Path) -> Path:
    """Return the file's whole path; raises InputError, with the nearest name, when it is not there."""
    path = Path(os.path.abspath(base / Path(onnx).expanduser()))
    if path.is_file():
        return path
    there = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    why = "a folder, not an ONNX file" if path.is_dir() else "no such file"
    raise InputError(f"{path}: {why}{nearest(path.name, there)}")


def files_of(path: Path) -> list[Path]:
    """Return the file and those of its external data. Raises WorkError when one is missing, cut off or elsewhere."""
    from llama_bench import graph

    model = graph.load(path)
    for tensor in graph.tensors(model):
        if graph.is_external(tensor):
            _beside(path, tensor.name, next((e.value for e in tensor.external_data if e.key == "location"), ""))
    return [path, *sorted({tensor.path for tensor in graph.external_tensors(model, path.parent)})]


def check(path: Path) -> None:
    """Raise WorkError, with ONNX's own reason, when the file is no valid model or its shapes contradict each other."""
    import onnx

    try:
        model = count.light(path)
        # strict inference stops at contradictions, and leaves out what it cannot know
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(count.open_weights(model))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WorkError(f"{path}: no valid ONNX model: {' '.join(str(error).split())[:300]}") from None


def sha256(path: Path, files: list[Path]) -> str:
    """Return the hash of the file, or of the file and the names and contents of its external data."""
    if files == [path]:
        return cached.sha256(path)
    hashes = {file.name if file != path else "": cached.sha256(file) for file in files}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def cost(model: OwnModel, batch: int, sequence: int) -> OwnCost:
    """Count what a run takes; the file is looked at once for each size. Raises InputError: sizes that do not fit."""
    infer.check(model, batch, sequence)
    path = Path(model.onnx)
    shapes = {name: list(given.numbers(batch, sequence)) for name, given in model.inputs.items()}
    what = ["own cost", versions.code(*CODE), str(model.onnx_sha256), json.dumps(shapes)]
    try:
        found = cached.remembered(what, [path], lambda: count.count(path, shapes))
    except WorkError as error:
        raise InputError(str(error)) from None
    return OwnCost(batch=batch, sequence=sequence, **found)


def summary(model: OwnModel) -> str:
    """Say what the model is and what its answers are checked against, for tables and cards."""
    size = f"opset {model.opset}, weights of {model.weight_bytes / 1e6:.3g} MB"
    why = next((cost.unbounded for cost in model.costs if cost.unbounded), None)
    return (
        f"those of {Path(model.onnx).name} ({size}); answers are checked against that file itself in ONNX Runtime on "
        "the CPU, nothing optimised" + (f"; of its limit nothing is known: {why}" if why else "")
    )


def _beside(path: Path, tensor: str, location: str) -> None:
    """Raise WorkError unless external data lies beside the model: a sweep reads no other files of this machine."""
    if not location or location in (".", "..") or set(location) & set("/\\\0"):
        raise WorkError(f"{path}: tensor {tensor!r} keeps its data at {location!r}, which is no file beside it")


def _description(path: Path) -> dict[str, Any]:
    from llama_bench import graph

    files = files_of(path)
    check(path)
    model = graph.load(path)
    _refuse(path, model)
    facts = count.weights(model)
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    return {**facts, "opset": opset, "data": [file.name for file in files[1:]], "inputs": list(_inputs(path, model))}


def _refuse(path: Path, model: ModelProto) -> None:
    """Raise WorkError for a graph that cannot be compared with itself or whose outputs cannot be kept."""
    from llama_bench import graph

    drawn = next((node for node in graph.nodes(model) if node.op_type in DRAWS and node.domain == ""), None)
    if drawn is not None:
        raise WorkError(f"{path}: node {drawn.name!r} ({drawn.op_type}) draws other numbers in every run")
    for value in model.graph.output:
        if value.type.HasField("tensor_type") and infer.numpy_word(value.type.tensor_type.elem_type) is None:
            kind = infer.onnx_word(value.type.tensor_type.elem_type)
            raise WorkError(f"{path}: output {value.name!r} is {kind}, which cannot be compared")


def _inputs(path: Path, model: ModelProto) -> Iterator[dict[str, Any]]:
    """Yield name, dtype, shape (numbers, symbols, None) and table rows of each input that has no value of its own."""
    has_value = {tensor.name for tensor in model.graph.initializer}
    rows = count.table_rows(model)
    for value in model.graph.input:
        if value.name in has_value:
            continue
        kind = value.type.tensor_type
        word = infer.numpy_word(kind.elem_type) if value.type.HasField("tensor_type") else None
        if word is None:
            what = infer.onnx_word(kind.elem_type) if value.type.HasField("tensor_type") else "no tensor"
            raise WorkError(f"{path}: input {value.name!r} is {what}, for which nothing can be made here")
        known = kind.HasField("shape")
        sizes = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim]
        yield {"name": value.name, "dtype": word, "shape": sizes if known else None, "rows": rows.get(value.name)}
