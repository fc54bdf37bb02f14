"""A GGUF file of llama.cpp: its sizes, and its tensors dequantised one at a time by the package `gguf`."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llama_bench.errors import InputError, WorkError
from llama_bench.model.checkpoint import Array, Stored, main_dtype, size_words
from llama_bench.model.gguf_config import sizes

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Hugging Face's name of a module, without its layer → llama.cpp's."""

FREQUENCIES = "rope_freqs.weight"
"""What llama3's RoPE scaling divides each frequency by; a tensor that is no parameter."""

ROWS_BYTES = 64 * 2**20  # fp32 bytes that are dequantised at a time: the library needs several times as many


class File:
    """A GGUF file; see :class:`llama_bench.model.checkpoint.Checkpoint`."""

    head: Literal["lm", "none"] = "lm"

    def __init__(self, path: Path) -> None:
        """Read all but the tensors' data. Raises InputError when it is no GGUF file, WorkError when it is cut off."""
        self.path = path
        reader = _open(path)
        self.fields = reader.fields
        self.tensors: dict[str, ReaderTensor] = {tensor.name: tensor for tensor in reader.tensors}
        if (parts := self.field("split.count", 1)) > 1:
            raise InputError(f"{path}: one of {parts} parts; join them with llama.cpp's `llama-gguf-split --merge`")
        self.stored = {name: self._stored(tensor) for name, tensor in self.tensors.items() if name != FREQUENCIES}

    def _stored(self, tensor: ReaderTensor) -> Stored:
        shape = tuple(reversed(tensor.shape.tolist()))  # ggml names the innermost axis first
        return Stored(self.path, tensor.name, shape, tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)

    def field(self, key: str, default: Any = None) -> Any:
        """Return the metadata at `key`: a number, a text, true or false, or a list of them."""
        found = self.fields.get(key)
        return default if found is None else found.contents()

    def config(self) -> dict[str, Any]:
        """See `Checkpoint`."""
        frequencies = self.tensors.get(FREQUENCIES)
        said = {key: self.fields[key].contents() for key in self.fields if not key.startswith("tokenizer.")}
        shapes = {name: tensor.shape for name, tensor in self.stored.items()}
        return sizes(said, shapes, None if frequencies is None else frequencies.data.tolist(), str(self.path))

    def own(self, name: str) -> str:
        """See `Checkpoint`: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
        module, _, kind = name.rpartition(".")
        if not module.startswith("model.layers."):
            return f"{MODULES[module]}.{kind}"
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{MODULES[part]}.{kind}"

    def read(self, name: str) -> Array:
        """See `Checkpoint`."""
        from gguf.quants import dequantize

        own = self.own(name)
        tensor, stored = self.tensors[own], self.stored[own]
        data = tensor.data.reshape(-1, tensor.data.shape[-1])
        values = np.empty((data.shape[0], stored.shape[-1]), dtype=np.float32)
        step = max(1, ROWS_BYTES // (4 * values.shape[1]))
        for start in range(0, len(data), step):
            try:
                values[start : start + step] = dequantize(data[start : start + step], tensor.tensor_type)
            except NotImplementedError as error:
                raise WorkError(f"{self.path}: {stored.words}: {error}") from None
        found = values.reshape(stored.shape)
        for part, key in ((".q_proj.", "head_count"), (".k_proj.", "head_count_kv")):
            if part in name:
                heads = self.field(f"llama.attention.{key}") or self.field("llama.attention.head_count")
                found = unpermuted(found, heads)
        return found

    def summary(self) -> str:
        """See `Checkpoint`."""
        dtype = main_dtype(self.stored)
        how = {"F32": "as stored in", "F16": "converted from", "BF16": "converted from"}.get(dtype, "dequantised from")
        return f"{how} {dtype} (GGUF, {size_words(self.stored)})"


def unpermuted(values: Array, heads: int) -> Array:
    """Undo what llama.cpp's converter does to the rows of q and k: it puts the two halves that RoPE pairs side by side.

    `values` is [heads · D, …]; row 2·i + j of each head goes back to row j·D/2 + i.
    """
    paired = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(paired.swapaxes(1, 2)).reshape(values.shape)


def _open(path: Path) -> GGUFReader:
    """Return the reader of a file; what is wrong with the file becomes one line."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise InputError(f"{path}: not a GGUF file")
        reader = _reader()(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise WorkError(f"{path}: truncated, or not a GGUF file that can be read: {error}") from None
    if reader.byte_order != "I":
        raise InputError(f"{path}: a big-endian GGUF file on a little-endian machine")
    return reader


@functools.cache
def _reader() -> type[GGUFReader]:
    """Return the library's reader, which by itself does not say which tensor a file that is cut off lacks."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
    except ImportError:
        raise InputError("GGUF files are read by the package gguf: pip install gguf") from None

    class Reader(GGUFReader):
        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            for field in fields:
                _, name, _, dims, dtype, offset = field.parts
                kind = GGMLQuantizationType(dtype[0])
                block, size = GGML_QUANT_SIZES[kind]
                end = int(start_offs + offset[0]) + math.prod(dims.tolist()) // block * size
                if end > self.data.size:
                    shape = list(reversed(dims.tolist()))
                    raise WorkError(
                        f"{self.data.filename}: tensor {bytes(name).decode()} {kind.name} {shape} is truncated: "
                        f"it ends at byte {end}, the file at {self.data.size}"
                    )
            super()._build_tensors(start_offs, fields)

    return Reader


@contextlib.contextmanager
def inside(archive: Path) -> Iterator[Any]:
    """Open the one GGUF file in a wheel or zip archive for reading; its `name` is that in the archive.

    Raises InputError when `archive` is no zip file, or has none or several of them.
    """
    import zipfile

    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                listed = f": {', '.join(names[:4])}" if names else ""
                raise InputError(f"{archive}: must hold exactly one .gguf file, and holds {len(names)}{listed}")
            with opened.open(names[0]) as stream:
                yield stream
    except (zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{archive}: not a whole zip archive: {error}") from None
    except OSError as error:
        raise InputError(f"{archive}: {error.strerror or error}") from None
