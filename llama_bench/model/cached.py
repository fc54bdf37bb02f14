"""What is worth remembering of large files between commands, in this user's cache folder; nothing there is needed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llama_bench.errors import WorkError


def folder() -> Path:
    """Return the cache folder: `$LLAMA_BENCH_CACHE`, or `~/.cache/llama_bench`."""
    return Path(os.environ.get("LLAMA_BENCH_CACHE") or "~/.cache/llama_bench").expanduser().absolute()


def remembered(what: Sequence[str], files: Sequence[Path], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `make` makes of `files`, which JSON can write; made again only when one of them has changed.

    A file counts as unchanged while its path, size and time of change (in ns) are the same. `what` tells apart what is
    remembered of the same files.
    """
    try:
        stats = [(str(file.absolute()), file.stat()) for file in files]
    except OSError:
        return make()  # which says what is missing
    key = json.dumps([*what, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])
    path = folder() / "sources" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found
    made = make()
    with contextlib.suppress(OSError):  # a cache that cannot be written is slow, not wrong
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as stream:
            json.dump(made, stream)
        os.replace(stream.name, path)
    return made


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, computed once while it does not change."""

    def computed() -> dict[str, Any]:
        with file.open("rb") as stream:
            return {"sha256": hashlib.file_digest(stream, "sha256").hexdigest()}

    return str(remembered(["sha256"], [file], computed)["sha256"])


@contextlib.contextmanager
def new_file() -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file in the cache for writing; it is gone afterwards unless `keep` gave it a name."""
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=place, prefix=".tmp-")
    except OSError as error:
        raise WorkError(
            f"{place}: cannot be written: {error.strerror}; set LLAMA_BENCH_CACHE to another folder"
        ) from error
    try:
        with os.fdopen(number, "wb") as stream:
            yield stream, Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def keep(temporary: Path, name: Path) -> None:
    """Give a written file its name below the cache folder."""
    target = folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.chmod(0o644)
    os.replace(temporary, target)
