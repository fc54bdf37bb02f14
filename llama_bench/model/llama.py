"""Llama in plain torch: the arithmetic of Hugging Face's eager `LlamaForCausalLM`, its parameter names, nothing else.

Attention is written out (MatMul, add mask, Softmax, MatMul) and RoPE takes the positions as an input, because that is
the form that graph fusions know. B: batch, S: sequence, D: head size. With `flatten_tokens` what runs through the
layers is [B·S, hidden] instead of [B, S, hidden], so that a linear layer multiplies two matrices; inputs, outputs and
weights stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from llama_bench.model import inputs as model_inputs
from llama_bench.model import weights
from llama_bench.sweep import Model, Workload

# What a forbidden position gets instead of minus infinity. exp(-1e4) is 0 in every float type, -1e4 itself is finite
# in all of them (fp16 ends at 65,504), and a row with nothing but padding gives numbers that nobody reads, not NaN.
MASKED = -1e4


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
        self.heads, self.kv_heads, self.head_dim = model.num_attention_heads, model.kv_heads, model.head_dim
        size, kv_size, bias = model.hidden_size, model.kv_heads * model.head_dim, model.attention_bias
        self.q_proj = linear(model, size, size, bias)
        self.k_proj = linear(model, size, kv_size, bias)
        self.v_proj = linear(model, size, kv_size, bias)
        self.o_proj = linear(model, size, size, bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output in the shape of `x`, and keys and values [B, KV heads, S, D]."""
        shape = x.shape
        batch, sequence = shape[:2] if x.dim() == 3 else (cos.shape[0], cos.shape[2])
        query = self.q_proj(x).view(batch, sequence, self.heads, self.head_dim).transpose(1, 2)
        key = self.k_proj(x).view(batch, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        value = self.v_proj(x).view(batch, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        groups = self.heads // self.kv_heads
        scores = torch.matmul(query, repeat(key, groups).transpose(2, 3)) * self.head_dim**-0.5
        weights = functional.softmax(scores + mask, dim=-1)
        mixed = torch.matmul(weights, repeat(value, groups)).transpose(1, 2).reshape(shape)
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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attended, key, value = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), key, value


class Decoder(nn.Module):
    """Embedding, layers and final norm (Hugging Face's `LlamaModel`)."""

    inv_freq: Tensor
    causal: Tensor

    def __init__(self, model: Model, sequence: int) -> None:
        super().__init__()
        self.flat = model.flatten_tokens
        self.embed_tokens = nn.Embedding(model.vocab_size, model.hidden_size)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.num_hidden_layers))
        self.norm = RMSNorm(model.hidden_size, model.rms_norm_eps)
        self.register_buffer("inv_freq", inverse_frequencies(model), persistent=False)
        allowed = torch.ones(sequence, sequence, dtype=torch.bool, device="cpu").tril()
        causal = allowed if model.attention_mask else additive(allowed)
        self.register_buffer("causal", causal[None, None], persistent=False)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the final-norm hidden states [B, S, hidden], and keys and values of every layer."""
        embedded = self.embed_tokens(input_ids)
        x = embedded.flatten(0, 1) if self.flat else embedded
        freqs = torch.matmul(self.inv_freq, position_ids[:, None, :].to(torch.float32)).transpose(1, 2)
        angles = torch.cat((freqs, freqs), dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        mask = self.causal
        if attention_mask is not None:
            mask = additive(self.causal & attention_mask[:, None, None, :].to(torch.bool))
        kept = []
        for layer in self.layers:
            x, key, value = layer(x, cos, sin, mask)
            kept.append((key, value))
        normed = self.norm(x)
        return normed.view(embedded.shape) if self.flat else normed, kept


class Llama(nn.Module):
    """The network of `model`, ready to run `workload`: what it returns is in the order of `output_names`."""

    def __init__(self, model: Model, workload: Workload) -> None:
        super().__init__()
        self.model = Decoder(model, workload.sequence)
        if model.head == "lm":
            self.lm_head = linear(model, model.hidden_size, model.vocab_size, bias=False)
            if model.tie_word_embeddings:
                self.lm_head.weight = self.model.embed_tokens.weight
        self.outputs, self.kv_out, self.masked = workload.outputs, workload.kv_out, model.attention_mask

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Take the inputs in the order of `input_names`, each int64 [B, S]; an attention mask is 1 or 0."""
        input_ids, position_ids = args[0], args[-1]
        hidden, kept = self.model(input_ids, position_ids, args[1] if self.masked else None)
        if self.outputs == "last_logits":
            hidden = hidden[:, -1:]
        first = hidden if self.outputs == "hidden" else self.logits(hidden)
        return (first, *(tensor for pair in kept for tensor in pair)) if self.kv_out else (first,)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [B, S, vocabulary] of the hidden states [B, S, hidden]."""
        found: Tensor = self.lm_head(hidden.flatten(0, 1) if self.model.flat else hidden)
        return found.view(*hidden.shape[:2], -1) if self.model.flat else found


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


def inverse_frequencies(model: Model) -> Tensor:
    """Return RoPE's inverse frequencies [1, D/2, 1]; in float64 until the end, so that every machine agrees."""
    exponents = np.arange(0, model.head_dim, 2, dtype=np.float64) / model.head_dim
    return torch.from_numpy((model.rope_theta**-exponents).astype(np.float32).reshape(1, -1, 1))


def build(model: Model, workload: Workload) -> Llama:
    """Return the network with its seeded weights, in evaluation mode. Holds the weights once.

    Raises InputError when the workload asks for what the model does not have.
    """
    model_inputs.check(model, workload)
    with torch.device("meta"):  # shapes only: no memory, and no time for torch's own initial values
        network = Llama(model, workload)
    drawn = {
        name: torch.from_numpy(weights.draw(name, shape, model.seed)) for name, shape in weights.shapes(model).items()
    }
    if model.head == "lm" and model.tie_word_embeddings:
        drawn["lm_head.weight"] = drawn["model.embed_tokens.weight"]
    network.load_state_dict(drawn, assign=True)
    if model.head == "lm" and model.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    return network.eval().requires_grad_(False)


def run(network: Llama, model: Model, workload: Workload) -> dict[str, np.ndarray[Any, Any]]:
    """Return torch's fp32 outputs for `make_inputs(model, workload)`, by output name."""
    given = model_inputs.make_inputs(model, workload)
    with torch.inference_mode():
        results = network(*(torch.from_numpy(given[name]) for name in model_inputs.input_names(model)))
    names = model_inputs.output_names(model, workload)
    return {name: result.contiguous().numpy() for name, result in zip(names, results, strict=True)}


def reference(model: Model, workload: Workload) -> dict[str, np.ndarray[Any, Any]]:
    """Return torch's fp32 outputs for `make_inputs(model, workload)`, by output name."""
    return run(build(model, workload), model, workload)
