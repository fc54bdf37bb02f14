"""Artifacts as folders on this node: linked from a local store, downloaded and bounded in size from a remote one."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any, Protocol

from llama_bench import external_data, objects
from llama_bench.errors import InputError, WorkError

DEFAULT_BYTES = 50 * 10**9
"""How much a cache of remote stores may hold unless $LLAMA_BENCH_CACHE_BYTES says otherwise."""

_WEIGHTS = ".weights"  # downloaded weights, shared by the folders beside it through hard links
TEMPORARY = ".tmp-"
_IN_USE_S = 3600.0  # a folder that was fetched within the last hour is not evicted: something may be timing it


class Source(Protocol):
    """What is used of a store here."""

    root: Path | None
    cache: Path

    def manifest(self, artifact_id: str) -> dict[str, Any]: ...
    def chunks(self, key: str) -> Iterator[memoryview]: ...
    def url(self, key: str) -> str: ...


def folder_of(uri: str, root: Path | None, given: Path | None) -> Path:
    """Return where the folders fetched from a store lie: in the store when it is local, else in this user's cache."""
    if root is not None:
        return given.absolute() if given is not None else root / ".cache"
    base = given or Path(os.environ.get("LLAMA_BENCH_CACHE") or "~/.cache/llama_bench").expanduser()
    return base.absolute() / hashlib.sha256(uri.encode()).hexdigest()[:16]


def fetch(store: Source, artifact_id: str, into: Path | None) -> Path:
    """Return the artifact's folder; see :meth:`llama_bench.store.Store.fetch`."""
    manifest = store.manifest(artifact_id)
    target = into or store.cache / artifact_id
    if into is None and _intact(target, manifest):
        os.utime(target)  # what the eviction goes by
        return target
    needed = sum(_sizes(manifest).values())
    try:
        if into is None:
            _build(store, artifact_id, manifest, target)
        else:
            into.mkdir(parents=True, exist_ok=True)
            _fill(store, artifact_id, manifest, into, copy=True)
    except FileNotFoundError as error:
        raise WorkError(f"{error.filename}: missing, though artifact {artifact_id} needs it") from error
    except OSError as error:
        raise objects.failure(error, str(target.parent), f"fetching {artifact_id}", needed) from error
    return target


def _build(store: Source, artifact_id: str, manifest: dict[str, Any], folder: Path) -> None:
    """Fill a temporary folder and rename it, so that `folder` is either whole or not there."""
    if store.root is None:
        sizes = _sizes(manifest)
        there = {name for name, length in sizes.items() if _size(store.cache / _WEIGHTS / name) == length}
        _make_room(store.cache, sum(length for name, length in sizes.items() if name not in there))
    temporary = store.cache / f"{TEMPORARY}{artifact_id}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        _fill(store, artifact_id, manifest, temporary, copy=False)
        _move_into_place(temporary, folder, manifest)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clean(cache: Path, keep: set[str], young: float, *, dry_run: bool) -> int:
    """Remove the folders that are not in `keep`, and temporary ones last changed before `young`; return their bytes.

    Bytes that a hard link shares with something that stays are not counted.
    """
    freed = 0
    for folder in _inside(cache):
        if folder.name.startswith(TEMPORARY):
            unused = folder.stat().st_mtime < young
        else:
            unused = folder.is_dir() and folder.name != _WEIGHTS and folder.name not in keep
        if unused:
            freed += sum(path.stat().st_size for path in folder.iterdir() if path.stat().st_nlink == 1)
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
    return freed if dry_run else freed + _drop_orphans(cache, young)


def _sizes(manifest: dict[str, Any]) -> dict[str, int]:
    files = {entry["name"]: int(entry["bytes"]) for entry in manifest["files"]}
    return files | {sha: int(length) for sha, length in manifest["weights"]}


def _intact(folder: Path, manifest: dict[str, Any]) -> bool:
    return folder.is_dir() and all(_size(folder / name) == length for name, length in _sizes(manifest).items())


def _size(path: Path) -> int | None:
    status = _status(path)
    return None if status is None else status.st_size


