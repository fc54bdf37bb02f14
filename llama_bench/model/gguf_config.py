"""Metadata of a GGUF file → the keys of `Model`, and what of it is not the Llama that is built here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llama_bench.errors import InputError

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""What every Llama 3.1 and 3.2 has beside its factor; a GGUF file keeps only the divisors that come of it."""

READ = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "attention.sliding_window", "rope.dimension_count", "rope.freq_base",
    "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.attn_factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "expert_count", "expert_used_count",
    "tensor_data_layout",
)  # fmt: skip
"""Keys below `llama.` that are understood; another one may stand for another network."""


def sizes(
    said: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    frequencies: Sequence[float] | None,
    where: str,
) -> dict[str, Any]:
    """Return the sizes of a GGUF file by the keys of `Model`, `head_dim` only where it is unusual.

    `said` is the metadata, `shapes` those of the tensors by llama.cpp's names, `frequencies` what llama3's RoPE
    scaling divides by; `where` names the file in messages. Raises InputError for what would be another network.
    """
    architecture = said.get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{where}: the architecture {architecture} is not llama (Llama and Mistral)")
    keys = {key.removeprefix("llama."): value for key, value in said.items() if key.startswith("llama.")}
    _refuse_others(keys, where)
    hidden, heads = _whole(keys, "embedding_length", where), _whole(keys, "attention.head_count", where)
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(keys, "attention.head_count_kv", where, heads),
        "num_hidden_layers": _whole(keys, "block_count", where),
        "intermediate_size": _whole(keys, "feed_forward_length", where),
        "vocab_size": _vocab_size(keys, shapes, where),
        "max_position_embeddings": _whole(keys, "context_length", where),
        "rms_norm_eps": _decimal(keys.get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": _decimal(keys.get("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in shapes,
        **_biases(shapes, where),
    }
    dimension = _whole(keys, "rope.dimension_count", where, hidden // heads)
    head_dim = _whole(keys, "attention.key_length", where, dimension)
    if head_dim != dimension or _whole(keys, "attention.value_length", where, head_dim) != head_dim:
        raise InputError(f"{where}: heads whose keys, values and RoPE differ in width are not built here")
    if head_dim * heads != hidden:
        found["head_dim"] = head_dim
    if (scaling := _rope_scaling(keys, frequencies, found["rope_theta"], where)) is not None:
        found["rope_scaling"] = scaling
    return found


def _refuse_others(keys: Mapping[str, Any], where: str) -> None:
    for key in keys:
        if key not in READ:
            raise InputError(f"{where}: llama.{key} is not known here, so this may be another network")
    if keys.get("expert_count"):
        raise InputError(f"{where}: a mixture of {keys['expert_count']} experts is not a plain Llama")
    if keys.get("attention.sliding_window"):
        raise InputError(f"{where}: attention with a sliding window is not built here")


def _whole(keys: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = keys.get(key, default)
    if type(value) is not int:
        raise InputError(f"{where}: llama.{key} must be a whole number, not {'a list' if value else 'missing'}")
    return value


def _vocab_size(keys: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    if "token_embd.weight" in shapes:
        return shapes["token_embd.weight"][0]  # the key is missing in older files
    return _whole(keys, "vocab_size", where)


def _decimal(value: float) -> float:
    """Return the shortest number that is `value` in fp32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _biases(shapes: Mapping[str, tuple[int, ...]], where: str) -> dict[str, bool]:
    """Return whether the projections have biases; a `Model` has them in all of a kind or in none."""
    found = {}
    for key, modules in {
        "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
        "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
    }.items():
        there = [module for module in modules if f"blk.0.{module}.bias" in shapes]
        if there and len(there) < len(modules):
            raise InputError(f"{where}: biases in {', '.join(there)} alone are not built here")
        found[key] = bool(there)
    return found


def _rope_scaling(
    keys: Mapping[str, Any], frequencies: Sequence[float] | None, theta: float, where: str
) -> dict[str, Any] | None:
    """Return the keys of `RopeScaling`, None for plain RoPE."""
    kind = keys.get("rope.scaling.type", "linear" if "rope.scale_linear" in keys else "none")
    if kind == "linear":
        factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
        return None if factor in (0.0, 1.0) else {"rope_type": "linear", "factor": _decimal(factor)}
    if kind != "none":
        raise InputError(f"{where}: RoPE scaling {kind!r} is not one of these: linear, llama3")
    if frequencies is None or max(frequencies) == 1.0:
        return None
    scaling = {"rope_type": "llama3", "factor": _decimal(max(frequencies)), **LLAMA3}
    if not np.allclose(divisors(scaling, theta, 2 * len(frequencies)), frequencies, rtol=1e-4):
        raise InputError(f"{where}: rope_freqs.weight is not the RoPE scaling of Llama 3")
    return scaling


def divisors(scaling: Mapping[str, Any], theta: float, head_dim: int) -> list[float]:
    """Return what llama3's RoPE scaling divides each of head_dim / 2 frequencies by.

    Formula: transformers' `_compute_llama3_parameters`: long waves are stretched by the factor, short ones kept, those
    between them partly.
    """
    low, high, trained = (scaling[key] for key in LLAMA3)
    found = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * theta ** (i / head_dim)
        smooth = min(1.0, max(0.0, (trained / wave - low) / (high - low)))
        found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return found
