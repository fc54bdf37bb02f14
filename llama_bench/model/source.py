"""Where a model's real weights come from: a Hugging Face folder, a hub name, a GGUF file, or an archive that holds one.

`describe` says what lies there when a sweep is read, `tensors` reads it when a model is built.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llama_bench import versions
from llama_bench.errors import InputError, WorkError, nearest
from llama_bench.model import cached, gguf_file, huggingface, weights
from llama_bench.model.checkpoint import Array, Checkpoint, check
from llama_bench.sweep import Model
from llama_bench.sweep_tree import Described

ARCHIVES = (".whl", ".zip")

HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")

WANTED = ["config.json", "model*.safetensors", huggingface.INDEX, *huggingface.BESIDE]
"""What is fetched of a hub repository; many hold the same weights in three formats."""

CODE = tuple(
    f"model.{name}"
    for name in ("source", "checkpoint", "huggingface", "huggingface_config", "gguf_file", "gguf_config", "weights")
)
"""What a description depends on besides the files."""


def describe(source: str, base: Path) -> Described:
    """Say what lies at `source`; a relative path starts from `base`, `~` is the home folder.

    Reads headers, and once all bytes for their hash; both are remembered by size and time of change. Raises InputError
    when nothing usable is there, WorkError, with file, tensor and shape, when tensors are not those of its own sizes.
    """
    kept, path, name = locate(source, base)
    known = cached.remembered(["description", versions.code(*CODE)], _files(path), lambda: _description(path))
    return Described(kept, path, name, known["config"], _sha256(path), known["summary"])


def summary(model: Model) -> str | None:
    """Say what the model's numbers were stored as: "dequantised from Q4_1 (GGUF, 98 MB)"; None when they are seeded.

    Where the source is not on this machine, that it is not is what can be said.
    """
    if model.source is None:
        return None
    try:
        return describe(model.source, Path()).summary
    except (InputError, WorkError):
        return f"from {Path(model.source).name}, which is not on this machine"


def tensors(model: Model, needed: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Array]]:
    """Yield the parameters `needed` (Hugging Face's name → shape) of the model's source, float32, one at a time.

    Raises WorkError with file, tensor and shape before the first when they are not those that are needed, and when the
    source's content is not what the sweep was read with; InputError when the source is not there.
    """
    assert model.source is not None
    path = locate(model.source, Path())[1]
    checkpoint = open_checkpoint(path)
    check(checkpoint, needed)
    if model.source_sha256 is not None and (found := _sha256(path)) != model.source_sha256:
        raise WorkError(
            f"{path}: changed since the sweep was read: hash {found[:16]}…, not {model.source_sha256[:16]}…"
        )
    for name in needed:
        yield name, checkpoint.read(name)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the folder or GGUF file at `path`; see there for what is raised."""
    return huggingface.Folder(path) if path.is_dir() else gguf_file.File(path)


def locate(source: str, base: Path) -> tuple[str, Path, str]:
    """Return `source` as a sweep keeps it, the folder or GGUF file on this machine, and a name for it in words.

    Fetches a hub name's files and takes a GGUF file out of its archive, each once. Raises InputError.
    """
    path = Path(os.path.abspath(base / Path(source).expanduser()))
    if path.is_dir():
        return str(path), path, path.name
    if path.is_file() and path.suffix.lower() in ARCHIVES:
        taken_out = _taken_out(path)
        return str(path), taken_out, taken_out.stem
    if path.is_file():
        return str(path), path, path.stem
    named = HUB_NAME.fullmatch(source)
    if named is None or path.suffix.lower() in (*ARCHIVES, ".gguf"):
        there = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path}: no such file or folder{nearest(path.name, there)}")
    folder = _fetched(named["name"], named["revision"])
    return f"{named['name']}@{folder.name}", folder, named["name"].split("/")[1]


def _fetched(name: str, revision: str | None) -> Path:
    """Return the folder of a hub repository at one commit, whose hash is the folder's name."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{name}: not a folder here, and hub names need the package huggingface_hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=WANTED))
    except Exception as error:  # the hub's client raises its own errors, its HTTP library's and OSError
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            f"{name}: not a folder here, and not to be had from the hub: {type(error).__name__}: {reason[:200]}"
        ) from None


def _taken_out(archive: Path) -> Path:
    """Return the GGUF file of an archive, copied once into the cache, by its content."""
    known = cached.remembered(["archive"], [archive], lambda: _take_out(archive))
    path = cached.folder() / "gguf" / str(known["sha256"]) / str(known["name"])
    if not path.is_file() or path.stat().st_size != known["bytes"]:
        _take_out(archive)
    return path


def _take_out(archive: Path) -> dict[str, Any]:
    with gguf_file.inside(archive) as stream, cached.new_file() as (copy, temporary):
        digest, length = hashlib.sha256(), 0
        while part := stream.read(1 << 20):
            copy.write(part)
            digest.update(part)
            length += len(part)
        copy.close()
        name, sha256 = Path(stream.name).name, digest.hexdigest()
        cached.keep(temporary, Path("gguf") / sha256 / name)
    return {"name": name, "sha256": sha256, "bytes": length}


def _files(path: Path) -> list[Path]:
    return huggingface.files(path) if path.is_dir() else [path]


def _sha256(path: Path) -> str:
    """Return the hash of a GGUF file's content, or of the names and contents of a folder's files."""
    hashes = {file.name: cached.sha256(file) for file in _files(path)}
    if not path.is_dir():
        return hashes[path.name]
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _description(path: Path) -> dict[str, Any]:
    """Return what `describe` says of a checkpoint besides its hash, once its tensors are known to be all there."""
    checkpoint = open_checkpoint(path)
    config = checkpoint.config()
    try:
        model = Model(**config, head=checkpoint.head)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"{path}: {'.'.join(map(str, first['loc']))}{': ' if first['loc'] else ''}{first['msg']}"
        ) from None
    check(checkpoint, weights.shapes(model))
    return {"config": config, "summary": checkpoint.summary()}