def _move_into_place(temporary: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Rename `temporary` to `folder`; another process may have been first, or have left a damaged folder."""
    for _ in range(3):
        try:
            temporary.rename(folder)
            return
        except OSError:
            if _intact(folder, manifest):
                return
            damaged = folder.with_name(f"{TEMPORARY}{folder.name}-{secrets.token_hex(4)}")
            if folder.exists():
                folder.rename(damaged)
                shutil.rmtree(damaged, ignore_errors=True)
    raise WorkError(f"{folder}: cannot be put into place")


def _fill(store: Source, artifact_id: str, manifest: dict[str, Any], folder: Path, *, copy: bool) -> None:
    for entry in manifest["files"]:
        key, target = f"artifacts/{artifact_id}/{entry['stored']}", folder / entry["name"]
        if store.root is None:
            _write(store.chunks(key), target, store.url(key), entry["bytes"], entry["sha256"])
        else:
            _place(store.root / key, target, entry["bytes"], entry["sha256"], copy=copy)
            if not copy:
                _verify(target, store.url(key), entry["sha256"])
    if (folder / external_data.GRAPH).is_file():
        external_data.check(folder)
    for sha, length in manifest["weights"]:
        try:
            _place(_weight(store, sha, length), folder / sha, length, sha, copy=copy)
        except FileNotFoundError:
            if store.root is not None:
                raise
            # evicted by another process in the moment since it was downloaded
            _place(_weight(store, sha, length), folder / sha, length, sha, copy=copy)


def _place(source: Path, target: Path, length: int, sha: str, *, copy: bool) -> None:
    if copy or not _link(source, target, length):
        _write(_chunks(source), target, str(source), length, sha)


def _weight(store: Source, sha: str, length: int) -> Path:
    """Return a file with the weight's bytes on this node, downloading it when the store is remote."""
    key = f"weights/{sha[:2]}/{sha}"
    if store.root is not None:
        return store.root / key
    path = store.cache / _WEIGHTS / sha
    if _size(path) != length:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{TEMPORARY}{sha}-{os.getpid()}-{secrets.token_hex(4)}")
        try:
            _write(store.chunks(key), partial, store.url(key), length, sha)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _link(source: Path, target: Path, length: int) -> bool:
    """Link `target` to `source` and return True; False where the file system cannot."""
    found = _size(source)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))
    if found != length:
        raise WorkError(f"{source}: truncated or altered: {found:,} bytes instead of {length:,}")
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _chunks(path: Path) -> Iterator[memoryview]:
    data = external_data.map_file(path)
    return (data[start : start + objects.CHUNK] for start in range(0, len(data), objects.CHUNK))


def _write(chunks: Iterable[memoryview], target: Path, name: str, length: int, sha: str) -> None:
    digest, written = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            written += file.write(chunk)
    if written != length or digest.hexdigest() != sha:
        target.unlink()
        raise WorkError(f"{objects.shown(name)}: truncated or altered: its content is not what its manifest says")


def _verify(path: Path, name: str, sha: str) -> None:
    if hashlib.sha256(external_data.map_file(path)).hexdigest() != sha:
        raise WorkError(f"{name}: altered: its content is not what its manifest says")


# --- eviction ---------------------------------------------------------------------------------------------------


def bound() -> int:
    """Return how many bytes the caches of remote stores may hold together."""
    text = os.environ.get("LLAMA_BENCH_CACHE_BYTES", "")
    if text and not text.isdigit():
        raise InputError(f"LLAMA_BENCH_CACHE_BYTES is {text!r}, not a number of bytes")
    return int(text) if text else DEFAULT_BYTES


def _make_room(cache: Path, needed: int) -> None:
    """Evict what was fetched longest ago until `needed` more bytes fit into the bound, as far as that is possible.

    Folders of the last hour stay even so: what is being timed now must not vanish, and a bound below the working set
    of one cell would otherwise fetch for ever.
    """
    limit, before = bound(), time.time() - _IN_USE_S
    stores = [path for path in _inside(cache.parent) if path.is_dir()]
    folders = [path for store in stores for path in _inside(store) if path.is_dir() and path.name != _WEIGHTS]
    ages = {path: status.st_mtime for path in folders if (status := _status(path)) is not None}
    unused = [path for path in sorted(folders, key=lambda path: ages.get(path, 0.0)) if ages.get(path, 0.0) < before]
    while _occupied(stores) + needed > limit:
        if sum(_drop_orphans(store, before) for store in stores):
            continue
        if not unused:
            return
        shutil.rmtree(unused.pop(0), ignore_errors=True)


def _drop_orphans(cache: Path, before: float) -> int:
    """Remove the downloaded weights that no folder links to, unless they came after `before`; return their bytes."""
    freed = 0
    for path in _inside(cache / _WEIGHTS):
        status = _status(path)
        if status is not None and status.st_nlink == 1 and status.st_mtime < before:
            path.unlink(missing_ok=True)
            freed += status.st_size
    return freed


def _occupied(stores: list[Path]) -> int:
    """Return the bytes on disk under `stores`, counting each file once however many links it has."""
    found = (_status(path) for store in stores for path in store.rglob("*"))
    return sum({status.st_ino: status.st_size for status in found if status and S_ISREG(status.st_mode)}.values())


def _inside(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # another process removed it
        return None
