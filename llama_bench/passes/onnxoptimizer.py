"""The passes of onnxoptimizer, the study's optimiser: each on its own, and its default list under one name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llama_bench.errors import WorkError
from llama_bench.passes import files
from llama_bench.passes.files import EMBED_BYTES, WEIGHTS
from llama_bench.passes.info import PassInfo, Work

if TYPE_CHECKING:
    from onnx import ModelProto

_NO_MODEL = "it cuts the model in two and keeps one half, which is no model of its own"

PASSES: dict[str, PassInfo] = {
    "default": PassInfo("onnxoptimizer's default list: all its fuse_* and eliminate_* passes, in its order."),
    "nop": PassInfo("Does nothing but read and write the model."),
    "adjust_add": PassInfo("Moves the constant of an Add to its second input."),
    "adjust_slice_and_matmul": PassInfo("Puts Slice after MatMul where that leaves the result as it is."),
    "eliminate_common_subexpression": PassInfo("Computes equal nodes with equal inputs once."),
    "eliminate_consecutive_idempotent_ops": PassInfo("Drops the second of two equal idempotent nodes (Ceil, Relu, …)."),
    "eliminate_deadend": PassInfo("Drops nodes whose result nobody reads."),
    "eliminate_duplicate_initializer": PassInfo("Stores equal weights once."),
    "eliminate_identity": PassInfo("Drops Identity nodes."),
    "eliminate_if_with_const_cond": PassInfo("Replaces an If whose condition is constant by the branch taken."),
    "eliminate_nop_cast": PassInfo("Drops a Cast to the type that its input already has."),
    "eliminate_nop_concat": PassInfo("Drops a Concat of one input."),
    "eliminate_nop_dropout": PassInfo("Drops a Dropout with ratio 0."),
    "eliminate_nop_expand": PassInfo("Drops an Expand to the shape that its input already has."),
    "eliminate_nop_flatten": PassInfo("Drops a Flatten of what is flat already."),
    "eliminate_nop_monotone_argmax": PassInfo("Drops a monotone function (Softmax, Exp, …) before ArgMax."),
    "eliminate_nop_pad": PassInfo("Drops a Pad by nothing."),
    "eliminate_nop_reshape": PassInfo("Drops a Reshape to the shape that its input already has."),
    "eliminate_nop_split": PassInfo("Drops a Split into one part."),
    "eliminate_nop_transpose": PassInfo("Drops a Transpose that permutes nothing."),
    "eliminate_nop_with_unit": PassInfo("Drops Mul by 1, Add of 0, And with true and their like."),
    "eliminate_shape_gather": PassInfo("Replaces Gather of a known Shape by a constant."),
    "eliminate_shape_op": PassInfo("Replaces Shape of a known shape by a constant."),
    "eliminate_slice_after_shape": PassInfo("Replaces Slice of a known Shape by a constant."),
    "eliminate_unused_initializer": PassInfo("Drops weights that nobody reads."),
    "extract_constant_to_initializer": PassInfo("Turns Constant nodes into initialisers."),
    "fuse_add_bias_into_conv": PassInfo("Puts an Add after Conv into its bias."),
    "fuse_bn_into_conv": PassInfo("Puts BatchNormalization into the weights of the Conv before it."),
    "fuse_concat_into_reshape": PassInfo("Replaces the Concat that makes a Reshape's shape by a constant with −1."),
    "fuse_consecutive_concats": PassInfo("Joins Concat nodes along one axis."),
    "fuse_consecutive_log_softmax": PassInfo("Replaces Softmax and Log by LogSoftmax."),
    "fuse_consecutive_reduce_unsqueeze": PassInfo("Replaces Reduce* and Unsqueeze by Reduce* that keeps dimensions."),
    "fuse_consecutive_slices": PassInfo("Joins Slice nodes along different axes."),
    "fuse_consecutive_squeezes": PassInfo("Joins Squeeze nodes."),
    "fuse_consecutive_transposes": PassInfo("Joins Transpose nodes."),
    "fuse_consecutive_unsqueezes": PassInfo("Joins Unsqueeze nodes."),
    "fuse_matmul_add_bias_into_gemm": PassInfo("Makes Gemm of 2-D MatMul and Add; follow it with eliminate_deadend."),
    "fuse_pad_into_conv": PassInfo("Puts a Pad by zeros into the Conv after it."),
    "fuse_pad_into_pool": PassInfo("Puts a Pad into the pooling node after it."),
    "fuse_qkv": PassInfo("Joins MatMuls of one input with equal-shaped weights; follow it with eliminate_deadend."),
    "fuse_transpose_into_gemm": PassInfo("Puts a Transpose before Gemm into its transA or transB."),
    "rename_input_output": PassInfo("Renames inputs and outputs; the names are put back, as a variant keeps them."),
    "replace_einsum_with_matmul": PassInfo("Replaces Einsum by MatMul where it is one."),
    "rewrite_where": PassInfo("Turns Where over Not around, which saves the Not."),
    "set_unique_name_for_nodes": PassInfo("Gives every node a name of its own."),
    "lift_lexical_references": PassInfo(
        "Lists what subgraphs capture.",
        refused="it writes attributes that ONNX does not know, and fails on weights that are no inputs",
    ),
    "rewrite_input_dtype": PassInfo(
        "Turns 64-bit inputs into 32-bit ones.", refused="it changes the type of the model's inputs"
    ),
    "split_init": PassInfo("Keeps what can be computed once.", refused=_NO_MODEL),
    "split_predict": PassInfo("Keeps what must be computed in each run.", refused=_NO_MODEL),
}
"""Every pass of onnxoptimizer 0.4.2 and `default`."""

CHILD = Path(__file__).with_name("onnxoptimizer_child.py")


MEMORY_FACTOR = 7
"""Peak memory of onnxoptimizer in models: the file, protobuf, its own graph and the way back (measured: 6–7)."""

TIMEOUT_S = 3600.0


def work(given: Work) -> None:
    """Do one piece of work of this family."""
    apply(given.name, given.source, given.destination)


def apply(name: str, source: Path, destination: Path, *, embed_bytes: int = EMBED_BYTES) -> None:
    """Run the pass `name` on `source`/model.onnx, write `destination`/model.onnx and, above `embed_bytes`, weights.bin.

    A pass that changes nothing gives back the source's own bytes. Raises WorkError when weights are missing or cut
    off, memory is too short, the pass crashes, throws or gives up, or its result is no valid model with the same
    inputs and outputs.
    """
    import onnx

    from llama_bench import graph

    origin = source / graph.MODEL
    before = graph.load(origin)
    _refuse(name, before, source)
    weight_bytes = sum(graph.tensor_bytes(tensor) for tensor in graph.tensors(before))
    if weight_bytes > EMBED_BYTES:
        _check_memory(name, weight_bytes)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".pass-") as scratch:
        made = Path(scratch) / graph.MODEL
        _run(name, origin, made)
        try:
            after = graph.load(made, weights=weight_bytes <= embed_bytes)
            _keep_signature(name, before, after)
            onnx.save_model(after, str(made))
            if graph.canonical_sha256(made) == graph.canonical_sha256(origin):
                files.keep(source, destination)
                return
            onnx.checker.check_model(str(made))
        except (onnx.checker.ValidationError, WorkError) as error:
            raise WorkError(f"onnxoptimizer pass {name}: its result is not usable: {_line(str(error))}") from error
        for file in {made, *(tensor.path for tensor in graph.external_tensors(after, made.parent))}:
            os.replace(file, destination / file.name)


def _refuse(name: str, model: ModelProto, folder: Path) -> None:
    """Refuse what onnxoptimizer would silently lose or leave unread; raises WorkError, also for missing weights."""
    from llama_bench import graph

    # onnxoptimizer reads past a file that is too short and fills up with zeros, so every range is checked here
    graph.external_tensors(model, folder)
    nested = [tensor for inner in list(graph.graphs(model.graph))[1:] for tensor in inner.initializer]
    losses = {
        "model-local functions": bool(model.functions),
        "sparse weights": any(inner.sparse_initializer for inner in graph.graphs(model.graph)),
        "quantization annotations": any(inner.quantization_annotation for inner in graph.graphs(model.graph)),
        "external weights inside a subgraph": any(graph.is_external(tensor) for tensor in nested),
        "an IR version below 3": model.ir_version < 3,
    }
    for loss, found in losses.items():
        if found:
            raise WorkError(f"onnxoptimizer pass {name}: the model has {loss}, which onnxoptimizer does not carry over")


def _check_memory(name: str, weight_bytes: int) -> None:
    import psutil

    wanted, free = MEMORY_FACTOR * weight_bytes, int(psutil.virtual_memory().available)
    if wanted > free:
        raise WorkError(
            f"onnxoptimizer pass {name}: wants {wanted / 2**30:.1f} GiB of free memory "
            f"({MEMORY_FACTOR} × the weights' {weight_bytes / 2**30:.1f} GiB); {free / 2**30:.1f} GiB is free"
        )


def _run(name: str, origin: Path, made: Path) -> None:
    """Run the pass in a process of its own; raises WorkError with the last line of what it said."""
    # -P: this folder holds a module of onnxoptimizer's name, which must not come first on the child's path
    command = [sys.executable, "-P", str(CHILD), str(origin), str(made), WEIGHTS, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise WorkError(f"onnxoptimizer pass {name}: not finished after {TIMEOUT_S:.0f} s") from error
    said = _line(done.stderr) or "it said nothing"
    if done.returncode < 0:
        raise WorkError(f"onnxoptimizer pass {name}: crashed with {signal.Signals(-done.returncode).name}: {said}")
    if done.returncode:
        raise WorkError(f"onnxoptimizer pass {name}: {said}")
    if "unable to parse" in done.stderr:  # it returns the model as it was, with a warning only
        raise WorkError(f"onnxoptimizer pass {name}: {said}")
    if not made.is_file():
        raise WorkError(f"onnxoptimizer pass {name}: wrote no model")


def _keep_signature(name: str, before: ModelProto, after: ModelProto) -> None:
    """Raise WorkError unless inputs and outputs are the same; puts back output shapes that the pass forgot."""
    from llama_bench import graph

    if name == "rename_input_output":
        _put_names_back(before, after)
    (old_inputs, old_outputs), (new_inputs, new_outputs) = graph.signature(before), graph.signature(after)
    for what, old, new in (("inputs", old_inputs, new_inputs), ("outputs", old_outputs, new_outputs)):
        if list(old.items()) != list(new.items()):
            raise WorkError(f"the {what} changed from {old} to {new}")
    for old_value, new_value in zip(before.graph.output, after.graph.output, strict=True):
        new_value.CopyFrom(old_value)


def _put_names_back(before: ModelProto, after: ModelProto) -> None:
    from llama_bench import graph

    old = [value.name for value in (*before.graph.input, *before.graph.output)]
    new = [value.name for value in (*after.graph.input, *after.graph.output)]
    names = dict(zip(new, old, strict=True))
    for inner in graph.graphs(after.graph):
        for value in (*inner.input, *inner.output, *inner.value_info):
            value.name = names.get(value.name, value.name)
        for node in inner.node:
            node.input[:] = [names.get(value, value) for value in node.input]
            node.output[:] = [names.get(value, value) for value in node.output]


def _line(text: str) -> str:
    """Return the last line that says something."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:400]
