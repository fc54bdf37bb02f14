"""What goes into a model and what comes out, by name. numpy only: whoever times a model needs no torch."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np

from llama_bench.errors import InputError
from llama_bench.sweep import Model, Workload


def check(model: Model, workload: Workload) -> None:
    """Raise InputError when `workload` asks for what `model` does not have."""
    if workload.outputs != "hidden" and model.head == "none":
        raise InputError(
            f"model {model.label}: outputs {workload.outputs!r} need head: lm, but the model has head: none; "
            "ask for outputs: hidden"
        )
    if workload.longest > model.max_position_embeddings:
        raise InputError(
            f"model {model.label}: sequence {workload.longest} is longer than "
            f"max_position_embeddings {model.max_position_embeddings}"
        )
    if workload.kind != "prefill" and not model.cache:
        raise InputError(f"model {model.label}: {workload.kind} needs a KV cache: give the model cache: true")


def input_names(model: Model) -> list[str]:
    """Return the names of the graph's inputs, in order."""
    names = ["input_ids", *(["attention_mask"] if model.attention_mask else []), "position_ids"]
    return [*names, *(cache_names(model, "past") if model.cache else [])]


def output_names(model: Model, workload: Workload) -> list[str]:
    """Return the names of the graph's outputs, in order.

    `hidden_states` [B, S, hidden] or `logits` ([B, S, vocabulary]; [B, 1, vocabulary] for `last_logits`), then
    `present.{i}.key` and `present.{i}.value` [B, KV heads, S, head size] of every layer i if `kv_out` or `cache`.
    """
    first = "hidden_states" if workload.outputs == "hidden" else "logits"
    return [first, *(cache_names(model, "present") if workload.kv_out or model.cache else [])]


def cache_names(model: Model, when: Literal["past", "present"]) -> list[str]:
    """Return the names of the keys and values of every layer, `past.0.key`, `past.0.value`, `past.1.key` …"""
    return [f"{when}.{i}.{part}" for i in range(model.num_hidden_layers) for part in ("key", "value")]


def make_inputs(model: Model, workload: Workload, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return what a run is given by name, each int64 [batch, `workload.given`].

    `input_ids` are drawn from `seed` (the same on every machine), `position_ids` count from 0, `attention_mask` (if
    the model takes one) is all ones: no padding, as in the study. Of a decode step's tokens all but the last are in
    the cache already.
    """
    check(model, workload)
    inputs = {"input_ids": token_ids(model, workload.batch, workload.given, seed)}
    if model.attention_mask:
        inputs["attention_mask"] = np.ones((workload.batch, workload.given), dtype=np.int64)
    inputs["position_ids"] = positions(workload.batch, 0, workload.given)
    return inputs


def token_ids(model: Model, batch: int, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Return tokens [batch, count] drawn from `seed`, int64 below the vocabulary's size, the same on every machine."""
    raw = philox(f"input_ids/{seed}").random_raw(batch * count)
    return (raw % np.uint64(model.vocab_size)).astype(np.int64).reshape(batch, count)


def positions(batch: int, past: int, new: int) -> np.ndarray[Any, Any]:
    """Return the positions [batch, new] of `new` tokens that come after `past` ones, int64."""
    return np.tile(np.arange(past, past + new, dtype=np.int64), (batch, 1))


def step_inputs(input_ids: np.ndarray[Any, Any], past: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return the inputs of one step of a cached graph but for the cache: tokens [B, S] after `past` cached ones.

    A graph takes what it knows: a traced one `position_ids`, one with GroupQueryAttention `seqlens_k` (int32 [B],
    total − 1) and `total_sequence_length` (int32, one number on the CPU), as ONNX Runtime's contrib operator has them.
    """
    batch, new = input_ids.shape
    return {
        "input_ids": np.ascontiguousarray(input_ids, dtype=np.int64),
        "position_ids": positions(batch, past, new),
        "seqlens_k": np.full(batch, past + new - 1, dtype=np.int32),
        "total_sequence_length": np.array(past + new, dtype=np.int32),
    }


def philox(words: str) -> np.random.Philox:
    """Return the counter-based bit generator that `words` select.

    Only its raw 64-bit words are used: they are the published algorithm (Salmon et al. 2011), while numpy keeps the
    freedom to change how `Generator` turns them into numbers.
    """
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little"))
