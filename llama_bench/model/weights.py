"""A model's weights, one tensor at a time: read from its source, or drawn from seeds.

A seeded tensor is drawn from its own name, so it has the same bytes on every node and version.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np

from llama_bench import threads
from llama_bench.model.inputs import philox
from llama_bench.sweep import Model

STANDARD_DEVIATION = 0.02  # LlamaConfig.initializer_range
NORM_SPREAD = 0.1  # norm weights are 1 ± this: all ones would let passes and engines drop or share them
RESIDENT_BYTES = 4 << 30
"""Weights up to this size are held by torch: reading them in every run costs seconds, and a builder has the memory."""

PIECE = 1 << 18  # blocks of a thread's piece, 16 values each: 16 MiB of float32
CHUNK = 1 << 13  # blocks at a time, which a processor's cache holds with all that is made of them: 512 KiB of float32
BLOCK_WORDS, WORD_VALUES = 4, 4  # a step of Philox's counter makes four words of 64 bits, a word four values


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its Hugging Face name (`state_dict` of `LlamaForCausalLM`).

    A tied `lm_head` has no parameter of its own.
    """
    hidden, intermediate = model.hidden_size, model.intermediate_size
    query, kv = model.num_attention_heads * model.head_size, model.kv_heads * model.head_size
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    for i in range(model.num_hidden_layers):
        layer = f"model.layers.{i}."
        for name, rows, columns, bias in (
            ("self_attn.q_proj", query, hidden, model.attention_bias),
            ("self_attn.k_proj", kv, hidden, model.attention_bias),
            ("self_attn.v_proj", kv, hidden, model.attention_bias),
            ("self_attn.o_proj", hidden, query, model.attention_bias),
            ("mlp.gate_proj", intermediate, hidden, model.mlp_bias),
            ("mlp.up_proj", intermediate, hidden, model.mlp_bias),
            ("mlp.down_proj", hidden, intermediate, model.mlp_bias),
        ):
            found[f"{layer}{name}.weight"] = (rows, columns)
            if bias:
                found[f"{layer}{name}.bias"] = (rows,)
        found[f"{layer}input_layernorm.weight"] = (hidden,)
        found[f"{layer}post_attention_layernorm.weight"] = (hidden,)
    found["model.norm.weight"] = (hidden,)
    if model.head == "lm" and not model.tie_word_embeddings:
        found["lm_head.weight"] = (model.vocab_size, hidden)
    return found


def load(model: Model) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float32]]]]:
    """Yield every parameter of `shapes(model)`, in that order: its name and its values, float32, one at a time.

    Raises WorkError that names file, tensor and shape when the source's tensors are not those of the model (before
    the first is yielded), InputError when the source is not there.
    """
    needed = shapes(model)
    if model.source is None:
        for name, shape in needed.items():
            yield name, draw(name, shape, model.seed)
        return
    from llama_bench.model import source

    yield from source.tensors(model, needed)


def weight_bytes(model: Model) -> int:
    """Return the bytes of all parameters in fp32, tied ones once."""
    return 4 * sum(math.prod(shape) for shape in shapes(model).values())


def draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the float32 values of the parameter `name`: N(0, 0.02), norm weights 1 + N(0, 0.1).

    Every 16 bits of the raw stream choose one of 65,536 equally likely normal quantiles. The largest is 4.3 standard
    deviations out, which loses nothing that a timing or an accuracy could see, and needs no algorithm that another
    version of numpy may do differently. Pieces are drawn in threads, each from its own place in the stream.
    """
    is_norm = name.endswith("norm.weight")
    table = quantiles() * np.float32(NORM_SPREAD if is_norm else STANDARD_DEVIATION)
    if is_norm:
        table += np.float32(1)
    values = np.empty(math.prod(shape), dtype=np.float32)
    each = BLOCK_WORDS * WORD_VALUES

    def some(start: int, end: int) -> None:
        bits = philox(f"{name}/{seed}")
        bits.advance(start)
        for block in range(start, end, CHUNK):
            part = values[each * block : each * min(block + CHUNK, end)]
            words = bits.random_raw(-(-part.size // WORD_VALUES)).astype("<u8", copy=False)
            np.take(table, words.view("<u2")[: part.size], out=part, mode="clip")  # "clip": no bounds check, no copy

    threads.ranges(some, -(-values.size // each), PIECE)
    return values.reshape(shape)


@functools.cache
def quantiles() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the 65,536 quantiles of N(0, 1) at (i + 0.5) / 65536, float32."""
    inverse = NormalDist().inv_cdf
    table = np.array([inverse((i + 0.5) / 65536) for i in range(65536)], dtype=np.float32)
    table.setflags(write=False)
    return table
