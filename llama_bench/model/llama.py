"""Llama in plain torch: the arithmetic of Hugging Face's eager `LlamaForCausalLM`, its parameter names, nothing else.

Attention is written out (MatMul, add mask, Softmax, MatMul) and RoPE takes the positions as an input, because that is
the form that graph fusions know. B: batch, S: sequence, D: head size. With `flatten_tokens` what runs through the
layers is [B·S, hidden] instead of [B, S, hidden], so that a linear layer multiplies two matrices; inputs, outputs and
weights stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from llama_bench.errors import WorkError
from llama_bench.model import inputs as model_inputs
from llama_bench.model import weights
from llama_bench.model.layers import Layer, Pair, RMSNorm, additive, linear
from llama_bench.sweep import Model, RopeScaling, Workload

Array: TypeAlias = np.ndarray[Any, Any]


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
        if not model.cache:
            allowed = torch.ones(sequence, sequence, dtype=torch.bool, device="cpu").tril()
            causal = allowed if model.attention_mask else additive(allowed)
            self.register_buffer("causal", causal[None, None], persistent=False)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None, past: Sequence[Pair] = ()
    ) -> tuple[Tensor, list[Pair]]:
        """Return the final-norm hidden states [B, S, hidden], and keys and values of every layer.

        With a cache `past` has those of every layer for the P tokens before, [B, KV heads, P, D], P may be 0; a
        token then sees all that are not at a later position than its own.
        """
        embedded = self.embed_tokens(input_ids)
        x = embedded.flatten(0, 1) if self.flat else embedded
        freqs = torch.matmul(self.inv_freq, position_ids[:, None, :].to(torch.float32)).transpose(1, 2)
        angles = torch.cat((freqs, freqs), dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        if past:
            columns = torch.arange(past[0][0].shape[2] + input_ids.shape[1], device=input_ids.device)
            mask = additive(columns <= position_ids[:, None, :, None])
        elif attention_mask is not None:
            mask = additive(self.causal & attention_mask[:, None, None, :].to(torch.bool))
        else:
            mask = self.causal
        kept = []
        for i, layer in enumerate(self.layers):
            x, key, value = layer(x, cos, sin, mask, past[i] if past else None)
            kept.append((key, value))
        normed = self.norm(x)
        return normed.view(embedded.shape) if self.flat else normed, kept


class Llama(nn.Module):
    """The network of `model`, ready to run `workload`: what it returns is in the order of `output_names`."""

    read: Callable[[], Iterable[tuple[str, Array]]] | None = None
    """Reads the parameters of a network that does not hold them (:mod:`llama_bench.model.streamed`)."""

    def __init__(self, model: Model, workload: Workload) -> None:
        super().__init__()
        self.model = Decoder(model, workload.given)
        if model.head == "lm":
            self.lm_head = linear(model, model.hidden_size, model.vocab_size, bias=False)
            if model.tie_word_embeddings:
                self.lm_head.weight = self.model.embed_tokens.weight
        self.outputs, self.kv_out = workload.outputs, workload.kv_out or model.cache
        self.masked, self.cached = model.attention_mask, model.cache

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        """Take the inputs in the order of `input_names`: int64 [B, S], an attention mask of 1 and 0, a cache."""
        input_ids, position_ids = args[0], args[2 if self.masked else 1]
        past = list(zip(args[2::2], args[3::2], strict=True)) if self.cached else []
        hidden, kept = self.model(input_ids, position_ids, args[1] if self.masked else None, past)
        if self.outputs == "last_logits":
            hidden = hidden[:, -1:]
        first = hidden if self.outputs == "hidden" else self.logits(hidden)
        return (first, *(tensor for pair in kept for tensor in pair)) if self.kv_out else (first,)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [B, S, vocabulary] of the hidden states [B, S, hidden]."""
        found: Tensor = self.lm_head(hidden.flatten(0, 1) if self.model.flat else hidden)
        return found.view(*hidden.shape[:2], -1) if self.model.flat else found

    def returning(self, outputs: Literal["logits", "last_logits", "hidden"]) -> Llama:
        """Return this network with other outputs; the weights are shared."""
        other = copy.copy(self)
        other.outputs = outputs
        return other

    def tensors(self) -> Iterable[tuple[str, Array]]:
        """Return every parameter by name, tied ones once: those that are held, or read anew one after another."""
        if self.read is not None:
            return self.read()
        return ((name, parameter.detach().numpy()) for name, parameter in self.named_parameters())


