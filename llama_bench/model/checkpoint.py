"""What every kind of checkpoint has: tensors by the names in its files, and the check that they are a model's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from llama_bench.errors import WorkError

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it lies in `file`: its name there, shape, type, and the bytes that it takes from `start` on."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int
    bytes: int

    @property
    def words(self) -> str:
        """The tensor in words, for messages."""
        return f"tensor {self.name} {self.dtype} {list(self.shape)}"


class Checkpoint(Protocol):
    """A Hugging Face folder or a GGUF file."""

    path: Path
    head: Literal["lm", "none"]
    """Whether it is a model with lm_head (which may be tied) or the decoder stack alone."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every tensor of weights, by its name in the files."""

    def config(self) -> dict[str, Any]:
        """Return its sizes by the keys of `Model`; raises InputError when the architecture is not a Llama's."""

    def own(self, name: str) -> str:
        """Return the checkpoint's own name of the parameter that Hugging Face calls `name`."""

    def read(self, name: str) -> Array:
        """Return the parameter that Hugging Face calls `name`, float32, in Hugging Face's order of rows."""

    def summary(self) -> str:
        """Say in a line what the numbers were stored as."""


def check(checkpoint: Checkpoint, needed: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WorkError for the first tensor that is missing, has another shape than `needed` (by Hugging Face's names),
    or has no place in the model. An lm_head that a model without a head, or with a tied one, has no use for may be
    there.
    """
    known = {checkpoint.own("lm_head.weight")}
    for name, shape in needed.items():
        own = checkpoint.own(name)
        found = checkpoint.stored.get(own)
        if found is None:
            raise WorkError(f"{checkpoint.path}: tensor {own} is missing; the model needs it as {list(shape)}")
        if found.shape != shape:
            raise WorkError(f"{found.file}: {found.words} has the wrong shape; the model needs {list(shape)}")
        known.add(own)
    for own, found in checkpoint.stored.items():
        if own not in known:
            raise WorkError(f"{found.file}: {found.words} has no place in the model")


def check_whole(stored: Mapping[str, Stored]) -> None:
    """Raise WorkError for the first tensor, in the order of the bytes, that its file ends before."""
    sizes = {file: file.stat().st_size for file in {tensor.file for tensor in stored.values()}}
    for tensor in sorted(stored.values(), key=lambda tensor: tensor.start):
        end, size = tensor.start + tensor.bytes, sizes[tensor.file]
        if end > size:
            raise WorkError(f"{tensor.file}: {tensor.words} is truncated: it ends at byte {end}, the file at {size}")


def size_words(stored: Mapping[str, Stored]) -> str:
    """Return the bytes of the tensors' files in words: `98 MB`, `13 GB`."""
    number = float(sum(file.stat().st_size for file in {tensor.file for tensor in stored.values()}))
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 9.95 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def main_dtype(stored: Mapping[str, Stored]) -> str:
    """Return the type in which most numbers are stored, of the matrices where there are any."""
    matrices = [tensor for tensor in stored.values() if len(tensor.shape) > 1] or list(stored.values())
    numbers: dict[str, int] = {}
    for tensor in matrices:
        numbers[tensor.dtype] = numbers.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return max(numbers, key=lambda dtype: numbers[dtype], default="nothing")
