"""What one run of a model takes, counted and not measured: operations, bytes of weights, outputs and traffic. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llama_bench.model.weights import shapes, weight_bytes
from llama_bench.sweep import AnyModel, Model, OwnModel, Workload


def model_bytes(model: AnyModel) -> int:
    """Bytes of a model's weights: of a Llama in fp32, of an ONNX file as it stores them."""
    return model.weight_bytes if isinstance(model, OwnModel) else weight_bytes(model)


def flops(model: AnyModel, workload: Workload) -> float:
    """Operations of one run: 2 · parameters · tokens in the matrix products, 4 · B · S² · D a layer in attention.

    Attention of a prefill is counted in full: an exported graph computes both halves of the causal matrix. A decode
    step attends to its context; `generate` is its prompt and a step for each new token but the first. Those of an own
    model are counted in its graph, or guessed where they cannot be (:meth:`OwnModel.floats`).
    """
    batch = workload.batch
    if isinstance(model, OwnModel):
        return model.floats(batch, workload.given)
    if workload.kind == "decode":
        return _flops(model, batch, 1, workload.longest, batch)
    if workload.kind == "generate":
        steps = range(workload.given + 1, workload.longest + 1)
        prompt = _flops(model, batch, workload.given, workload.given, batch)
        return prompt + sum(_flops(model, batch, 1, total, batch) for total in steps)
    rows = {"logits": workload.tokens, "last_logits": batch}.get(str(workload.outputs), 0)
    return _flops(model, batch, workload.given, workload.given, rows)


def _flops(model: Model, batch: int, new: int, total: int, logits: int) -> float:
    """Operations of a step of `new` tokens a sequence that attend to `total`, with `logits` rows of logits."""
    linear = sum(
        math.prod(shape)
        for name, shape in shapes(model).items()
        if len(shape) == 2 and name not in ("model.embed_tokens.weight", "lm_head.weight")
    )
    width = model.num_attention_heads * model.head_size
    attention = 4 * batch * new * total * width * model.num_hidden_layers
    head = 2 * model.hidden_size * model.vocab_size * logits if model.head == "lm" else 0
    return float(2 * linear * batch * new + attention + head)


def output_bytes(model: AnyModel, workload: Workload) -> int:
    """Bytes of a run's outputs in fp32 (an own model's as they are), stored once a workload as its reference."""
    if isinstance(model, OwnModel):
        return model.cost(workload.batch, workload.given).output_bytes
    if workload.kind != "prefill":
        return 8 * workload.tokens if workload.kind == "generate" else 4 * workload.batch * model.vocab_size
    positions = workload.batch if workload.outputs == "last_logits" else workload.tokens
    width = model.hidden_size if workload.outputs == "hidden" or model.head == "none" else model.vocab_size
    cache = cache_bytes(model, workload) if workload.kv_out or model.cache else 0
    return 4 * positions * width + cache


def cache_bytes(model: Model, workload: Workload) -> int:
    """Bytes of the keys and values of every layer at the end of a run, in fp32."""
    return 8 * model.num_hidden_layers * workload.batch * workload.longest * model.kv_heads * model.head_size


def scored(model: AnyModel, workload: Workload, text: Mapping[str, Any] | None) -> int:
    """Predictions on text that every arm is scored by; 0 where its outputs predict nothing that can be compared."""
    if isinstance(model, OwnModel):
        return 0
    predicts = workload.outputs == "logits" or (model.cache and workload.outputs == "last_logits")
    return int(text["tokens"]) if text is not None and predicts else 0


def reference_bytes(model: AnyModel, workload: Workload, text: Mapping[str, Any] | None) -> int:
    """Bytes of a reference: torch's outputs, and its logits for the text; of an own model its inputs and outputs."""
    if isinstance(model, OwnModel):
        return model.cost(workload.batch, workload.given).input_bytes + output_bytes(model, workload)
    return output_bytes(model, workload) + 4 * model.vocab_size * scored(model, workload, text)


def moved_bytes(model: AnyModel, workload: Workload, weight_bytes: int) -> float:
    """Bytes that one run must move at least between memory and processor: weights once, inputs, outputs.

    `weight_bytes` are those that the variant stores. The embedding is a table of which only the rows of the tokens
    are read, so its bytes in fp32 come off, unless it is the head too and every row is needed; an lm_head whose logits
    are not asked for is not read. A copy that an exporter stores beside its original (a tied head, turned) need not
    move: no more counts than the parameters themselves take in fp32. Activations count as nothing, as they may stay
    in caches. Inputs are int64, outputs fp32.

    The denominator of operational intensity, bytes of memory traffic and not of loads and stores, in Williams,
    Waterman & Patterson (2009), "Roofline: An Insightful Visual Performance Model for Multicore Architectures"; the
    least traffic that any implementation has, so that the bound holds for all. Of an own model's weights those count
    that products read.
    """
    if isinstance(model, OwnModel):
        cost = model.cost(workload.batch, workload.given)
        read = min(max(weight_bytes - (model.weight_bytes - model.product_bytes), 0), model.product_bytes)
        return float(read + cost.input_bytes + cost.output_bytes)
    if workload.kind == "generate":
        first = workload.model_copy(update={"kind": "prefill", "sequence": workload.prompt, "prompt": None})
        steps = range(workload.given, workload.longest)
        step = workload.model_copy(update={"kind": "decode", "context": None, "prompt": None, "new_tokens": None})
        at = (step.model_copy(update={"context": context}) for context in steps)
        prompt = moved_bytes(model, first.model_copy(update={"new_tokens": None, "kv_out": False}), weight_bytes)
        return prompt + sum(moved_bytes(model, one, weight_bytes) for one in at)
    parameters = {name: 4 * math.prod(shape) for name, shape in shapes(model).items()}
    embedding, head = parameters.pop("model.embed_tokens.weight"), parameters.pop("lm_head.weight", 0)
    logits = model.head == "lm" and workload.outputs != "hidden"
    needed = sum(parameters.values()) + (head if logits else 0)
    if logits and model.tie_word_embeddings:
        weights = float(min(weight_bytes, needed + embedding))
    else:
        rows = 4 * min(workload.tokens, model.vocab_size) * model.hidden_size
        weights = float(min(max(weight_bytes - embedding, 0), needed) + min(rows, weight_bytes))
    inputs = 8 * workload.tokens * (3 if model.attention_mask else 2)
    return weights + inputs + output_bytes(model, workload)
