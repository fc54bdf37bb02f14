"""Torch for models larger than memory: the network reads its weights anew in every run and holds one layer of them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from llama_bench import threads
from llama_bench.model import llama, weights
from llama_bench.model.llama import Array, Llama
from llama_bench.model.weights import RESIDENT_BYTES as RESIDENT_BYTES  # what tells the exporter too
from llama_bench.sweep import Model, Workload

AHEAD = 4
"""Weights that are read before they are needed: about half a layer of them."""


def build(model: Model, workload: Workload, given: Mapping[str, Array] | None = None) -> Llama:
    """Return the network for a few runs: that of `llama.build`, or a `stream` of more weights than RESIDENT_BYTES.

    Raises InputError when the workload asks for what the model does not have, WorkError when `given` does not fit.
    """
    held = weights.weight_bytes(model) <= RESIDENT_BYTES
    return (llama.build if held else stream)(model, workload, given)


def stream(model: Model, workload: Workload, given: Mapping[str, Array] | None = None) -> Llama:
    """Return a network that holds no weights: every run reads all of them once, and each layer drops its own after use.

    A generation reads them once for each token. A tied embedding is kept, because the head needs it at a run's end.
    """
    network = llama.skeleton(model, workload)
    network.read = partial(llama.parameters, model, given)
    embedding, feed = network.model.embed_tokens, Feed(network)
    stages: list[nn.Module] = [embedding, *network.model.layers, network.model.norm]
    tied = model.head == "lm" and model.tie_word_embeddings
    if tied:
        network.lm_head.register_forward_pre_hook(lambda head, _: setattr(head, "weight", embedding.weight))
    elif model.head == "lm":
        stages.append(network.lm_head)
    embedding.register_forward_pre_hook(feed.begin)
    for stage in stages:
        stage.register_forward_pre_hook(feed.fill)
        if not (tied and stage is embedding):
            stage.register_forward_hook(drop)
    return network


class Feed:
    """Weights on their way into a network, in the order in which its modules run, read while torch computes."""

    def __init__(self, network: Llama) -> None:
        self.read = network.read
        self.names = {module: f"{name}." for name, module in network.named_modules()}
        self.coming: Generator[tuple[str, Array], None, None] = threads.ahead(())

    def begin(self, module: nn.Module, given: Any) -> None:
        """Start at the first weight again."""
        assert self.read is not None
        self.coming.close()
        self.coming = threads.ahead(self.read(), AHEAD)

    def fill(self, module: nn.Module, given: Any) -> None:
        """Give `module` its weights, which are the next ones."""
        own = islice(self.coming, len(module.state_dict()))
        prefix = self.names[module]
        state = {name.removeprefix(prefix): torch.from_numpy(array) for name, array in own}
        module.load_state_dict(state, assign=True)


def drop(module: nn.Module, given: Any, made: Any) -> None:
    """Leave `module` with the shapes of its weights."""
    module.to("meta")
