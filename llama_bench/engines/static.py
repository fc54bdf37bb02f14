"""A prefill of a graph without a KV cache: inputs and outputs are bound once, every run is the same call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llama_bench.engines import TimedSession
from llama_bench.engines.binding import ELEMENT_TYPES, Place, copied, ortvalue, widened
from llama_bench.engines.failures import failing
from llama_bench.engines.memory import device_bytes
from llama_bench.errors import WorkError

LOGITS, TOKENS = "logits", "input_ids"


class StaticSession(TimedSession):
    """One session on a graph of fixed shapes; see :class:`llama_bench.engines.TimedSession`.

    With `io: device` inputs lie on the provider's device before the first run and outputs stay there, in buffers that
    every run reuses; with `io: host` each run takes numpy arrays and gives new ones, as the study did. Raises WorkError
    for inputs that the graph wants and `inputs` lacks.
    """

    token_seconds: tuple[float, ...] = ()

    def __init__(
        self, session: Any, settings: Mapping[str, Any], place: Place, inputs: Mapping[str, np.ndarray[Any, Any]]
    ) -> None:
        self.session = session
        self.providers: list[str] = session.get_providers()
        self.names: list[str] = [output.name for output in session.get_outputs()]
        self._place = place
        self._feed = self._wanted(inputs)
        self._values: dict[str, Any] = {}
        self._results: list[np.ndarray[Any, Any]] = []
        self._ran = False
        with failing("before the first run", gpu=not place.on_host):
            self._binding = self._bind() if settings["io"] == "device" else None

    def run(self) -> None:
        """Execute once; returns when the outputs are complete. Raises WorkError when ONNX Runtime fails."""
        with failing("while running", gpu=not self._place.on_host):
            if self._binding is None:
                self._results = self.session.run(None, self._feed)
            else:
                self.session.run_with_iobinding(self._binding)
                if not self._place.on_host:
                    self._binding.synchronize_outputs()
        self._ran = True

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the outputs of the last run by name, on the host; fp16 and bfloat16 as fp32.

        Raises WorkError before the first run, and after scoring until the next one.
        """
        if not self._ran:
            raise WorkError("there are no outputs before the first run")
        return {name: self._output(name) for name in self.names}

    def score(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the logits [W, vocabulary] of each window, as many windows a run as the graph has rows.

        A window shorter than the graph's sequence is filled up behind, where nothing that counts looks. Raises
        WorkError for longer windows, and for a graph that does not give the logits of all tokens.
        """
        tokens = self._feed.get(TOKENS)
        if tokens is None or LOGITS not in self.names:
            raise WorkError("a text cannot be scored: the graph takes no tokens or gives no logits")
        batch, sequence = tokens.shape
        if windows.shape[1] > sequence:
            raise WorkError(f"windows of {windows.shape[1]} tokens do not fit into a graph of {sequence}")
        for at in range(0, len(windows), batch):
            some = windows[at : at + batch]
            filled = np.zeros_like(tokens)
            filled[:, : windows.shape[1]] = some[np.arange(batch) % len(some)]
            logits = self._scored(filled)
            if logits.shape[1] != sequence:
                raise WorkError(
                    f"a text cannot be scored: the graph gives logits of {logits.shape[1]} token a sequence"
                )
            yield from logits[: len(some), : windows.shape[1]]

    def device_bytes(self) -> int | None:
        """Return the bytes that this process holds on the GPU, None on a CPU."""
        return None if self._place.on_host else device_bytes()

    def _scored(self, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Run with other tokens and put the own ones back; the outputs are then nobody's."""
        own = self._feed[TOKENS].copy()
        try:
            self._set(tokens)
            self.run()
            return self._output(LOGITS)
        finally:
            self._set(own)
            self._ran = False

    def _set(self, tokens: np.ndarray[Any, Any]) -> None:
        self._feed[TOKENS][...] = tokens
        if self._binding is None:
            return
        if not self._place.on_host:
            self._values[TOKENS].update_inplace(self._feed[TOKENS])
        # ONNX Runtime copies what is bound where a plugin provider, or a node on the other side, is to read it
        self._binding.bind_ortvalue_input(TOKENS, self._values[TOKENS])

    def _output(self, name: str) -> np.ndarray[Any, Any]:
        at = self.names.index(name)
        with failing("while reading its outputs", gpu=not self._place.on_host):
            return widened(self._results[at]) if self._binding is None else copied(self._binding.get_outputs()[at])

    def _wanted(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        wanted = [value.name for value in self.session.get_inputs()]
        for name in wanted:
            if name not in inputs:
                raise WorkError(f"the model wants an input {name!r} that the workload does not give")
        # copies, because scoring writes into them
        return {name: np.array(inputs[name], order="C") for name in wanted}

    def _bind(self) -> Any:
        """Bind the inputs, already on the device, and every output to a buffer of its own."""
        from onnxruntime import OrtValue

        place, binding = self._place, self.session.io_binding()
        for name, array in self._feed.items():
            self._values[name] = ortvalue(array, place)
            binding.bind_ortvalue_input(name, self._values[name])
        for output in self.session.get_outputs():
            if not all(isinstance(size, int) for size in output.shape):
                # a shape that the graph does not say: the first run makes the buffer, later ones write into it
                binding.bind_output(output.name, place.device, place.device_id)
                continue
            element_type = ELEMENT_TYPES.get(output.type)
            if element_type is None:
                raise WorkError(f"output {output.name!r} is a {output.type}, which cannot be bound")
            shape = list(output.shape)
            buffer = OrtValue.ortvalue_from_shape_and_type(shape, element_type, place.device, place.device_id)
            binding.bind_ortvalue_output(output.name, buffer)
        return binding
