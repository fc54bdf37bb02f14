"""Tiny real models: every part of a Llama, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llama_bench.sweep import Model


@pytest.fixture
def tiny() -> Callable[..., Model]:
    """Return a maker of small models; what is given replaces or adds a key."""

    def make(**changed: Any) -> Model:
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
        return Model(**{**sizes, "max_position_embeddings": 64, **changed})

    return make
