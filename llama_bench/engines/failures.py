"""What ONNX Runtime says when it fails, as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from llama_bench.errors import WorkError

LONGEST = 400
"""Characters of a message: ONNX Runtime may quote half a graph."""


@contextlib.contextmanager
def failing(when: str) -> Iterator[None]:
    """Turn whatever ONNX Runtime raises `when` it does something into a WorkError of one line."""
    try:
        yield
    except WorkError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise WorkError(f"ONNX Runtime failed {when}: {line(error)}") from error


def line(error: Exception) -> str:
    """Return the message of `error` as one line."""
    return " ".join(str(error).split())[:LONGEST]
