"""Prefill, decode and generate with a KV cache: one graph, from an empty cache, a filled one, or token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from llama_bench.engines import TimedSession
from llama_bench.engines.binding import Place
from llama_bench.engines.cached_graph import describe
from llama_bench.engines.failures import failing
from llama_bench.engines.memory import device_bytes
from llama_bench.engines.steps import make_steps
from llama_bench.errors import WorkError

if TYPE_CHECKING:
    from llama_bench.engines import Task

SIDE_BY_SIDE = 8
"""Windows that are scored together token by token: a step of eight costs little more than a step of one.

Where activations are quantised by tensor, windows share a scale, and the answer is a little worse than one by one would
be: an arm is judged too strictly, never too kindly.
"""

SCORED_BYTES = 1 << 28
"""Logits that are held at once while scoring."""


class CachedSession(TimedSession):
    """One session on a graph with a KV cache; see :class:`llama_bench.engines.TimedSession`.

    A run of `prefill` is one step of all tokens from an empty cache; of `decode` the last given token's step on a cache
    that those before it fill once, untimed and through this session; of `generate` a step of the prompt and one of each
    new token but the last, each token the first of the likeliest ones. Every run starts from the same cache, so every
    run does the same. Raises WorkError for a graph that cannot be fed.
    """

    def __init__(self, session: Any, settings: Mapping[str, Any], place: Place, task: Task) -> None:
        self.session = session
        self.providers: list[str] = session.get_providers()
        self.token_seconds: tuple[float, ...] = ()
        self._io, self._place = settings["io"], place
        given = np.ascontiguousarray(task.inputs["input_ids"], dtype=np.int64)
        kind, new_tokens = task.workload["kind"], task.workload.get("new_tokens") or 1
        self._all_logits = task.workload["outputs"] != "last_logits"
        self._graph = describe(session, settings, place, None if self._all_logits else 1)
        timed = given.shape[1] if kind == "prefill" else 1
        longest = given.shape[1] + new_tokens - 1
        with self._failing("before the first run"):
            self._steps = make_steps(self._graph, self._io, len(given), longest, captured=timed)
            if kind == "decode":
                self._steps.step(given[:, :-1])
        self._start = self._steps.state()
        self._first = given[:, -1:] if kind == "decode" else given
        self._new_tokens = new_tokens if kind == "generate" else None
        self._tokens: np.ndarray[Any, Any] | None = None
        self._ran = False

    def run(self) -> None:
        """Execute the workload once; returns when its outputs are complete. Raises WorkError."""
        with self._failing("while running"):
            self._steps.restore(self._start)
            if self._new_tokens is None:
                self._steps.step(self._first)
            else:
                self._generate(self._new_tokens)
        self._ran = True

    def _generate(self, new_tokens: int) -> None:
        made = np.empty((len(self._first), new_tokens), dtype=np.int64)
        marks = [time.perf_counter()]
        tokens = self._first
        for i in range(new_tokens):
            self._steps.step(tokens)
            made[:, i] = self._steps.output()[:, -1].argmax(axis=-1)  # numpy's is the first of equals
            tokens = made[:, i : i + 1]
            marks.append(time.perf_counter())
        self._tokens = made
        self.token_seconds = tuple(after - before for before, after in pairwise(marks))

    def outputs(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the last run's outputs on the host: `tokens` [B, m], or the graph's own, fp16 and bfloat16 as fp32.

        `present.*` are [B, heads, tokens, width], as far as they are filled; of a quantised cache, its codes. Raises
        WorkError before the first run.
        """
        if not self._ran:
            raise WorkError("there are no outputs before the first run")
        if self._tokens is not None:
            return {"tokens": self._tokens.copy()}
        with self._failing("while reading its outputs"):
            return {self._graph.output: self._steps.output().copy(), **self._steps.cache()}

    def score(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the logits [W, vocabulary] of each window, through a cache of their own.

        A graph that gives all logits takes a window as one step; one that gives the last token's takes it token by
        token, some windows side by side. Raises WorkError for a graph without logits.
        """
        if self._graph.output != "logits":
            raise WorkError(f"a text cannot be scored: the graph gives {self._graph.output}, no logits")
        windows = np.ascontiguousarray(windows, dtype=np.int64)
        with self._failing("while scoring"):
            yield from self._score_at_once(windows) if self._all_logits else self._score_by_token(windows)

    def _score_at_once(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        steps = make_steps(self._graph, self._io, 1, windows.shape[1])
        empty = steps.state()
        for window in windows:
            steps.restore(empty)
            steps.step(window[None])
            yield steps.output()[0].copy()

    def _score_by_token(self, windows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        length = windows.shape[1]
        window_bytes = 4 * length * (self._graph.width or 1)
        together = max(1, min(SIDE_BY_SIDE, SCORED_BYTES // window_bytes))
        for at in range(0, len(windows), together):
            some = windows[at : at + together]
            steps = make_steps(self._graph, self._io, len(some), length)
            rows = []
            for t in range(length):
                steps.step(some[:, t : t + 1])
                rows.append(steps.output()[:, -1].copy())
            yield from np.stack(rows, axis=1)

    def _failing(self, when: str) -> AbstractContextManager[None]:
        return failing(when, gpu=not self._place.on_host)

    def device_bytes(self) -> int | None:
        """Return the bytes that this process holds on the GPU, None on a CPU."""
        return None if self._place.on_host else device_bytes()
