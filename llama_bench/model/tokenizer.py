"""A model's tokenizer, from tokenizer.json beside its weights or from the metadata of a GGUF file."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, WorkError
from llama_bench.model import gguf_file, gguf_tokenizer, huggingface, source
from llama_bench.sweep import Model

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Text to tokens and back. `files` are those to serve it with: name → where it lies, or what is to be in it."""

    def __init__(self, inner: tokenizers.Tokenizer, files: Mapping[str, Path | Mapping[str, Any]]) -> None:
        self.inner = inner
        self.files = files

    def encode(self, text: str, *, start: bool = False) -> list[int]:
        """Return the tokens of `text`; with `start` also those that the model expects around a whole text (BOS)."""
        return list(self.inner.encode(text, add_special_tokens=start).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; special ones are shown, bytes that are no character become U+FFFD."""
        return str(self.inner.decode(list(ids), skip_special_tokens=False))

    def save(self, folder: Path) -> list[str]:
        """Write what a served model needs into `folder`, and return the names of the files.

        tokenizer.json always; tokenizer_config.json, generation_config.json and the chat template where the source has
        what they say. The files of a Hugging Face folder are copied as they are.
        """
        for name, content in self.files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, folder / name)
            else:
                text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
                (folder / name).write_text(text, encoding="utf-8")
        if "tokenizer.json" not in self.files:
            self.inner.save(str(folder / "tokenizer.json"))
        return sorted({*self.files, "tokenizer.json"})


def load(model: Model) -> Tokenizer | None:
    """Return the model's tokenizer; None when its weights are seeded, or when nothing lies beside them.

    Raises InputError when the source is not there, WorkError when its tokenizer is of a kind that cannot be built.
    """
    if model.source is None:
        return None
    return _load(source.locate(model.source, Path())[1], model.source_sha256)


@functools.lru_cache(maxsize=4)
def _load(path: Path, sha256: str | None) -> Tokenizer | None:
    """Load once a process what texts ask for again and again; `sha256` tells a file from what it was before."""
    try:
        import tokenizers
    except ImportError:
        raise InputError(f"{path}: its tokenizer needs the package tokenizers: pip install tokenizers") from None
    if not path.is_dir():
        return _from_gguf(path)
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise WorkError(f"{file}: {_first_line(error)}") from None
    inner.no_truncation()
    inner.no_padding()
    return Tokenizer(inner, {name: path / name for name in huggingface.BESIDE if (path / name).is_file()})


def _from_gguf(path: Path) -> Tokenizer | None:
    file = gguf_file.File(path)
    if file.field("tokenizer.ggml.tokens") is None:
        return None
    try:
        facts = gguf_tokenizer.Facts.of(file.field)
        return Tokenizer(gguf_tokenizer.build(facts), gguf_tokenizer.files(facts))
    except Exception as error:  # the library raises plain Exception
        raise WorkError(f"{path}: tokenizer: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
