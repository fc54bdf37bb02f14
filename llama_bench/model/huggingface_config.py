"""config.json of Hugging Face → the keys of `Model`, and what of it is not the Llama that is built here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_bench.errors import InputError

KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "llama": (
        ("LlamaForCausalLM", "LlamaModel"),
        {"max_position_embeddings": 2048, "num_key_value_heads": None},
    ),
    "mistral": (
        ("MistralForCausalLM", "MistralModel"),
        {"max_position_embeddings": 131072, "num_key_value_heads": 8},
    ),
}
"""model_type → its architectures, and the values that its configuration class has for what is left out."""

NEEDED = ("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size")

ROPE = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kind of RoPE scaling → what it must say."""


def sizes(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the sizes of a Hugging Face configuration by the keys of `Model`, `head_dim` only where it is unusual.

    `where` names the file in messages. Raises InputError, with its name, for what would be another network.
    """
    kind = _kind(config, where)
    defaults = KINDS[kind][1]
    for key in NEEDED:
        if type(config.get(key)) is not int:
            raise InputError(f"{where}: {key} must be a whole number, not {config.get(key)!r}")
    _refuse_others(config, kind, where)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    found: dict[str, Any] = {key: config[key] for key in NEEDED}
    found["num_key_value_heads"] = config.get("num_key_value_heads") or defaults["num_key_value_heads"] or heads
    found["max_position_embeddings"] = config.get("max_position_embeddings") or defaults["max_position_embeddings"]
    found["rms_norm_eps"] = float(config.get("rms_norm_eps", 1e-6))
    rope = config.get("rope_parameters") or {}
    found["rope_theta"] = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        found[key] = bool(config.get(key, False))
    if (scaling := _rope_scaling(config.get("rope_scaling") or rope, where)) is not None:
        found["rope_scaling"] = scaling
    if (head_dim := config.get("head_dim")) is not None and head_dim * heads != hidden:
        found["head_dim"] = head_dim
    return found


def _kind(config: Mapping[str, Any], where: str) -> str:
    """Return the model_type, which must be one of KINDS, as must what `architectures` names."""
    architectures = config.get("architectures") or []
    kind = str(config.get("model_type", ""))
    for name in architectures or [kind]:
        if kind not in KINDS or (architectures and name not in KINDS[kind][0]):
            able = ", ".join(names[0] for names, _ in KINDS.values())
            raise InputError(f"{where}: the architecture {name or 'without a name'} is not one of these: {able}")
    return kind


def _refuse_others(config: Mapping[str, Any], kind: str, where: str) -> None:
    """Raise InputError for settings that make another network of the same architecture."""
    if (act := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise InputError(f"{where}: hidden_act {act!r} is not the silu of a Llama")
    if (quantized := config.get("quantization_config")) is not None:
        method = quantized.get("quant_method", "?") if isinstance(quantized, Mapping) else quantized
        raise InputError(f"{where}: weights quantised by {method} cannot be read; take the original checkpoint")
    window = config.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind == "mistral" and window is not None and window < config.get("max_position_embeddings", 131072):
        raise InputError(f"{where}: attention with a sliding window of {window} tokens is not built here")
    rope = config.get("rope_parameters") or {}
    if (part := rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))) != 1.0:
        raise InputError(f"{where}: partial_rotary_factor {part}: RoPE on a part of each head is not built here")


def _rope_scaling(said: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Return the keys of `RopeScaling`, None for plain RoPE."""
    kind = said.get("rope_type") or said.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ROPE:
        raise InputError(f"{where}: RoPE scaling {kind!r} is not one of these: {', '.join(ROPE)}")
    for key in ROPE[kind]:
        if not isinstance(said.get(key), int | float):
            raise InputError(f"{where}: RoPE scaling {kind} needs {key}, a number, not {said.get(key)!r}")
    found: dict[str, Any] = {"rope_type": kind, **{key: float(said[key]) for key in ROPE[kind]}}
    if kind == "llama3":
        found["original_max_position_embeddings"] = int(said["original_max_position_embeddings"])
    return found
