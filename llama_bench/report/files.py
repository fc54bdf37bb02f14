"""Where what is made of a run goes, and writing it there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llama_bench.errors import InputError, WorkError


def destination(path: str, out: Path | None, name: str) -> Path:
    """Return `out`, or the folder `name` of the run at `path` itself.

    Raises InputError for what is no result, and when `out` is missing for a run in an object store.
    """
    from llama_bench import results

    store, run = results.locate(path)
    if out is not None:
        return out
    if store.root is None:
        raise InputError(f"{path} is in an object store: say where its files go, with --out FOLDER")
    return store.root / run / name


def write_files(out: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write `files` (path below `out` → content) and return where they are; raises WorkError when one cannot be."""
    return [_write(out / name, content) for name, content in files.items()]


def _write(path: Path, content: str | bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as problem:
        raise WorkError(f"cannot write {path}: {problem.strerror or problem}") from problem
    return path
