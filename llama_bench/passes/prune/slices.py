"""Heads, channels and layers taken out of a checkpoint: smaller matrices, and a model with the sizes that are left."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llama_bench.sweep import Model

if TYPE_CHECKING:
    from llama_bench.passes.checkpoint import Array, Checkpoint

Places: TypeAlias = np.ndarray[Any, Any]
"""Indices in ascending order."""

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stays. `layers`: decoder layers. Of every layer, the same number in all: `channels` of its feed-forward
    network, `groups`: KV heads with their query heads, or `heads`: query heads, as many of each KV head.

    None leaves all.
    """

    layers: Places | None = None
    channels: Sequence[Places] | None = None
    groups: Sequence[Places] | None = None
    heads: Sequence[Places] | None = None


def cut(before: Checkpoint, chosen: Chosen) -> tuple[Model, dict[str, Array]]:
    """Return the smaller model and its parameters, float32 by name."""
    model = before.model
    cuts = [_cuts(model, chosen, i) for i in range(model.num_hidden_layers)]
    numbers = {int(old): new for new, old in enumerate(range(len(cuts)) if chosen.layers is None else chosen.layers)}
    tensors: dict[str, Array] = {}
    for name, tensor in before.tensors():
        found = LAYER.fullmatch(name)
        if found is None:
            tensors[name] = tensor
            continue
        layer, part = int(found[1]), found[2]
        if layer in numbers:
            axis, places = cuts[layer].get(part, (0, None))
            left = tensor if places is None else np.ascontiguousarray(np.take(tensor, places, axis))
            tensors[f"model.layers.{numbers[layer]}.{part}"] = left
    return sizes(model, chosen), tensors


def sizes(model: Model, chosen: Chosen) -> Model:
    """Return `model` with the sizes that are left; its head size is spelled out, as heads no longer fill the width."""
    changed: dict[str, Any] = {}
    if chosen.layers is not None:
        changed["num_hidden_layers"] = len(chosen.layers)
    if chosen.channels is not None:
        changed["intermediate_size"] = len(chosen.channels[0])
    each = model.num_attention_heads // model.kv_heads
    if chosen.groups is not None:
        left = len(chosen.groups[0])
        changed |= {"num_key_value_heads": left, "num_attention_heads": left * each, "head_dim": model.head_size}
    if chosen.heads is not None:
        left = len(chosen.heads[0])
        changed |= {"num_key_value_heads": model.kv_heads, "num_attention_heads": left, "head_dim": model.head_size}
    return Model.model_validate(model.model_dump() | changed)


def _cuts(model: Model, chosen: Chosen, layer: int) -> dict[str, tuple[int, Places]]:
    """Return parameter of `layer` → axis and places that stay on it; biases of what writes outside stay whole."""
    cuts: dict[str, tuple[int, Places]] = {}

    def rows(part: str, places: Places) -> None:
        cuts[f"{part}.weight"] = cuts[f"{part}.bias"] = (0, places)

    if chosen.channels is not None:
        places = chosen.channels[layer]
        rows("mlp.gate_proj", places)
        rows("mlp.up_proj", places)
        cuts["mlp.down_proj.weight"] = (1, places)
    size, each = model.head_size, model.num_attention_heads // model.kv_heads
    if chosen.groups is not None:
        groups = chosen.groups[layer]
        rows("self_attn.k_proj", spread(groups, size))
        rows("self_attn.v_proj", spread(groups, size))
        rows("self_attn.q_proj", spread(groups, each * size))
        cuts["self_attn.o_proj.weight"] = (1, spread(groups, each * size))
    if chosen.heads is not None:
        rows("self_attn.q_proj", spread(chosen.heads[layer], size))
        cuts["self_attn.o_proj.weight"] = (1, spread(chosen.heads[layer], size))
    return cuts


def spread(places: Places, width: int) -> Places:
    """Return the numbers of all the rows of blocks `places`, `width` rows each."""
    found: Places = (places[:, None] * width + np.arange(width)).ravel()
    return found
