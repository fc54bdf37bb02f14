"""Llama in torch as one would run it there: packed weights, any float type, a KV cache that is written in place.

The arithmetic is that of :mod:`llama_bench.model.llama`, in the type that the weights have; as in Hugging Face's, norms
and the softmax compute in fp32, and angles are rounded once. B: batch, S: tokens of a prompt, T: tokens in the cache
with the step's own, D: head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama_bench.model.layers import Pair, repeat, rotate
from llama_bench.model.llama import inverse_frequencies

if TYPE_CHECKING:
    import numpy as np

    from llama_bench.sweep import Model

Attention: TypeAlias = Literal["written", "sdpa"]
"""Attention as a product, a softmax and a product, or torch's `scaled_dot_product_attention`."""

Outputs: TypeAlias = Literal["logits", "last_logits", "hidden"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Packed(nn.Module):
    """Linear layers of the same input as one: their weights, and biases if any, one below the other."""

    def __init__(self, columns: int, rows: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.rows = list(rows)
        self.weight = nn.Parameter(torch.empty(sum(rows), columns))
        self.bias = nn.Parameter(torch.empty(sum(rows))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Norm(nn.Module):
    """Root mean square norm over the last axis; torch computes it in fp32 whatever the type."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = [size], eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, self.size, self.weight, self.eps)


class Layer(nn.Module):
    """One decoder layer, norms first."""

    def __init__(self, model: Model, attention: Attention) -> None:
        super().__init__()
        self.attention: Attention = attention
        self.heads, self.kv_heads, self.head_size = model.num_attention_heads, model.kv_heads, model.head_size
        hidden, query, kv = model.hidden_size, self.heads * self.head_size, self.kv_heads * self.head_size
        self.input_layernorm = Norm(hidden, model.rms_norm_eps)
        self.qkv = Packed(hidden, (query, kv, kv), model.attention_bias)
        self.o_proj = Packed(query, (hidden,), model.attention_bias)
        self.post_attention_layernorm = Norm(hidden, model.rms_norm_eps)
        self.gate_up = Packed(hidden, (model.intermediate_size,) * 2, model.mlp_bias)
        self.down_proj = Packed(model.intermediate_size, (hidden,), model.mlp_bias)

    def prefill(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return x [B, S, hidden] after the layer, and its keys and values [B, KV heads, S, D].

        `mask` [S, S] or [B, 1, S, S] is added to the scores; without one SDPA looks at no later token.
        """
        query, key, value = self._heads(x, cos, sin)
        if self.attention == "written":
            mixed = self._written(query, key, value, mask)
        else:
            mixed = functional.scaled_dot_product_attention(
                query, key, value, mask, is_causal=mask is None, enable_gqa=self.heads != self.kv_heads
            )
        return self._after(x, mixed), key, value

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, kept: Pair, at: int | Tensor, mask: Tensor | None) -> Tensor:
        """Return x [B, 1, hidden] after the layer; the token's key and value are written to `kept` at position `at`.

        What the token sees is the cache up to `at`, or with a tensor `at` all of it under `mask` [1, T].
        """
        query, key, value = self._heads(x, cos, sin)
        keys, values = kept
        if isinstance(at, int):
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = key, value
            keys, values = keys[:, :, : at + 1], values[:, :, : at + 1]
        else:
            keys.index_copy_(2, at, key)
            values.index_copy_(2, at, value)
        if self.attention == "written":
            mixed = self._written(query, keys, values, mask)
        else:
            # the heads that share keys and values stand where a prompt's tokens would: nothing of the cache is repeated
            shared = query.reshape(len(x), self.kv_heads, -1, self.head_size)
            mixed = functional.scaled_dot_product_attention(shared, keys, values, mask)
            mixed = mixed.reshape(query.shape)
        return self._after(x, mixed)

    def _heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        packed = self.qkv(self.input_layernorm(x)).view(batch, tokens, -1, self.head_size).transpose(1, 2)
        query, key, value = packed.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        return rotate(query, cos, sin), rotate(key, cos, sin), value

    def _written(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        groups = self.heads // self.kv_heads
        scores = torch.matmul(query, repeat(keys, groups).transpose(2, 3)) * self.head_size**-0.5
        scores = scores if mask is None else scores + mask
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
        return torch.matmul(weights, repeat(values, groups))

    def _after(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.o_proj(mixed.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.post_attention_layernorm(x)).chunk(2, dim=-1)
        down: Tensor = self.down_proj(functional.silu(gate) * up)
        return x + down


class Network(nn.Module):
    """The network of `model` with one way of attention; its parameters are empty until `load`."""

    def __init__(self, model: Model, attention: Attention, outputs: Outputs) -> None:
        super().__init__()
        layers, self.outputs = model.num_hidden_layers, outputs
        self.embed_tokens = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))
        self.layers = cast("Sequence[Layer]", nn.ModuleList(Layer(model, attention) for _ in range(layers)))
        self.norm = Norm(model.hidden_size, model.rms_norm_eps)
        self.tied = model.tie_word_embeddings
        if model.head == "lm" and not self.tied:
            self.lm_head = nn.Parameter(torch.empty(model.vocab_size, model.hidden_size))

    def prefill(self, tokens: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Pair]]:
        """Return what comes of the prompts [B, S], fp32, and keys and values of every layer.

        `cos` and `sin` [S, D] are those of positions 0 … S − 1; for `mask` see :meth:`Layer.prefill`.
        """
        x, kept = functional.embedding(tokens, self.embed_tokens), []
        for layer in self.layers:
            x, key, value = layer.prefill(x, cos, sin, mask)
            kept.append((key, value))
        hidden = self.norm(x[:, -1:] if self.outputs == "last_logits" else x)
        return (hidden.float() if self.outputs == "hidden" else self._logits(hidden)), kept

    def step(self, tokens: Tensor, cos: Tensor, sin: Tensor, cache: Sequence[Pair], at: int | Tensor) -> Tensor:
        """Return the logits [B, 1, vocabulary], fp32, of the tokens [B, 1] that come after those in the cache.

        The cache [B, KV heads, length, D] of every layer is written in place. A position `at` that is a number makes
        views of what is filled; as a tensor [1] it lets one compiled step serve every position.
        """
        x, mask = functional.embedding(tokens, self.embed_tokens), None
        if not isinstance(at, int):
            seen = torch.arange(cache[0][0].shape[2], device=tokens.device)[None] <= at
            mask = torch.where(seen, 0.0, float("-inf")).to(x.dtype)
        for layer, kept in zip(self.layers, cache, strict=True):
            x = layer.step(x, cos, sin, kept, at, mask)
        return self._logits(self.norm(x))

    def _logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embed_tokens if self.tied else self.lm_head).float()


