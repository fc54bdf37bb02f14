"""A network of torch on its device, compiled or not: prompts, steps, and the caches between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama_bench.engines.torch_engine import DEVICES
from llama_bench.engines.torch_network import DTYPES, angles, load
from llama_bench.model.layers import Pair, additive
from llama_bench.passes import checkpoint
from llama_bench.sweep import Model, Workload


class Runner:
    """The model in `folder`, or the task's, as `settings` say. `model` is the one that was loaded.

    What is compiled is compiled at its first call with new shapes.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], model: Model, workload: Workload) -> None:
        torch.set_num_threads(settings["intra_op_num_threads"])
        torch.backends.cuda.matmul.allow_tf32 = settings["tf32"]
        self.device, self.dtype = DEVICES[settings["provider"]], DTYPES[settings["precision"]]
        found = checkpoint.read(folder, model)
        self.model = found.model
        self._written = settings["attention"] == "written"
        assert workload.outputs is not None
        network = load(found.model, found.tensors(), settings["attention"], workload.outputs, self.dtype, self.device)
        self.compiled = settings["inductor"] is not None
        self._uncompiled = network.prefill
        self._prefill: Callable[..., tuple[Tensor, list[Pair]]] = network.prefill
        self._step: Callable[..., Tensor] = network.step
        if self.compiled:
            configure(settings["inductor"])
            self._prefill = torch.compile(network.prefill, dynamic=False)
            self._step = torch.compile(network.step, dynamic=False)
        self._angles = angles(found.model, workload.longest, self.dtype, self.device)
        self._causal: dict[int, Tensor] = {}

    def prefill(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, list[Pair]]:
        """Return the first output for prompts [B, S], fp32, and their keys and values; `mask` see `mask`."""
        return self._prefill(tokens, *self._at(0, tokens.shape[1]), self._mask(tokens, mask))

    def fill(self, cache: Sequence[Pair], tokens: Tensor) -> None:
        """Put keys and values of the tokens [B, S] at the beginning of `cache`, without anything compiled for it."""
        _, kept = self._uncompiled(tokens, *self._at(0, tokens.shape[1]), self._mask(tokens, None))
        self.keep(cache, kept)

    def keep(self, cache: Sequence[Pair], kept: Sequence[Pair]) -> None:
        """Copy a prompt's keys and values to the beginning of `cache`."""
        for (keys, values), (key, value) in zip(cache, kept, strict=True):
            keys[:, :, : key.shape[2]], values[:, :, : value.shape[2]] = key, value

    def step(self, tokens: Tensor, cache: Sequence[Pair], at: int) -> Tensor:
        """Return the logits [B, 1, vocabulary], fp32, of tokens [B, 1] at position `at`; writes `cache` there."""
        place = torch.tensor([at], device=self.device) if self.compiled else at
        return self._step(tokens, *self._at(at, 1), cache, place)

    def empty(self, batch: int, length: int) -> list[Pair]:
        """Return a cache for `length` tokens of `batch` sequences."""
        shape = (batch, self.model.kv_heads, length, self.model.head_size)

        def zeros() -> Tensor:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)

        return [(zeros(), zeros()) for _ in range(self.model.num_hidden_layers)]

    def mask(self, attention_mask: Tensor) -> Tensor | None:
        """Return what is added to the scores for padding [B, S] of 0 and 1, None where there is no padding."""
        if attention_mask.all():
            return None
        allowed = torch.ones(attention_mask.shape[1:] * 2, dtype=torch.bool).tril()
        return self._added(allowed & attention_mask[:, None, None, :].to(torch.bool))

    def _mask(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        if mask is not None or not self._written:
            return mask
        length = tokens.shape[1]
        if length not in self._causal:
            self._causal[length] = self._added(torch.ones(length, length, dtype=torch.bool).tril())
        return self._causal[length]

    def _added(self, allowed: Tensor) -> Tensor:
        return additive(allowed).to(self.dtype).to(self.device)

    def _at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of so many positions; the tables grow when a longer text is scored."""
        cos, sin = self._angles
        if first + count > len(cos):
            self._angles = cos, sin = angles(self.model, first + count, self.dtype, self.device)
        return cos[first : first + count], sin[first : first + count]


def configure(options: Mapping[str, bool]) -> None:
    """Tell inductor, in this process, and keep it quiet; of the options of a call, tracing does not see `freezing`."""
    from torch._inductor import config

    for name, value in {**options, **QUIET}.items():
        setattr(config, name, value)
    # from inductor's own tuning of frozen weights
    warnings.filterwarnings("ignore", message="TypedStorage is deprecated")


QUIET = {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}
"""Inductor's configuration against its tables of what the tuning found, which it prints to stderr."""
