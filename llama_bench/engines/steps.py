"""Steps of a graph with a KV cache: tokens in, predictions out, keys and values kept where the next step needs them.

Three ways of keeping them. *Shared*: a graph with GroupQueryAttention reads and writes one buffer of fixed length,
bound once as past and as present. *Growing*: of a traced graph each step gives a longer cache, which is the next step's
past; nothing is copied through the host. *On the host*: numpy in, numpy out. B: batch, S: new tokens, D: width of a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from llama_bench.engines.binding import BFLOAT16, DTYPES, copied, on_host, widened, zeros
from llama_bench.engines.cached_graph import Feed, Graph
from llama_bench.errors import WorkError

UNCAPTURED = "-1"
"""The value of ONNX Runtime's `gpu_graph_id` that runs without capturing or replaying a CUDA graph."""


class Steps(Protocol):
    """Runs a graph step by step on one batch; `filled` tokens are in its cache."""

    filled: int

    def step(self, tokens: np.ndarray[Any, Any]) -> None:
        """Run the tokens [B, S] that follow those in the cache; returns when the outputs are complete."""

    def output(self) -> np.ndarray[Any, Any]:
        """Return the last step's first output [B, S or 1, width] on the host, in fp32; the next step may change it."""

    def cache(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return every `present.*` on the host as far as it is filled, [B, heads, filled, D]."""

    def state(self) -> Any:
        """Return what `restore` goes back to."""

    def restore(self, state: Any) -> None:
        """Go back to where `state` was taken."""


def make_steps(graph: Graph, io: str, batch: int, longest: int, captured: int | None = None) -> Steps:
    """Return an empty cache of `batch` sequences of up to `longest` tokens and the steps that fill it.

    `captured` is the S of the steps that a session with CUDA graphs captures and replays; all others run without.
    """
    if io == "host":
        return HostSteps(graph, batch, longest)
    if graph.shared and graph.in_place:
        return SharedSteps(graph, batch, longest, captured)
    return GrowingSteps(graph, batch, longest)


class SharedSteps:
    """Steps in one buffer of `longest` tokens a layer: every address is bound once for each S."""

    def __init__(self, graph: Graph, batch: int, longest: int, captured: int | None) -> None:
        self.filled = 0
        self._graph, self._batch, self._longest, self._captured = graph, batch, longest, captured
        self._buffers = [zeros([batch, e.heads, longest, e.width], e.element_type, graph.place) for e in graph.entries]
        self._bound: dict[int, tuple[Feed, Any, Any]] = {}
        self._last: Any = None

    def step(self, tokens: np.ndarray[Any, Any]) -> None:
        new = tokens.shape[1]
        if new not in self._bound:
            self._bound[new] = self._bind(new)
        feed, self._last, options = self._bound[new]
        total = self.filled + new
        # A captured graph keeps the number it was captured with. The operator goes by seqlens_k, and by this one only
        # to tell a step from a prompt and to see that the buffer is long enough.
        replayed = self._graph.replays and new == self._captured == 1
        feed.set(tokens, self.filled, self._longest if replayed else total)
        if not self._graph.place.on_host and not replayed:
            # what a node on the host is to read, ONNX Runtime copies when it is bound
            for name, value in feed.values.items():
                self._last.bind_ortvalue_input(name, value)
        self._graph.session.run_with_iobinding(self._last, options)
        if not self._graph.place.on_host:
            self._last.synchronize_outputs()
        self.filled = total

    def output(self) -> np.ndarray[Any, Any]:
        from onnxruntime import OrtValue

        return on_host(OrtValue(self._last.get_outputs_as_ortvaluevector()[0]))

    def cache(self) -> dict[str, np.ndarray[Any, Any]]:
        pairs = zip(self._graph.entries, self._buffers, strict=True)
        return {entry.present: on_host(buffer)[:, :, : self.filled].copy() for entry, buffer in pairs}

    def state(self) -> int:
        return self.filled

    def restore(self, state: int) -> None:
        self.filled = state  # what lies behind is neither read nor missed

    def _bind(self, new: int) -> tuple[Feed, Any, Any]:
        graph = self._graph
        feed, binding = Feed(graph, self._batch, new), graph.session.io_binding()
        for name, value in feed.values.items():
            binding.bind_ortvalue_input(name, value)
        if graph.width is None:  # the first run makes the buffer, later ones write into it
            binding.bind_output(graph.output, graph.place.device, graph.place.device_id)
        else:
            shape = [self._batch, graph.rows or new, graph.width]
            binding.bind_ortvalue_output(graph.output, zeros(shape, graph.output_type, graph.place))
        for entry, buffer in zip(graph.entries, self._buffers, strict=True):
            binding.bind_ortvalue_input(entry.past, buffer)
            binding.bind_ortvalue_output(entry.present, buffer)
        return feed, binding, _options(graph, new == self._captured)


def _options(graph: Graph, captured: bool) -> Any:
    """Return RunOptions that keep a run out of the CUDA graph, None where there is nothing to say."""
    if not graph.replays or captured:
        return None
    from onnxruntime import RunOptions

    options = RunOptions()
    options.add_run_config_entry("gpu_graph_id", UNCAPTURED)
    return options


class GrowingSteps:
    """Steps of which each gives the whole cache anew, one step longer; ONNX Runtime's arena holds old and new.

    A graph for a shared cache takes and gives `longest` tokens in every step, of which `filled` count.
    """

    def __init__(self, graph: Graph, batch: int, longest: int) -> None:
        from onnxruntime import OrtDevice, RunOptions

        self.filled = 0
        self._graph, self._batch = graph, batch
        self._feeds: dict[int, Feed] = {}
        tokens = longest if graph.shared else 0
        self._empty = [zeros([batch, e.heads, tokens, e.width], e.element_type, graph.place) for e in graph.entries]
        self._past: Sequence[Any] = [value._get_c_value() for value in self._empty]
        self._output: Any = None
        self._options = RunOptions()
        self._outputs = [graph.output, *(entry.present for entry in graph.entries)]
        self._inputs = [*graph.inputs, *(entry.past for entry in graph.entries)]
        device = OrtDevice.make(graph.place.device, graph.place.device_id)._get_c_device()
        self._devices = [device] * len(self._outputs)

    def step(self, tokens: np.ndarray[Any, Any]) -> None:
        # vectors of values: binding the cache by name again in every step would cost twice as much
        from onnxruntime.capi.onnxruntime_pybind11_state import OrtValueVector

        new = tokens.shape[1]
        if new not in self._feeds:
            self._feeds[new] = Feed(self._graph, self._batch, new)
        self._feeds[new].set(tokens, self.filled, self.filled + new)
        given, made = OrtValueVector(), OrtValueVector()
        for value in self._feeds[new].values.values():
            given.push_back(value._get_c_value())
        for value in self._past:
            given.push_back(value)
        session = self._graph.session
        session.run_with_ortvaluevector(self._options, self._inputs, given, self._outputs, made, self._devices)
        self._output, *self._past = made
        self.filled += new

    def output(self) -> np.ndarray[Any, Any]:
        return on_host(_value(self._output))

    def cache(self) -> dict[str, np.ndarray[Any, Any]]:
        pairs = zip(self._graph.entries, self._past, strict=True)
        return {entry.present: copied(_value(value))[:, :, : self.filled] for entry, value in pairs}

    def state(self) -> tuple[int, Sequence[Any]]:
        return self.filled, self._past

    def restore(self, state: tuple[int, Sequence[Any]]) -> None:
        self.filled, self._past = state


def _value(value: Any) -> Any:
    from onnxruntime import OrtValue

    return OrtValue(value)


class HostSteps:
    """Steps with numpy in and numpy out, the cache too: what a first program does."""

    def __init__(self, graph: Graph, batch: int, longest: int) -> None:
        if any(entry.element_type == BFLOAT16 for entry in graph.entries):
            raise WorkError("numpy has no bfloat16, so a KV cache of that type cannot go through the host: io: device")
        self.filled = 0
        self._graph = graph
        tokens = longest if graph.shared else 0
        shapes = [((batch, e.heads, tokens, e.width), DTYPES[e.element_type]) for e in graph.entries]
        self._past = [np.zeros(*shape) for shape in shapes]
        self._feed = Feed(graph, batch, 1)
        self._output: np.ndarray[Any, Any] | None = None

    def step(self, tokens: np.ndarray[Any, Any]) -> None:
        batch, new = tokens.shape
        if self._feed.arrays["input_ids"].shape != tokens.shape:
            self._feed = Feed(self._graph, batch, new)
        self._feed.set(tokens, self.filled, self.filled + new)
        given = {e.past: past for e, past in zip(self._graph.entries, self._past, strict=True)}
        names = [self._graph.output, *(entry.present for entry in self._graph.entries)]
        self._output, *self._past = self._graph.session.run(names, {**self._feed.arrays, **given})
        self.filled += new

    def output(self) -> np.ndarray[Any, Any]:
        assert self._output is not None
        return widened(self._output)

    def cache(self) -> dict[str, np.ndarray[Any, Any]]:
        pairs = zip(self._graph.entries, self._past, strict=True)
        return {entry.present: widened(past[:, :, : self.filled]).copy() for entry, past in pairs}

    def state(self) -> tuple[int, list[np.ndarray[Any, Any]]]:
        return self.filled, self._past

    def restore(self, state: tuple[int, list[np.ndarray[Any, Any]]]) -> None:
        self.filled, self._past = state