PARTS = {
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.o_proj": ("o_proj", 0),
    "mlp.gate_proj": ("gate_up", 0),
    "mlp.up_proj": ("gate_up", 1),
    "mlp.down_proj": ("down_proj", 0),
}
"""Hugging Face's name of a linear layer → the packed layer that holds it, and its place among the others there."""


def load(
    model: Model,
    tensors: Iterable[tuple[str, np.ndarray[Any, Any]]],
    attention: Attention,
    outputs: Outputs,
    dtype: torch.dtype,
    device: str,
) -> Network:
    """Return the network with its parameters on `device` in `dtype`.

    `tensors` gives every parameter once by its Hugging Face name, float32; they are copied one at a time, so that
    besides the network only one is held.
    """
    with torch.device("meta"):
        network = Network(model, attention, outputs)
    network = network.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    for name, array in tensors:
        place(network, name).copy_(torch.from_numpy(array))
    return network


def place(network: Network, name: str) -> Tensor:
    """Return the parameter, or the rows of it, that Hugging Face calls `name`."""
    path = name.removeprefix("model.").split(".")
    if path[0] in ("embed_tokens", "lm_head"):
        return network.get_parameter(path[0])
    *module, kind = path
    if module[0] != "layers" or ".".join(module[2:]) not in PARTS:
        return network.get_parameter(".".join(path))
    packed, index = PARTS[".".join(module[2:])]
    holder = network.get_submodule(f"layers.{module[1]}.{packed}")
    assert isinstance(holder, Packed)
    first = sum(holder.rows[:index])
    return holder.get_parameter(kind)[first : first + holder.rows[index]]


def angles(model: Model, length: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of RoPE at positions 0 … length − 1, each [length, D]; fp32 until the last rounding."""
    turns = torch.arange(length, dtype=torch.float32)[:, None] * inverse_frequencies(model).flatten()
    both = torch.cat((turns, turns), dim=-1)
    return both.cos().to(dtype).to(device), both.sin().to(dtype).to(device)
