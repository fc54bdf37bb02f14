"""Bytes under keys, in a local folder or an object store, and in one line what went wrong there. Around obstore."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore, from_url

from llama_bench.errors import InputError, StoreError, WorkError, nearest

if TYPE_CHECKING:
    from obstore import ObjectMeta

SCHEMES = {
    "s3": "Amazon S3 and what speaks its protocol",
    "gs": "Google Cloud Storage",
    "az": "Azure Blob Storage",
    "abfs": "Azure Data Lake",
    "abfss": "Azure Data Lake over TLS",
    "file": "a local folder",
    "memory": "this process, for as long as it lives",
}
"""What a store's URI may begin with; a path without a scheme is a local folder."""

FAILURES = (BaseError, OSError)
"""What obstore and the file system raise."""

CHUNK = 8 << 20
"""Bytes a part of a large upload or download: S3 wants at least 5 MB and at most 10,000 parts."""

PAUSE_S = 1.0
"""Between two tries of a store that is waited for."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_T = TypeVar("_T")


class Objects:
    """Bytes under keys (`a/b/c`) in a local folder or an object store; `root` is the folder, or None.

    Every method raises StoreError, naming the store, when the place does not do its work, and WorkError when what is
    asked for is not there.
    """

    def __init__(self, uri: str | Path, *, write: bool) -> None:
        self._objects, self.root, self.uri = open_place(uri, write)
        self.label = shown(self.uri)
        self._patience_s = 0.0
        self._on_wait: Callable[[str], None] = _ignore

    def patient(self, seconds: float, on_wait: Callable[[str], None]) -> Self:
        """Return this store for one who waits: what its place fails to do is tried again for so many seconds.

        `on_wait` is told why once for each wait.
        """
        patient = copy(self)
        patient._patience_s, patient._on_wait = seconds, on_wait
        return patient

    def put(self, key: str, data: bytes | memoryview, *, create: bool = True) -> bool:
        """Write `data` under `key`; with `create`, return False and change nothing when the key exists."""

        def write() -> bool:
            try:
                obstore.put(self._objects, key, data, mode="create" if create else "overwrite")
            except AlreadyExistsError:
                return False
            return True

        return self._do(f"writing {key}", write, len(data))

    def get(self, key: str) -> bytes:
        """Return what is under `key`; WorkError when there is nothing."""
        return self._do(f"reading {key}", lambda: bytes(obstore.get(self._objects, key).bytes()))

    def chunks(self, key: str) -> Iterator[memoryview]:
        """Yield what is under `key` in pieces of a few megabytes."""
        with self.guard(f"reading {key}"):
            for chunk in obstore.get(self._objects, key).stream(min_chunk_size=CHUNK):
                yield memoryview(chunk)

    def tail(self, key: str, length: int) -> bytes:
        """Return the last `length` bytes under `key` (all of them when there are fewer); FileNotFoundError."""
        size = self.length(key)
        if size is None:
            raise FileNotFoundError(key)
        start = max(0, size - length)
        return self._do(f"reading {key}", lambda: bytes(obstore.get_range(self._objects, key, start=start, end=size)))

    def length(self, key: str) -> int | None:
        """Return the bytes under `key`, or None when there is no such key."""

        def ask() -> int | None:
            try:
                return obstore.head(self._objects, key)["size"]
            except FileNotFoundError:
                return None

        return self._do(f"looking for {key}", ask)

    def keys(self, prefix: str) -> list[str]:
        """Return every key in the folder `prefix` (`""`: in the store), sorted."""
        return sorted(meta["path"] for meta in self.list(prefix))

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly in `prefix`, sorted."""
        found = self._do(f"listing {prefix}", lambda: obstore.list_with_delimiter(self._objects, prefix or None))
        names = (path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])
        return sorted(name for name in names if not name.startswith("."))

    def written(self, prefix: str) -> dict[str, datetime]:
        """Return every key in the folder `prefix` and when it was written, by the store's own clock."""
        return {meta["path"]: meta["last_modified"] for meta in self.list(prefix)}

    def delete(self, keys: Iterable[str]) -> None:
        """Delete `keys`; one that is gone already is no error."""
        for key in keys:
            self._do(f"deleting {key}", partial(self._delete, key))

    def size(self, prefix: str) -> int:
        """Return the bytes of all keys in the folder `prefix`."""
        return sum(meta["size"] for meta in self.list(prefix))

    def free_bytes(self) -> int | None:
        """Return the room left in a local store; None for an object store."""
        return None if self.root is None else shutil.disk_usage(self.root).free

    def url(self, key: str) -> str:
        """Return the path or address under which other readers (polars, DuckDB) find `key`."""
        return str(self.root / key) if self.root is not None else f"{self.uri}/{key}"

    def list(self, prefix: str) -> list[ObjectMeta]:
        found = self._do(f"listing {prefix}", lambda: [*chain(*obstore.list(self._objects, prefix or None))])
        return [meta for meta in found if not meta["path"].startswith(".")]

    @contextmanager
    def guard(self, doing: str, needed: int = 0) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise failure(error, self.uri, doing, needed) from error

    def _delete(self, key: str) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._objects, key)

    def _do(self, doing: str, act: Callable[[], _T], needed: int = 0) -> _T:
        """Return what `act` returns; while its place fails, try again as long as this store has patience."""
        until, told = time.monotonic() + self._patience_s, False
        while True:
            try:
                with self.guard(doing, needed):
                    return act()
            except StoreError as error:
                if time.monotonic() >= until:
                    raise
                if not told:
                    self._on_wait(str(error))
                told = True
                time.sleep(PAUSE_S)


