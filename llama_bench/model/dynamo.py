"""Export by torch's dynamo exporter, without ever holding the weights: the graph is traced on shapes alone.

The weights are written into the data file beside the graph one after another, each by all threads, so that a model of
any size takes the memory of its largest tensors: the one that is written and the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llama_bench import threads
from llama_bench.errors import WorkError
from llama_bench.model import inputs as model_inputs
from llama_bench.sweep import Model, Workload

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch.onnx import ONNXProgram

Array: TypeAlias = np.ndarray[Any, Any]

EXAMPLE = (2, 3, 4)
"""Sequences, cached and new tokens that a cached model is traced with: none is 0 or 1, which tracing takes as fixed."""

INSIDE_BYTES = 1024
"""Smaller tensors stay inside the graph's file, where they cost less than their place in another."""

ALIGNMENT = 4096
"""Tensors begin at a page of the data file, so that a runtime can map them into memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the network goes: a weight of the graph, which holds it as it is or turned."""

    weight: ir.Value
    turned: bool


def write(model: Model, workload: Workload, path: Path, tensors: Iterable[tuple[str, Array]]) -> None:
    """Write the graph to `path`, static or, of a cached model, of any batch, length and past; its weights beside it.

    `tensors` are the network's parameters and buffers by name, each once and in any order. Raises WorkError when one
    that the graph needs is not among them, and whatever torch's exporter raises.
    """
    import onnx_ir as ir

    program = trace(model, workload)
    places = {name: Place(value, turned=False) for name, value in program.model.graph.initializers.items()}
    if model.constant_folding:
        places |= fold_transposes(program.model.graph)
        program.optimize()
    forget_origin(program.model.graph)
    fill(places, path.with_name(path.name + ".data"), tensors)
    ir.save(program.model, path)


def trace(model: Model, workload: Workload) -> ONNXProgram:
    """Return the graph of `model` as dynamo writes it, unoptimised, its parameters and buffers without values."""
    import torch

    from llama_bench.model import llama

    network = llama.skeleton(model, workload).to("meta")
    arguments = tuple(argument.to("meta") for argument in example(model, workload))
    program = torch.onnx.export(
        network,
        arguments,
        dynamo=True,
        optimize=False,
        input_names=model_inputs.input_names(model),
        output_names=model_inputs.output_names(model, workload),
        opset_version=model.opset,
        dynamic_shapes={"args": dynamic_shapes(model)} if model.cache else None,
        verbose=False,
    )
    assert program is not None
    program.rename_axes({"sequence + past": "past + sequence"})  # one length, which is one only by one name
    weights = program.model.graph.initializers
    for weight in weights.values():
        weight.const_value = None  # torch's have shapes and no bytes
    if model.tie_word_embeddings and "lm_head.weight" in weights:  # the name that torch leaves of the two
        tied = weights.pop("lm_head.weight")
        tied.name = "model.embed_tokens.weight"
        weights.add(tied)
    return program


def example(model: Model, workload: Workload) -> list[Any]:
    """Return the network's arguments to trace it with; of a cached model small ones, since any length may follow."""
    import torch

    from llama_bench.model import llama

    if not model.cache:
        return llama.arguments(model, model_inputs.make_inputs(model, workload), [])
    batch, past, new = EXAMPLE
    given = {"input_ids": np.zeros((batch, new), np.int64), "position_ids": model_inputs.positions(batch, past, new)}
    shape = (batch, model.kv_heads, past, model.head_size)
    # each a tensor of its own: torch takes one that comes twice for one input
    cache = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(model.num_hidden_layers)]
    return llama.arguments(model, given, cache)


def dynamic_shapes(model: Model) -> tuple[dict[int, Any], ...]:
    """Return torch.export's names of the axes that may have any size: batch, sequence and past of a cached model."""
    from torch.export import Dim

    batch, sequence, past = (
        Dim("batch", min=1, max=1 << 12),
        Dim("sequence", min=1, max=1 << 20),
        Dim("past", min=0, max=1 << 20),
    )
    tokens = ({0: batch, 1: sequence},) * 2
    return (*tokens, *({0: batch, 2: past},) * (2 * model.num_hidden_layers))


def fold_transposes(graph: ir.Graph) -> dict[str, Place]:
    """Replace every Transpose of a matrix that nothing else reads by the turned matrix, a weight of its own.

    The exporter's optimiser does the same with weights of any size, but it holds them all. Returns the new weights by
    the names of the matrices.
    """
    import onnx_ir as ir

    places: dict[str, Place] = {}
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is None or not source.is_initializer() or len(source.uses()) > 1:
            continue
        assert source.name is not None and source.shape is not None
        if list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        weight = ir.Value(name=f"{source.name}.T", type=source.type, shape=ir.Shape(reversed(source.shape.dims)))
        node.outputs[0].replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        del graph.initializers[source.name]
        graph.initializers.add(weight)
        places[source.name] = Place(weight, turned=True)
    return places


def fill(places: Mapping[str, Place], path: Path, tensors: Iterable[tuple[str, Array]]) -> None:
    """Write the `tensors` into the file at `path` one after another, and let the graph's weights refer to them there.

    While one is written the next one waits and a third is made.
    """
    import onnx_ir as ir

    wanted = {name: place for name, place in places.items() if place.weight.is_initializer()}
    end = 0
    path.touch()
    with contextlib.closing(threads.ahead(tensors)) as coming:
        for name, tensor in coming:
            if (place := wanted.pop(name, None)) is None:
                continue  # the optimiser found no use for it
            values, label = tensor.T if place.turned else tensor, str(place.weight.name)
            if values.nbytes < INSIDE_BYTES:
                place.weight.const_value = ir.tensor(np.array(values, order="C"), name=label)
                continue
            offset = -(-end // ALIGNMENT) * ALIGNMENT
            with threads.room(path, offset, values.nbytes) as given:
                put(values, given)
            end = offset + values.nbytes
            place.weight.const_value = ir.ExternalTensor(
                path.name,
                offset,
                values.nbytes,
                ir.DataType.from_numpy(values.dtype),
                shape=ir.Shape(values.shape),
                name=label,
                base_dir=path.parent,
            )
    if wanted:
        raise WorkError(f"{path}: nothing was given for weight {next(iter(wanted))}")


def put(values: Array, target: Array) -> None:
    """Copy `values`, a matrix turned or not, or an array of any shape, into the bytes of `target`."""
    there = target.view(values.dtype).reshape(values.shape)
    if values.ndim == 2 and not values.flags.c_contiguous:
        threads.turned(values.T, there)
    else:
        threads.rows(lambda start, end: np.copyto(there[start:end], values[start:end]), values.shape, values.itemsize)


def forget_origin(graph: ir.Graph) -> None:
    """Drop dynamo's notes on where a node comes from, but for its module (`namespace`).

    Stack traces hold the paths of this machine: the same export would have other bytes on another one.
    """
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        kept = node.metadata_props.get("namespace")
        node.metadata_props.clear()
        if kept is not None:
            node.metadata_props["namespace"] = kept
        for value in node.outputs:
            value.metadata_props.clear()
