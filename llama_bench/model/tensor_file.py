"""Files in the format of safetensors, written as their numbers come; the library writes only what is in memory whole.

The format (huggingface/safetensors, "Format"): the length of the header as an 8-byte little-endian number, the header
in JSON (type, shape and range of bytes of every tensor), the tensors' bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]

WORDS = {"<f4": "F32", "<i8": "I64"}
"""Types that are written: numpy's word → the format's."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A float32 tensor of `shape` whose values come in pieces, in their order."""

    shape: tuple[int, ...]
    pieces: Iterable[Array]
    dtype: str = "<f4"


def save(path: Path, tensors: Mapping[str, Array | Stream]) -> None:
    """Write `tensors`, float32 or int64, to `path` in the order of their alignment; pieces are held one at a time.

    Raises ValueError when the pieces of a stream are fewer or more than its shape needs.
    """
    streams = {
        name: tensor
        if isinstance(tensor, Stream)
        else Stream(tensor.shape, [tensor], tensor.dtype.newbyteorder("<").str)
        for name, tensor in tensors.items()
    }
    ordered = sorted(streams.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    header: dict[str, Any] = {}
    end = 0
    for name, stream in ordered:
        start, end = end, end + math.prod(stream.shape) * np.dtype(stream.dtype).itemsize
        header[name] = {"dtype": WORDS[stream.dtype], "shape": list(stream.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, stream in ordered:
            for piece in stream.pieces:
                file.write(np.ascontiguousarray(piece, dtype=stream.dtype).data)
            if file.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                raise ValueError(f"{path}: tensor {name} came with another number of values than {list(stream.shape)}")