def _ignore(why: str) -> None:
    """Tell nobody."""


def open_place(uri: str | Path, write: bool) -> tuple[ObjectStore, Path | None, str]:
    """Open `uri` and return its object store, its folder when it is local, and its normal form.

    With `write`, a local folder is made and one small object is written and removed again, so that what cannot be
    written is said before any work is done. Raises InputError: unknown scheme, no folder, not writable.
    """
    text = str(uri)
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme and scheme not in SCHEMES:
        raise InputError(f"store {shown(text)}: unknown scheme {scheme!r}{nearest(scheme, SCHEMES)}")
    if scheme in ("", "file"):
        root = Path(unquote(urlsplit(text).path) if scheme else text).expanduser().absolute()
        _check_folder(root, write)
        objects: ObjectStore = LocalStore(root)
        normal = str(root)
    else:
        _refuse_credentials(text)
        root, normal = None, text.rstrip("/")
        objects = MemoryStore() if scheme == "memory" else _remote(text)
    if write:
        _try_to_write(objects, normal)
    return objects, root, normal


def _refuse_credentials(uri: str) -> None:
    """Refuse passwords and signatures in `uri`: it is recorded and printed, so they would be too."""
    parts = urlsplit(uri)
    if ":" in parts.netloc.rpartition("@")[0] or parts.query:
        raise InputError(
            f"store {shown(uri)}: credentials and options do not belong in the address; "
            "set them in the environment (AWS_ACCESS_KEY_ID, AWS_REGION, …)"
        )


def _remote(uri: str) -> ObjectStore:
    try:
        # A weight of several hundred megabytes takes longer than the default half minute; a wrong host should not.
        return from_url(
            uri,
            client_options={"timeout": "10 minutes", "connect_timeout": "10 seconds", "allow_http": _allow_http()},
            retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=60)},
        )
    except (*FAILURES, ValueError) as error:
        raise InputError(f"store {shown(uri)} cannot be opened: {first_line(error)}") from None


def _allow_http() -> bool:
    """Whether the environment allows addresses without TLS: obstore forgets its word for it beside other options."""
    said = [os.environ.get(name, "") for name in ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")]
    return any(word.lower() in ("1", "true", "yes") for word in said)


def _check_folder(root: Path, write: bool) -> None:
    there = next(parent for parent in (root, *root.parents) if parent.exists() or parent.is_symlink())
    if not there.is_dir():
        raise InputError(f"store {root} cannot be {'written' if write else 'read'}: {there} is a file, not a folder")
    if write:
        try:
            root.mkdir(parents=True, exist_ok=True)
            # obstore tries for ever where a folder is listed but takes no files, as in /proc: ask it only after this.
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            raise InputError(f"store {root} cannot be written: {error.strerror or error}") from None
    elif there != root:
        raise InputError(f"{root}: no such folder")


def _try_to_write(objects: ObjectStore, uri: str) -> None:
    key = f".writable-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        obstore.put(objects, key, b"", mode="create")
        obstore.delete(objects, key)
    except FAILURES as error:
        raise InputError(f"store {shown(uri)} cannot be written: {reason(error)}") from None


def failure(error: BaseException, place: str, doing: str, needed: int = 0) -> WorkError:
    """Return the error for `error`, raised at `place` while `doing`; `needed` is the bytes that had to fit.

    A WorkError for what is not there, a StoreError for all else.
    """
    if error_number(error) in _NO_ROOM:
        wanted = f" ({needed:,} bytes needed)" if needed else ""
        return StoreError(f"store {shown(place)} has no room left while {doing}{wanted}: {reason(error)}")
    kind = WorkError if isinstance(error, FileNotFoundError) else StoreError
    return kind(f"store {shown(place)}: {doing} failed: {reason(error)}")


def error_number(error: BaseException) -> int | None:
    """Return the operating system's error number, which obstore gives in its text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found.group(1)) if found else None


def reason(error: BaseException) -> str:
    """Return why `error` happened: the operating system's own words where it was asked, else its first line."""
    number = error_number(error)
    return os.strerror(number) if number is not None else first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text without credentials (obstore adds its debug output below it)."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0])


def shown(text: str) -> str:
    """Return `text` without what may be secret in its addresses: user and password, and everything behind a `?`."""
    text = re.sub(r"(?<=://)[^/\s@]*:[^/\s@]*@", "", text)
    return re.sub(r"(://[^\s?]*)\?\S*", r"\1", text)
