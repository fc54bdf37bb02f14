"""Work on large arrays in as many threads as this process has CPUs: numpy, hashlib and files let go of Python's lock.

No more than a piece of a few megabytes is in work in each thread, so that speed costs no memory. A leaf.
"""

from __future__ import annotations

import errno
import mmap
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

PIECE_BYTES = 4 << 20
"""What a thread works on at a time: large enough to be worth a start, small enough for many to be in work."""

TILE, TILE_ROWS = 64, 256
"""Numbers of a transposed tile: 64 of 4 bytes, four lines of a cache, wide, and 256 rows of the target."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def count() -> int:
    """Return how many threads to work in: those that Ray gives a task, else the CPUs this process may run on.

    Ray says it of a task that asks for CPUs in OMP_NUM_THREADS, which torch goes by too.
    """
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
    """Return what `work` makes of each of the items, in their order, several at once; the first error is raised."""
    listed = list(items)
    threads = min(count(), len(listed))
    if threads < 2:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(work, listed))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def ranges(work: Callable[[int, int], None], size: int, step: int) -> None:
    """Call `work` with the bounds of every `step` of `size` things, several at once."""
    each(lambda start: work(start, min(start + step, size)), range(0, size, step))


def rows(work: Callable[[int, int], None], shape: tuple[int, ...], itemsize: int) -> None:
    """Call `work` with the bounds of the rows of an array, so many at a time as are a piece, several at once."""
    row = itemsize * int(np.prod(shape[1:], dtype=np.int64))
    ranges(work, shape[0], max(1, PIECE_BYTES // max(1, row)))


def ahead(items: Iterable[_T], most: int = 1) -> Generator[_T, None, None]:
    """Yield the `items`, which a thread of its own makes while they are used: `most` of them wait at any time.

    What making one raises is raised here in its place. Whoever stops early closes the iterator, and the thread ends.
    """
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(most)
    left = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not left.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        try:
            if all(put((True, item)) for item in items):
                put((False, None))
        except BaseException as error:
            put((False, error))

    maker = threading.Thread(target=make, daemon=True, name="ahead")
    maker.start()
    try:
        while (entry := waiting.get())[0]:
            yield entry[1]
            del entry  # else it would be held while the next one is waited for
        if entry[1] is not None:
            raise entry[1]
    finally:
        left.set()
        maker.join()


@contextmanager
def room(path: Path, offset: int, size: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """Give `size` bytes of the file at `path`, which is there, from `offset` as an array that writes into the file.

    Many threads may write at once, which one file's write calls cannot. The room is taken first, so that a full disk
    is an OSError as with any other write, and no signal. It is unmapped at the end: keep no view of it.
    """
    begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    with path.open("r+b") as file:
        _take(file.fileno(), offset, size)
        mapped = mmap.mmap(file.fileno(), offset + size - begin, offset=begin)
    array = np.frombuffer(mapped, np.uint8)
    try:
        yield array[offset - begin :]
    finally:
        del array
        with suppress(BufferError):  # an error on its way holds a view in its frames: it goes with them
            mapped.close()


def _take(file: int, offset: int, size: int) -> None:
    """Let the open `file` reach to the end of `size` bytes from `offset`, with the room for them where it can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, offset, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    if os.fstat(file).st_size < offset + size:
        os.ftruncate(file, offset + size)


def copy(source: Path, start: int, target: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Read the bytes of the file `source` from `start` on into `target`, several pieces at once.

    Raises OSError when the file ends before.
    """
    with source.open("rb", buffering=0) as file:

        def read(begin: int, end: int) -> None:
            view = target[begin:end].data
            while len(view):
                if not (got := os.preadv(file.fileno(), [view], start + end - len(view))):
                    raise OSError(f"{source}: ends before byte {start + target.size}")
                view = view[got:]

        ranges(read, target.size, PIECE_BYTES)


def turned(source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> None:
    """Write the transpose of the matrix `source` into `target`, a tile at a time and several rows at once.

    A tile stays in the processor's cache, where numpy's own copy misses it with every number.
    """

    def some(start: int, end: int) -> None:
        for i in range(0, source.shape[0], TILE):
            target[start:end, i : i + TILE] = source[i : i + TILE, start:end].T

    ranges(some, source.shape[1], TILE_ROWS)
