"""What goes into a model and what comes out, by name. numpy only: whoever times a model needs no torch."""

from __future__ import annotations

import hashlib
from typing import Any

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
    if workload.sequence > model.max_position_embeddings:
        raise InputError(
            f"model {model.label}: sequence {workload.sequence} is longer than "
            f"max_position_embeddings {model.max_position_embeddings}"
        )


def input_names(model: Model) -> list[str]:
    """Return the names of the graph's inputs, in order."""
    return ["input_ids", *(["attention_mask"] if model.attention_mask else []), "position_ids"]


def output_names(model: Model, workload: Workload) -> list[str]:
    """Return the names of the graph's outputs, in order.

    `hidden_states` [B, S, hidden] or `logits` ([B, S, vocabulary]; [B, 1, vocabulary] for `last_logits`), then
    `present.{i}.key` and `present.{i}.value` [B, KV heads, S, head size] of every layer i if `kv_out`.
    """
    first = "hidden_states" if workload.outputs == "hidden" else "logits"
    kept = range(model.num_hidden_layers) if workload.kv_out else range(0)
    return [first, *(f"present.{i}.{part}" for i in kept for part in ("key", "value"))]


def make_inputs(model: Model, workload: Workload, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Return the inputs of one prefill by name, each int64 [batch, sequence].

    `input_ids` are drawn from `seed` (the same on every machine), `position_ids` count from 0, `attention_mask` (if
    the model takes one) is all ones: no padding, as in the study.
    """
    check(model, workload)
    shape = (workload.batch, workload.sequence)
    raw = philox(f"input_ids/{seed}").random_raw(workload.tokens)
    inputs = {"input_ids": (raw % np.uint64(model.vocab_size)).astype(np.int64).reshape(shape)}
    if model.attention_mask:
        inputs["attention_mask"] = np.ones(shape, dtype=np.int64)
    inputs["position_ids"] = np.tile(np.arange(workload.sequence, dtype=np.int64), (workload.batch, 1))
    return inputs


def philox(words: str) -> np.random.Philox:
    """Return the counter-based bit generator that `words` select.

    Only its raw 64-bit words are used: they are the published algorithm (Salmon et al. 2011), while numpy keeps the
    freedom to change how `Generator` turns them into numbers.
    """
    return np.random.Philox(key=int.from_bytes(hashlib.sha256(words.encode()).digest()[:16], "little"))
