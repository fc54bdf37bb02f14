"""Text to score a model on: which one, its tokens, and the windows in which they pass through a session."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from llama_bench.errors import InputError
from llama_bench.model import tokenizer
from llama_bench.sweep import Model, Text

Tokens: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

DEFAULT = "the help texts of Python"

CHARACTERS = 32  # of text for each token that is wanted, before all of a long text is put into tokens


def default_text() -> str:
    """Return the help texts that every CPython carries (`pydoc_data.topics`), in the order of their names.

    About 465,000 characters of English; they differ between versions of Python, so a run records their hash.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def read(text: Text) -> str:
    """Return the text's characters, its line ends those of Unix.

    Raises InputError when its file is missing, not UTF-8, or another one than when the sweep was read.
    """
    if text.file is None:
        return default_text()
    try:
        data = Path(text.file).read_bytes()
        characters = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{text.file}: not UTF-8 text (byte 0x{error.object[error.start]:02x})") from None
    except OSError as error:
        raise InputError(f"{text.file}: {error.strerror or error}") from None
    if text.file_sha256 not in (None, found := hashlib.sha256(data).hexdigest()):
        raise InputError(f"{text.file}: its SHA-256 is {found}, and was {text.file_sha256} when the sweep was read")
    return characters.replace("\r\n", "\n").replace("\r", "\n")


def sha256(text: Text) -> str:
    """Return the hash of the text's characters in UTF-8."""
    return hashlib.sha256(read(text).encode()).hexdigest()


def tokens(model: Model, text: Text, count: int) -> Tokens:
    """Return the first `count` tokens of the text, int64 [count]; of a model without tokenizer the text's bytes.

    They begin with what the model expects at the start of a text (BOS), if anything. Raises InputError when the text
    has fewer.
    """
    characters, known = read(text), tokenizer.load(model)
    if known is None:
        found = np.frombuffer(characters[:count].encode()[:count], np.uint8).astype(np.int64) % model.vocab_size
    else:
        ids = known.encode(characters[: CHARACTERS * count], start=True)
        if len(ids) < count and len(characters) > CHARACTERS * count:
            ids = known.encode(characters, start=True)
        found = np.array(ids[:count], dtype=np.int64)
    if len(found) < count:
        raise InputError(
            f"{text.file or DEFAULT}: has {len(found)} tokens of model {model.label}, and {count} are needed"
        )
    return found


def needed(predictions: int, window: int, stride: int) -> int:
    """Return how many tokens give windows that score at least `predictions`."""
    more = max(0, predictions - (window - 1))
    return window + -(-more // stride) * stride


def windows(tokens: Tokens, window: int, stride: int) -> tuple[Tokens, Tokens]:
    """Return the windows [N, window] of `tokens`, and how many of each one's last predictions count, [N].

    The sliding window of Hugging Face's guide to perplexity: the first scores all its window − 1 predictions, each
    later one, `stride` tokens on, its last `stride`, so that every token is scored once and with the most context.
    Tokens that fill no further window are left out. Raises InputError unless 1 ≤ stride ≤ window − 1 and there are
    tokens for one window.
    """
    if not 1 <= stride <= window - 1:
        raise InputError(f"stride {stride}: must be from 1 to window − 1, which is {window - 1}")
    if len(tokens) < window:
        raise InputError(f"a text of {len(tokens)} tokens is shorter than a window of {window}")
    found = np.lib.stride_tricks.sliding_window_view(tokens, window)[::stride].copy()
    scored = np.full(len(found), stride, dtype=np.int64)
    scored[0] = window - 1
    return found, scored


def text_of(model: Model, ids: Sequence[int]) -> str | None:
    """Return the text that tokens stand for; None where the model has no tokenizer."""
    known = tokenizer.load(model)
    return None if known is None else known.decode(ids)