def inverse_frequencies(model: Model) -> Tensor:
    """Return RoPE's inverse frequencies [1, D/2, 1]; in float64 until the end, so that every machine agrees."""
    exponents = np.arange(0, model.head_size, 2, dtype=np.float64) / model.head_size
    frequencies = model.rope_theta**-exponents
    if model.rope_scaling is not None:
        frequencies = stretched(frequencies, model.rope_scaling)
    return torch.from_numpy(frequencies.astype(np.float32).reshape(1, -1, 1))


def stretched(frequencies: Array, scaling: RopeScaling) -> Array:
    """Return inverse frequencies f for longer texts, as `modeling_rope_utils` of Hugging Face's transformers has them.

    linear: f / factor, which is position / factor (Chen et al. 2023). llama3 (Llama 3.1): with the wavelength
    λ = 2π / f and the length L of the training's texts, s = (L / λ − low) / (high − low) held within 0 and 1, the
    result is (1 − s) · f / factor + s · f. Short waves (λ < L / high) are kept, long ones (λ > L / low) are stretched.
    """
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def build(model: Model, workload: Workload, given: Mapping[str, Array] | None = None) -> Llama:
    """Return the network with its weights, in evaluation mode. Holds the weights once.

    The weights are the model's own (see :func:`llama_bench.model.weights.load`), or the `given` ones by name. Raises
    InputError when the workload asks for what the model does not have, WorkError when `given` does not fit the model.
    """
    network = skeleton(model, workload)
    state = {name: torch.from_numpy(array) for name, array in parameters(model, given)}
    if model.head == "lm" and model.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    network.load_state_dict(state, assign=True)
    if model.head == "lm" and model.tie_word_embeddings:
        network.lm_head.weight = network.model.embed_tokens.weight
    return network.requires_grad_(False)


def skeleton(model: Model, workload: Workload) -> Llama:
    """Return the network without weights: its parameters are shapes on torch's device `meta`, its buffers are real.

    Raises InputError when the workload asks for what the model does not have.
    """
    model_inputs.check(model, workload)
    with torch.device("meta"):  # no memory, and no time for torch's own initial values
        return Llama(model, workload).eval().requires_grad_(False)


def parameters(model: Model, given: Mapping[str, Array] | None = None) -> Iterator[tuple[str, Array]]:
    """Yield every parameter by its Hugging Face name in the order of `weights.shapes`, float32, one at a time.

    They are the model's own, or the `given` ones; of these an `lm_head` that the model has no place for (tied, or no
    head) is passed over. Raises WorkError that names the tensor when a given one is missing, unknown, or of another
    shape.
    """
    shapes = weights.shapes(model)
    if unknown := [name for name in given or {} if name not in shapes and name != "lm_head.weight"]:
        raise WorkError(f"model {model.label}: the weights hold {unknown[0]}, which the model does not have")
    if missing := [name for name in shapes if given is not None and name not in given]:
        raise WorkError(f"model {model.label}: the weights lack {missing[0]} (and {len(missing) - 1} more)")
    for name, array in weights.load(model) if given is None else ((name, given[name]) for name in shapes):
        if array.shape != shapes[name]:
            raise WorkError(
                f"model {model.label}: weight {name} has shape {list(array.shape)}, not {list(shapes[name])}"
            )
        yield name, np.require(array, np.float32, ["C", "W"])  # torch takes none that it may not write


def run(network: Llama, model: Model, workload: Workload, given: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Return torch's fp32 outputs by output name, for `given` or else for `make_inputs(model, workload)`."""
    if given is None:
        given = model_inputs.make_inputs(model, workload)
    names = model_inputs.output_names(model, workload)
    with torch.inference_mode():
        results = network(*arguments(model, given, empty_cache(model, len(given["input_ids"]))))
    return {name: result.contiguous().numpy() for name, result in zip(names, results, strict=True)}


def arguments(model: Model, given: Mapping[str, Array], past: Sequence[Pair]) -> list[Tensor]:
    """Return the network's arguments: the inputs in order, then the cache of a model that has one."""
    names = [name for name in model_inputs.input_names(model) if not name.startswith("past.")]
    cache = [tensor for pair in past for tensor in pair] if model.cache else []
    return [*(torch.from_numpy(given[name]) for name in names), *cache]


def empty_cache(model: Model, batch: int) -> list[Pair]:
    """Return a cache of no tokens."""
    shape = (batch, model.kv_heads, 0, model.head_size)
    return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(model.num_hidden_layers)]
