"""What a graph with a KV cache takes and gives, and the inputs of its steps besides the cache.

B: batch, S: new tokens, D: width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_bench.engines.binding import ELEMENT_TYPES, HOST, Place, ortvalue
from llama_bench.errors import WorkError

PAST, PRESENT = "past.", "present."

IN_PLACE = ("CPUExecutionProvider", "CUDAExecutionProvider")
"""Providers whose sessions read bound inputs where they lie, so that one buffer can be past and present."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Keys or values of one layer: names of input and output, heads, width of a head as it is stored, type."""

    past: str
    present: str
    heads: int
    width: int
    element_type: int


@dataclass(frozen=True, slots=True)
class Graph:
    """What a session with a cache takes and gives: `inputs` besides the cache, first the output that is no cache.

    `rows` is how many tokens the first output has where that does not depend on S, `width` its last dimension where
    the graph says it, `replays` whether runs are captured as CUDA graphs, `in_place` whether the session reads what is
    bound where it lies (for a plugin provider ONNX Runtime copies inputs when they are bound).
    """

    session: Any
    place: Place
    inputs: tuple[str, ...]
    entries: tuple[Entry, ...]
    output: str
    output_type: int
    rows: int | None
    width: int | None
    shared: bool
    replays: bool
    in_place: bool


def describe(session: Any, settings: Mapping[str, Any], place: Place, rows: int | None) -> Graph:
    """Return what the graph of an InferenceSession takes and gives. Raises WorkError for what cannot be fed or kept."""
    outputs = {value.name: value for value in session.get_outputs()}
    named = [value for value in session.get_inputs() if value.name.startswith(PAST)]
    entries = tuple(_entry(value) for value in named)
    for entry in entries:
        if entry.present not in outputs:
            raise WorkError(f"the model takes {entry.past!r} and does not give {entry.present!r}")
    first = next((value for value in outputs.values() if not value.name.startswith(PRESENT)), None)
    if first is None:
        raise WorkError("the model gives nothing but its KV cache")
    inputs = tuple(value.name for value in session.get_inputs() if not value.name.startswith(PAST))
    shared, in_place = "seqlens_k" in inputs, settings["provider"] in IN_PLACE
    replays = str(settings["provider_options"].get("enable_cuda_graph", "0")) == "1"
    if replays and not shared:
        raise WorkError(
            "a CUDA graph replays fixed addresses, and this model's KV cache moves as it grows: fuse its attention"
        )
    width = first.shape[-1] if first.shape and isinstance(first.shape[-1], int) else None
    return Graph(session, place, inputs, entries, first.name, _type(first), rows, width, shared, replays, in_place)


def _entry(value: Any) -> Entry:
    heads, width = (value.shape[1], value.shape[3]) if len(value.shape) == 4 else (None, None)
    if not isinstance(heads, int) or not isinstance(width, int):
        raise WorkError(
            f"input {value.name!r} is {list(value.shape)}, not [batch, heads, tokens, width] with two numbers"
        )
    return Entry(value.name, PRESENT + value.name.removeprefix(PAST), heads, width, _type(value))


def _type(value: Any) -> int:
    if value.type not in ELEMENT_TYPES:
        raise WorkError(f"{value.name!r} is a {value.type}, which cannot be bound")
    return ELEMENT_TYPES[value.type]


class Feed:
    """The inputs of steps of S tokens besides the cache, at fixed addresses: `set` writes into them.

    What it writes is what :func:`llama_bench.model.inputs.step_inputs` returns; that module would bring pydantic into
    the timed process.
    """

    def __init__(self, graph: Graph, batch: int, new: int) -> None:
        scalars = {value.name: value.shape for value in graph.session.get_inputs()}
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {
            "input_ids": ((batch, new), np.int64),
            "position_ids": ((batch, new), np.int64),
            "seqlens_k": ((batch,), np.int32),
            "total_sequence_length": ((1,) * len(scalars.get("total_sequence_length", ())), np.int32),
        }
        for name in graph.inputs:
            if name not in shapes:
                raise WorkError(f"the model wants an input {name!r} that the workload does not give")
        self._new = np.arange(new)
        self.arrays = {name: np.zeros(*shapes[name]) for name in graph.inputs}
        # the operator reads this one on the host, whatever it runs on
        places = {name: HOST if name == "total_sequence_length" else graph.place for name in graph.inputs}
        self.values = {name: ortvalue(self.arrays[name], place) for name, place in places.items()}
        self._elsewhere = [name for name, place in places.items() if not place.on_host]

    def set(self, tokens: np.ndarray[Any, Any], past: int, total: int) -> None:
        """Write the tokens [B, S] that follow `past` others; `total` is what the attention is told to look at."""
        arrays = self.arrays
        for name, values in (
            ("input_ids", tokens),
            ("position_ids", self._new + past),
            ("seqlens_k", past + len(self._new) - 1),
            ("total_sequence_length", total),
        ):
            if name in arrays:
                arrays[name][...] = values
        for name in self._elsewhere:
            self.values[name].update_inplace(arrays[name])
