"""The session of torch that is timed: prefill, decode and generate on one network."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from llama_bench.engines import TimedSession
from llama_bench.engines.cached import SCORED_BYTES, SIDE_BY_SIDE
from llama_bench.engines.failures import failing
from llama_bench.engines.memory import device_bytes
from llama_bench.engines.torch_engine import DEVICES, missing
from llama_bench.engines.torch_runner import Runner
from llama_bench.errors import WorkError
from llama_bench.model.inputs import cache_names, output_names
from llama_bench.model.layers import Pair
from llama_bench.sweep import Model, Workload

if TYPE_CHECKING:
    from llama_bench.engines import Task

Array: TypeAlias = np.ndarray[Any, Any]


class TorchSession(TimedSession):
    """One network and its KV cache; see :class:`llama_bench.engines.TimedSession`.

    A decode's cache is filled once, untimed, and each of its runs writes the same position. With `io: device` inputs
    are on the device before the first run and outputs stay there; with `io: host` each run takes numpy and gives numpy.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], task: Task) -> None:
        why = missing(settings)
        if why is not None:
            raise WorkError(why)
        self.providers: list[str] = [settings["provider"]]
        self.token_seconds: tuple[float, ...] = ()
        self._on_host, self._gpu = settings["io"] == "host", DEVICES[settings["provider"]] == "cuda"
        self._workload = Workload.model_validate(task.workload)
        self._results: dict[str, Any] = {}
        with self._failing("before the first run"), torch.inference_mode():
            self._runner = Runner(folder, settings, Model.model_validate(task.model), self._workload)
            given = np.ascontiguousarray(task.inputs["input_ids"], dtype=np.int64)
            padding = task.inputs.get("attention_mask")
            self._mask = None if padding is None else self._runner.mask(torch.from_numpy(np.array(padding)))
            self._cache: list[Pair] = []
            if self._workload.kind != "prefill":
                self._cache = self._runner.empty(len(given), self._workload.longest)
            if self._workload.kind == "decode":
                self._runner.fill(self._cache, self._device(given[:, :-1]))
                given = np.ascontiguousarray(given[:, -1:])
        with self._failing("before the first run"):
            self._given, self._bound = given, self._device(given)
        if self._runner.compiled:
            self.run()  # which compiles
            self._results = {}

    def run(self) -> None:
        """Execute the workload once; returns when its outputs are complete. Raises WorkError."""
        self._results = {}  # their memory is free again for this run's
        with self._failing("while running"), torch.inference_mode():
            tokens = self._device(self._given) if self._on_host else self._bound
            if self._workload.kind == "generate":
                results: dict[str, Any] = {"tokens": self._generate(tokens)}
            elif self._workload.kind == "decode":
                results = {"logits": self._runner.step(tokens, self._cache, self._workload.longest - 1)}
            else:
                first, kept = self._runner.prefill(tokens, self._mask)
                every = (first, *(tensor for pair in kept for tensor in pair))
                results = dict(zip(output_names(self._runner.model, self._workload), every, strict=False))
            if self._on_host:
                results = {name: host(value) for name, value in results.items()}
            elif self._runner.device == "cuda":
                torch.cuda.synchronize()
        self._results = results

    def _generate(self, tokens: Tensor) -> Array:
        """Return the new tokens [B, m], each the likeliest; every one is brought to the host as it is made."""
        prompt, new_tokens = tokens.shape[1], self._workload.new_tokens or 1
        made = np.empty((len(tokens), new_tokens), dtype=np.int64)
        marks = [time.perf_counter()]
        for i in range(new_tokens):
            if i == 0:
                logits, kept = self._runner.prefill(tokens)
                self._runner.keep(self._cache, kept)
            else:
                logits = self._runner.step(tokens, self._cache, prompt + i - 1)
            tokens = logits[:, -1].argmax(dim=-1, keepdim=True)
            made[:, i] = tokens[:, 0].cpu().numpy()
            marks.append(time.perf_counter())
        self.token_seconds = tuple(after - before for before, after in pairwise(marks))
        return made

    def outputs(self) -> dict[str, Array]:
        """Return the last run's outputs by name, on the host, in fp32; of a decode with its cache.

        Raises WorkError before the first run.
        """
        if not self._results:
            raise WorkError("there are no outputs before the first run")
        results = dict(self._results)
        if self._workload.kind == "decode":
            tensors = [tensor for pair in self._cache for tensor in pair]
            results |= dict(zip(cache_names(self._runner.model, "present"), tensors, strict=True))
        with self._failing("while reading its outputs"):
            return {name: host(value) for name, value in results.items()}

    def score(self, windows: Array) -> Iterator[Array]:
        """Yield the logits [W, vocabulary] of each window; a cache of their own takes those that go token by token.

        What is compiled keeps its shapes: windows stand in the rows of a run, a shorter window of a prefill is filled
        up behind. Raises WorkError for a workload without logits.
        """
        if self._workload.outputs == "hidden":
            raise WorkError("a text cannot be scored: the workload gives hidden states, no logits")
        windows = np.ascontiguousarray(windows, dtype=np.int64)
        at_once = self._workload.outputs == "logits"
        rows = self._workload.batch if at_once or self._runner.compiled else self._side_by_side(windows.shape[1])
        for first in range(0, len(windows), rows):
            some = windows[first : first + rows]
            with self._failing("while scoring"), torch.inference_mode():
                full = self._device(some[np.arange(rows) % len(some)])
                found = self._score_at_once(full) if at_once else self._score_by_token(full)
            yield from found[: len(some)]

    def _score_at_once(self, windows: Tensor) -> Array:
        length, sequence = windows.shape[1], self._bound.shape[1]
        filled = torch.nn.functional.pad(windows, (0, max(0, sequence - length)))
        return host(self._runner.prefill(filled)[0][:, :length])

    def _score_by_token(self, windows: Tensor) -> Array:
        count, length = windows.shape
        cache = self._runner.empty(count, max(length, self._workload.longest))
        steps = [host(self._runner.step(windows[:, t : t + 1], cache, t)) for t in range(length)]
        return np.concatenate(steps, axis=1)

    def _side_by_side(self, length: int) -> int:
        window_bytes = 4 * length * self._runner.model.vocab_size
        return max(1, min(SIDE_BY_SIDE, SCORED_BYTES // window_bytes))

    def _failing(self, when: str) -> AbstractContextManager[None]:
        return failing(when, gpu=self._gpu, who="torch")

    def device_bytes(self) -> int | None:
        """Return the bytes that this process holds on the GPU, by NVML or else by torch; None on a CPU."""
        if self._runner.device != "cuda":
            return None
        return device_bytes() or torch.cuda.memory_reserved()

    def _device(self, tokens: Array) -> Tensor:
        return torch.from_numpy(tokens).to(self._runner.device)


def host(value: Tensor | Array) -> Array:
    """Return numbers on the host: floats as fp32, a copy where they were tensors."""
    if isinstance(value, np.ndarray):
        return value.copy()
    wide = value.float() if value.is_floating_point() else value
    return wide.to("cpu", copy=True).contiguous().numpy()
