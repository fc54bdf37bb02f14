"""A Hugging Face folder: config.json and safetensors, in one file or sharded, in fp32, fp16 or bf16.

The headers are read here and not by the library, which cannot say of a file that is cut off which tensor is lost.
Format: https://huggingface.co/docs/safetensors (eight bytes of length, a header in JSON, the tensors' bytes).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llama_bench.errors import InputError, WorkError
from llama_bench.model.checkpoint import Array, Stored, check_whole, main_dtype, size_words
from llama_bench.model.huggingface_config import sizes

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"

BESIDE = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
    "chat_template.jinja",
)  # fmt: skip
"""Files beside the weights that decide what a text's tokens are and how the model is served."""

READ_AS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
"""Type in the file → numpy's, of bf16 its bits."""

WORDS = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}

HEADER_BYTES = 100_000_000  # the format's own limit


class Folder:
    """A folder with config.json and safetensors; see :class:`llama_bench.model.checkpoint.Checkpoint`."""

    def __init__(self, path: Path) -> None:
        """Read the headers of all weight files. Raises InputError or WorkError when one is not what it should be."""
        self.path = path
        self.said = read_json(path / CONFIG)
        self.stored = _headers(path)
        check_whole(self.stored)
        # what LlamaModel saved has no lm_head and no prefix
        self.head: Literal["lm", "none"] = "none" if "embed_tokens.weight" in self.stored else "lm"

    def config(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        return sizes(self.said, str(self.path / CONFIG))

    def own(self, name: str) -> str:
        """See `Checkpoint`."""
        return name.removeprefix("model.") if self.head == "none" else name

    def read(self, name: str) -> Array:
        """See `Checkpoint`; holds the tensor once more only where it is not fp32."""
        tensor = self.stored[self.own(name)]
        if tensor.dtype not in READ_AS:
            raise WorkError(f"{tensor.file}: {tensor.words}: only {', '.join(WORDS.values())} can be read")
        dtype, count = np.dtype(READ_AS[tensor.dtype]), math.prod(tensor.shape)
        values = np.fromfile(tensor.file, dtype=dtype, count=count, offset=tensor.start)
        if values.size < count:
            raise WorkError(f"{tensor.file}: {tensor.words} is truncated: {values.size} of {count} numbers are there")
        return (widened(values) if tensor.dtype == "BF16" else values.astype(np.float32, copy=False)).reshape(
            tensor.shape
        )

    def summary(self) -> str:
        """See `Checkpoint`."""
        dtype = main_dtype(self.stored)
        how = "as stored in" if dtype == "F32" else "converted from"
        return f"{how} {WORDS.get(dtype, dtype)} (safetensors, {size_words(self.stored)})"


def widened(bits: np.ndarray[Any, np.dtype[np.uint16]]) -> Array:
    """Return bf16 numbers, given as their bits, in fp32: the same 16 bits, followed by zeros."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def files(path: Path) -> list[Path]:
    """Return the files of the folder that make the model: config, weights, tokenizer. Reads no more than the index.

    Raises InputError when there is no config.json or no safetensors.
    """
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: no {CONFIG}, so not a Hugging Face model folder")
    beside = [path / name for name in (CONFIG, INDEX, *BESIDE) if (path / name).is_file()]
    return [*beside, *_weight_files(path)]


def _weight_files(path: Path) -> list[Path]:
    if (path / INDEX).is_file():
        return [path / name for name in sorted(set(_weight_map(path).values()))]
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise InputError(f"{path}: {len(found)} files of safetensors and no {INDEX} that says which tensor is where")
    hint = "; convert pytorch_model.bin with transformers' save_pretrained" if list(path.glob("*.bin")) else ""
    raise InputError(f"{path}: no safetensors, the one format of Hugging Face weights that is read{hint}")


def _weight_map(path: Path) -> dict[str, str]:
    """Return tensor → file as the index has it; files lie in the folder itself."""
    index = read_json(path / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in index.values()
    ):
        raise InputError(f"{path / INDEX}: weight_map must map tensors to names of files in this folder")
    return index


def _headers(path: Path) -> dict[str, Stored]:
    """Return every tensor of the folder but the frequencies that old checkpoints carry along."""
    placed = _weight_map(path) if (path / INDEX).is_file() else {}
    stored: dict[str, Stored] = {}
    for file in _weight_files(path):
        expected = [name for name, where in placed.items() if where == file.name]
        if not file.is_file():
            raise WorkError(f"{file}: missing; {INDEX} says that it holds {len(expected)} tensors, {expected[0]} first")
        found = header(file)
        for name in expected:
            if name not in found:
                raise WorkError(f"{file}: tensor {name} is missing; {INDEX} says that it is here")
        stored |= found
    return {name: tensor for name, tensor in stored.items() if not name.endswith("rotary_emb.inv_freq")}


def header(file: Path) -> dict[str, Stored]:
    """Return the tensors of one safetensors file by name. Raises WorkError when its header is not whole or not sane."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise WorkError(f"{file}: a pointer of Git LFS, not the weights: run `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, HEADER_BYTES):
            raise WorkError(f"{file}: truncated, or not safetensors: a header of {length} bytes in a file of {size}")
        said = stream.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(said).items() if name != "__metadata__"}
        return {name: _entry(file, name, entry, 8 + length) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{file}: not safetensors: {type(error).__name__}: {error}") from None


def _entry(file: Path, name: str, entry: Mapping[str, Any], offset: int) -> Stored:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    found = Stored(file, name, shape, str(entry["dtype"]), offset + begin, end - begin)
    if found.dtype in READ_AS and found.bytes != math.prod(shape) * np.dtype(READ_AS[found.dtype]).itemsize:
        raise WorkError(f"{file}: {found.words} cannot take {found.bytes} bytes")
    return found


def read_json(file: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; raises InputError when it is not there or not one."""
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: must hold a mapping")
    return found
