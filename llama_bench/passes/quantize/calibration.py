"""Running a graph on text, part after part: what each linear layer sees, without ever holding the whole model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llama_bench.errors import WorkError
from llama_bench.passes.checkpoint import windows
from llama_bench.passes.info import Work
from llama_bench.passes.quantize.options import Calibrated, window_of

if TYPE_CHECKING:
    import onnx_ir as ir

Array: TypeAlias = np.ndarray[Any, Any]


def feeds(work: Work, options: Calibrated, graph: ir.Graph) -> list[dict[str, Array]]:
    """Return the inputs of `graph` by name for each run on the text, every run a window or a batch of windows.

    A cached graph starts from an empty cache. Raises WorkError when the text is shorter than a window, or `window`
    is not the number of tokens that a graph of one length takes.
    """
    inputs = {value.name or "": value for value in graph.inputs}
    shape = inputs["input_ids"].shape
    assert shape is not None
    batch, length = (size if isinstance(size, int) else None for size in shape)
    if length and options.window not in (None, length):
        raise WorkError(f"the graph takes {length} tokens at a time, not a window of {options.window}")
    length = length or window_of(options, work.model)
    batch = batch or 1
    found = windows(work.model, options, length, options.calibration_tokens)
    runs = -(-len(found) // batch)
    tokens = np.resize(found, (runs, batch, length))  # begins anew where the last batch is not full
    return [{name: _fed(name, value, some) for name, value in inputs.items()} for some in tokens]


def _fed(name: str, value: ir.Value, tokens: Array) -> Array:
    """Return what the input `value` gets: an empty cache, a mask of ones, or what the tokens and positions say."""
    from llama_bench.model.inputs import step_inputs

    if name.startswith("past."):
        assert value.shape is not None and value.dtype is not None
        heads, size = value.shape[1], value.shape[3]
        assert isinstance(heads, int) and isinstance(size, int)
        return np.zeros((len(tokens), heads, 0, size), value.dtype.numpy())
    known = {**step_inputs(tokens, 0), "attention_mask": np.ones_like(tokens)}
    if name not in known:
        raise WorkError(f"the graph wants an input {name!r} that calibration does not know")
    return known[name]


class Forward:
    """Goes through a graph on all of `feeds`, up to one value after another, and computes every node once.

    Only the part between two values is loaded at a time, and of what was computed only what is still needed is kept:
    so a layer sees what the quantised layers before it make, and memory holds one part's weights and the live values.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Mapping[str, Array]], folder: Path) -> None:
        self.model, self.folder = model, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.live: list[dict[ir.Value, Array]] = [
            {value: feed[value.name or ""] for value in model.graph.inputs} for feed in feeds
        ]
        self.done: set[ir.Node] = set()

    def at(self, *values: ir.Value) -> list[list[Array]]:
        """Return each of `values` of every run. They must be asked for in the order in which the graph has them."""
        if any(value not in self.live[0] for value in values):
            self._advance(values)
        return [[run[value] for run in self.live] for value in values]

    def divide(self, value: ir.Value, by: Array) -> None:
        """Divide what is known of `value` by `by`, as the graph now does where it makes it."""
        for run in self.live:
            run[value] = run[value] / by

    def _advance(self, values: Sequence[ir.Value]) -> None:
        nodes = {node for value in values for node in self._before(value)}
        self.done |= nodes
        made = [output for node in self.model.graph if node in nodes for output in node.outputs]
        wanted = [output for output in made if output in values or self._is_needed(output)]
        read = {x for node in nodes for x in node.inputs if x is not None}
        given = [x for x in self.live[0] if x in read]
        session, names = self._session(given, wanted)
        for run in self.live:
            fed = {name: run[x] for name, x in zip(names, given, strict=True)}
            run.update(zip(wanted, session.run([x.name for x in wanted], fed), strict=True))
            for gone in [x for x in run if x not in values and not self._is_needed(x)]:
                del run[gone]

    def _before(self, value: ir.Value) -> set[ir.Node]:
        """Return the nodes that `value` still takes."""
        nodes: set[ir.Node] = set()
        open_values = [value]
        while open_values:
            current = open_values.pop()
            node = None if current in self.live[0] else current.producer()
            if node is not None and node not in nodes:
                nodes.add(node)
                open_values += [x for x in node.inputs if x is not None]
        return nodes

    def _is_needed(self, value: ir.Value) -> bool:
        return any(use.node not in self.done for use in value.uses())

    def _session(self, given: Sequence[ir.Value], wanted: Sequence[ir.Value]) -> tuple[Any, list[str]]:
        """Return a session for the part of the graph from `given` to `wanted`, and the names of its inputs."""
        import onnx_ir as ir
        import onnxruntime

        from llama_bench import graph
        from llama_bench.passes import files

        part = ir.convenience.extract(self.model.graph, given, wanted)
        for x, source in zip(part.inputs, given, strict=True):
            like = self.live[0][source]
            x.type = ir.TensorType(ir.DataType.from_numpy(like.dtype))
            x.shape = ir.Shape([None] * like.ndim)
        names = [x.name or "" for x in part.inputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # parts are many and short
        try:
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".part-") as scratch:
                files.write(ir.Model(part, ir_version=self.model.ir_version), Path(scratch))
                path = Path(scratch) / graph.MODEL
                return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), names
        except Exception as error:  # onnxruntime's exceptions share no base but Exception
            reason = " ".join(str(error).split())[:300]
            raise WorkError(f"the part up to node {_maker(wanted[-1])} does not run on the CPU: {reason}") from error


def _maker(value: ir.Value) -> str:
    node = value.producer()
    return f"{node.name} ({node.op_type})" if node is not None else str(value.name)
