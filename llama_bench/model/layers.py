"""The pieces of a Llama layer in plain torch. B: batch, S: sequence, P: cached tokens before it, D: head size."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama_bench.sweep import Model

# What a forbidden position gets instead of minus infinity. exp(-1e4) is 0 in every float type, -1e4 itself is finite
# in all of them (fp16 ends at 65,504), and a row with nothing but padding gives numbers that nobody reads, not NaN.
MASKED = -1e4

Pair: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [B, KV heads, tokens, D]."""


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang & Sennrich 2019), over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps))


class Product(nn.Linear):
    """`nn.Linear` on tokens [B·S, in], written as the product and the sum that it stands for.

    Of `nn.Linear` itself both exporters make one Gemm(transB=1) when its input is 2-D, and nothing is left to fuse. Of
    this dynamo makes MatMul and Add, and before them a Transpose of the weight unless it folds constants.
    """

    def forward(self, input: Tensor) -> Tensor:
        product = torch.matmul(input, self.weight.t())
        return product if self.bias is None else product + self.bias


def linear(model: Model, columns: int, rows: int, bias: bool) -> nn.Linear:
    """Return the linear layer that fits the shape in which `model` holds its tokens; its weight is [rows, columns]."""
    return (Product if model.flatten_tokens else nn.Linear)(columns, rows, bias=bias)


class Attention(nn.Module):
    """Causal self-attention with grouped KV heads and rotary positions."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = model.num_attention_heads, model.kv_heads, model.head_size
        size, bias = model.hidden_size, model.attention_bias
        q_size, kv_size = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.q_proj = linear(model, size, q_size, bias)
        self.k_proj = linear(model, size, kv_size, bias)
        self.v_proj = linear(model, size, kv_size, bias)
        self.o_proj = linear(model, q_size, size, bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: Pair | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output in the shape of `x`, and all keys and values, `past` first, [B, KV heads, P + S, D]."""
        batch, sequence = x.shape[:2] if x.dim() == 3 else (cos.shape[0], cos.shape[2])
        query = self.q_proj(x).view(batch, sequence, self.heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(x).view(batch, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(x).view(batch, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        groups = self.heads // self.kv_heads
        scores = torch.matmul(query, repeat(key, groups).transpose(2, 3)) * self.head_dim**-0.5
        weights = functional.softmax(scores + mask, dim=-1)
        mixed = torch.matmul(weights, repeat(value, groups)).transpose(1, 2).reshape(*x.shape[:-1], -1)
        return self.o_proj(mixed), key, value


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.gate_proj = linear(model, model.hidden_size, model.intermediate_size, model.mlp_bias)
        self.up_proj = linear(model, model.hidden_size, model.intermediate_size, model.mlp_bias)
        self.down_proj = linear(model, model.intermediate_size, model.hidden_size, model.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return down


class Layer(nn.Module):
    """One decoder layer, norms first; `x` is [B, S, hidden] or, of flattened tokens, [B·S, hidden]."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.self_attn = Attention(model)
        self.mlp = MLP(model)
        self.input_layernorm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(model.hidden_size, model.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: Pair | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attended, key, value = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (i, i + D/2) of `x` [B, heads, S, D] (Su et al. 2021, in Hugging Face's order of pairs)."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def repeat(x: Tensor, groups: int) -> Tensor:
    """Give every query head its KV head: [B, KV heads, S, D] → [B, KV heads · groups, S, D]."""
    if groups == 1:
        return x
    batch, heads, sequence, size = x.shape
    spread = x[:, :, None].expand(batch, heads, groups, sequence, size)
    return spread.reshape(batch, heads * groups, sequence, size)


def additive(allowed: Tensor) -> Tensor:
    """Return the mask that is added to attention scores."""
    return torch.where(allowed, 0.0, MASKED)
