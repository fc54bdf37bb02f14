"""What matters least on text: hooks on the torch network measure it, a few windows at a time.

A head or a channel is a block of columns of a linear layer W that writes into the residual stream (`o_proj`,
`down_proj`). What block b adds there over all tokens is X_b W_bᵀ, X_b [tokens, width] being its inputs, and its
importance the norm of that, √ tr(W_b X_bᵀX_b W_bᵀ). For a channel, whose width is 1, this is ‖X_j‖ · ‖W_j‖: Wanda's
|W_ij| · ‖X_j‖ (Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models") over a column.

A layer's importance is its block influence, 1 − mean cosine between what goes in and what comes out, over tokens (Men
et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llama_bench.passes import checkpoint
from llama_bench.passes.prune import kept
from llama_bench.passes.prune.slices import Chosen

if TYPE_CHECKING:
    from llama_bench.model.llama import Llama
    from llama_bench.passes.checkpoint import Checkpoint

RUN_TOKENS = 1024  # in one run of the network: enough to keep the cores busy, little beside the weights


def choose(name: str, options: Any, before: Checkpoint, windows: np.ndarray[Any, Any]) -> Chosen:
    """Return what `heads`, `channels` or `layers` keeps of the model; `windows` of tokens are int64 [N, W]."""
    network = checkpoint.network(before, windows.shape[1], "hidden")
    model = before.model
    if name == "layers":
        return Chosen(layers=largest(influences(network, windows), kept(options.keep, model.num_hidden_layers)))
    if name == "channels":
        stay = kept(options.keep, model.intermediate_size, options.multiple_of)
        return Chosen(channels=[largest(s, stay) for s in contributions(network, windows, "mlp.down_proj", 1)])
    groups, each = model.kv_heads, model.num_attention_heads // model.kv_heads
    if options.unit == "group":
        scores = contributions(network, windows, "self_attn.o_proj", each * model.head_size)
        return Chosen(groups=[largest(s, kept(options.keep, groups)) for s in scores])
    scores, stay = contributions(network, windows, "self_attn.o_proj", model.head_size), kept(options.keep, each)
    return Chosen(
        heads=[
            np.concatenate([g * each + largest(part, stay) for g, part in enumerate(s.reshape(groups, each))])
            for s in scores
        ]
    )


def largest(scores: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Return the places of the `count` largest scores, in ascending order; of equals the first stay."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def contributions(
    network: Llama, windows: np.ndarray[Any, Any], projection: str, width: int
) -> list[np.ndarray[Any, Any]]:
    """Return by layer the norm of what each block of `width` inputs of `projection` adds to the residual stream."""
    projections = [layer.get_submodule(projection) for layer in network.model.layers]
    grams: list[Tensor] = [torch.zeros(())] * len(projections)

    def watch(i: int) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1] // width, width)
            gram = (x * x).sum(0)[..., None] if width == 1 else torch.einsum("tbi,tbj->bij", x, x)
            grams[i] = grams[i] + gram.double()

        return add

    with _hooked([p.register_forward_pre_hook(watch(i)) for i, p in enumerate(projections)]):
        _run(network, windows)
    return [norms(p.get_parameter("weight"), gram).numpy() for p, gram in zip(projections, grams, strict=True)]


def norms(weight: Tensor, gram: Tensor) -> Tensor:
    """Return ‖X_b W_bᵀ‖ for every block b of columns of `weight` [out, blocks · width].

    `gram` is X_bᵀX_b by block, [blocks, width, width]; the result is [blocks].
    """
    blocks, width, _ = gram.shape
    parts = weight.view(weight.shape[0], blocks, width)
    seen = torch.einsum("obi,bij->obj", parts, gram.to(parts.dtype))
    return (seen * parts).sum((0, 2)).clamp_min(0).sqrt()


def influences(network: Llama, windows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the block influence of every layer: 0 where it changes no direction, at most 2."""
    layers = list(network.model.layers)
    cosines = np.zeros(len(layers))

    def watch(i: int) -> Callable[..., None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], result: tuple[Tensor, ...]) -> None:
            cosines[i] += float(functional.cosine_similarity(args[0], result[0], dim=-1).double().sum())

        return add

    with _hooked([layer.register_forward_hook(watch(i)) for i, layer in enumerate(layers)]):
        _run(network, windows)
    return 1 - cosines / windows.size


def _run(network: Llama, windows: np.ndarray[Any, Any]) -> None:
    length = windows.shape[1]
    batches = torch.split(torch.from_numpy(windows), max(1, RUN_TOKENS // length))
    with torch.inference_mode():
        for batch in batches:
            network(batch, torch.arange(length).expand(batch.shape))


@contextmanager
def _hooked(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
