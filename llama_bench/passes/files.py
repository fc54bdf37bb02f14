"""Models as onnx_ir holds them: weights stay in their files until they are written, one at a time in threads."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import WorkError

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto

WEIGHTS = "weights.bin"
"""The one external data file of a large result."""

EMBED_BYTES = 64 << 20
"""Weights up to here are written into model.onnx itself."""

EXTERNAL_FROM_BYTES = 1024
"""Of a model whose weights go into a file of their own, tensors up to this size stay in the graph's."""

SHAPE_SIZE = 8
"""A constant of so many numbers may be a shape or axes; larger ones are weights and masks."""


def read(folder: Path) -> ir.Model:
    """Read `folder`/model.onnx; weights outside it are memory-mapped when they are looked at.

    Raises WorkError when the file is no model, or when its weights are missing or cut off.
    """
    from llama_bench import graph

    return from_proto(graph.load(folder / graph.MODEL), folder)


def from_proto(proto: ModelProto, folder: Path) -> ir.Model:
    """Return `proto`, whose weights outside it lie in `folder`; raises WorkError as :func:`read` does."""
    import onnx_ir as ir

    from llama_bench import graph

    graph.external_tensors(proto, folder)  # checks every range before anything is done
    model = ir.serde.deserialize_model(proto)
    for inner in model.graphs():
        for value in inner.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                value.const_value = _by_path(tensor, folder)
    return model


def _by_path(tensor: ir.ExternalTensor, folder: Path) -> ir.ExternalTensor:
    """Return `tensor` by its whole path: given a base folder, onnx_ir refuses the hard links that a store hands out."""
    import onnx_ir as ir

    path = (folder / tensor.location).absolute()
    return ir.ExternalTensor(
        str(path), tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
    )


def prepare(model: ir.Model) -> None:
    """Write down what the fusions look at: shapes and axes as numbers, and the shape of every value."""
    import onnx_ir as ir
    from onnxscript import optimizer

    def weights_stay(node: ir.Node) -> bool | None:
        tensors = [ir.convenience.get_const_tensor(value) for value in node.inputs if value is not None]
        return False if any(tensor is not None and tensor.size > SHAPE_SIZE for tensor in tensors) else None

    infer_shapes(model)
    optimizer.fold_constants(model, should_fold=weights_stay)
    infer_shapes(model)


def infer_shapes(model: ir.Model) -> None:
    """Write down the shape of every value as far as ONNX can tell; TorchScript's exports hold none."""
    import onnx_ir.passes.common as common

    common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def write(model: ir.Model, folder: Path, *, embed_bytes: int = EMBED_BYTES) -> None:
    """Write `folder`/model.onnx and, when its weights are above `embed_bytes`, weights.bin beside it.

    Holds no more of a weight than the threads have in work; `model` is not for use afterwards.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    from llama_bench import graph
    from llama_bench.passes import made

    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    values = [value for inner in model.graphs() for value in inner.initializers.values()]
    large = sum(map(_nbytes, values)) > embed_bytes
    for value in values:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not (large and tensor.nbytes > EXTERNAL_FROM_BYTES):
            value.const_value = _inside(tensor)
    if large:
        made.outside([value for value in values if _nbytes(value) > EXTERNAL_FROM_BYTES], folder / WEIGHTS)
    ir.save(model, folder / graph.MODEL)


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _inside(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Return `tensor` with its bytes, to be written into the graph's own file."""
    import onnx_ir as ir
    from onnx import TensorProto

    raw = TensorProto(name=tensor.name, data_type=int(tensor.dtype), raw_data=tensor.tobytes())
    raw.dims.extend(tensor.shape.numpy())
    return ir.serde.TensorProtoTensor(raw)


def keep(source: Path, destination: Path) -> None:
    """Give back the model as it is: the graph byte for byte, its weights as hard links where the disk allows."""
    from llama_bench import graph

    model = graph.load(source / graph.MODEL)
    shutil.copyfile(source / graph.MODEL, destination / graph.MODEL)
    for path in {tensor.path for tensor in graph.external_tensors(model, source)}:
        target = destination / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, target)


@contextlib.contextmanager
def result(label: str, source: Path, destination: Path) -> Iterator[Path]:
    """Give a folder to write a library's result into, and make that the result.

    Where it computes what the source does with the same nodes and weights, the source's own bytes are the result.
    Raises WorkError, naming the pass by its `label`, when it has other inputs or outputs.
    """
    from llama_bench import graph

    with tempfile.TemporaryDirectory(dir=destination, prefix=".pass-") as scratch:
        yield Path(scratch)
        made, origin = Path(scratch) / graph.MODEL, source / graph.MODEL
        for what, old, new in zip(("inputs", "outputs"), *(_signature(path) for path in (origin, made)), strict=True):
            if old != new:
                raise WorkError(f"{label}: the {what} changed from {old} to {new}")
        if graph.canonical_sha256(made) == graph.canonical_sha256(origin):
            keep(source, destination)
            return
        for file in Path(scratch).iterdir():
            file.replace(destination / file.name)


def _signature(path: Path) -> tuple[list[Any], list[Any]]:
    from llama_bench import graph

    inputs, outputs = graph.signature(graph.load(path))
    return list(inputs.items()), list(outputs.items())
