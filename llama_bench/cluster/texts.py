"""What an arm generated, beside what torch did, and in words where the model has a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_bench.sweep import AnyModel, Model

Texts = Callable[[int, list[int]], Mapping[str, Any]]
"""Number of a sequence and its new tokens → the columns of `generations` that depend on them."""


def texts(model: AnyModel, inputs: Mapping[str, Any], reference: Path) -> Texts:
    """Return the function that describes a generated sequence; `reference` is torch's outputs, with its `tokens`."""

    def describe(sequence: int, tokens: list[int]) -> Mapping[str, Any]:
        from safetensors.numpy import load_file

        from llama_bench.model.text import text_of

        assert isinstance(model, Model)  # an own model generates nothing
        expected = load_file(reference)["tokens"][sequence].tolist()
        prompt = inputs["input_ids"][sequence].tolist()
        return {
            "sequence": sequence,
            "tokens": tokens,
            "agreed": agreed(tokens, expected),
            "prompt": text_of(model, prompt),
            "text": text_of(model, tokens),
        }

    return describe


def agreed(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """Return how many tokens agree from the first one on: after a difference the texts are different texts."""
    pairs = enumerate(zip(tokens, expected, strict=True))
    return next((i for i, (ours, theirs) in pairs if ours != theirs), len(expected))
