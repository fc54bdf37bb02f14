"""Constants that are made as they are written, some rows at a time and several at once, and how constants are written.

Nothing is held of a constant but the rows in work: it goes straight into its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from llama_bench import threads

Array: TypeAlias = np.ndarray[Any, Any]
Rows: TypeAlias = Callable[[Array, int, int], None]


class Made(ir.LazyTensor):
    """A constant of at least one axis that `make` gives a function for: it writes the rows from one to another.

    The function is called in several threads; on leaving its context what was read for it is let go.
    """

    def __init__(
        self, make: Callable[[], AbstractContextManager[Rows]], dtype: ir.DataType, shape: ir.Shape, name: str | None
    ) -> None:
        super().__init__(self._whole, dtype, shape, name=name)
        self.make = make

    def fill(self, target: Array) -> None:
        """Write all rows into `target`, which has the constant's type and shape."""
        with self.make() as some:
            threads.rows(
                lambda start, end: some(target[start:end], start, end), target.shape, 2 * target.itemsize
            )  # what is turned into half of its bytes is read in pieces of the usual size

    def _whole(self) -> ir.TensorProtocol:
        target = np.empty(tuple(self.shape.numpy()), self.dtype.numpy())
        self.fill(target)
        return ir.tensor(target, name=self.name)


def release(tensor: ir.TensorProtocol) -> None:
    """Unmap the file of `tensor`, else all that was ever read of it stays mapped; keep no view of its numbers."""
    if isinstance(tensor, ir.ExternalTensor):
        try:
            tensor.release()
        except BufferError:  # an error on its way holds a view in its frames: it goes with them
            tensor.raw = None


def outside(values: Iterable[ir.Value], path: Path) -> None:
    """Write the constants of `values` one after another into the file at `path`, and let each refer to it there."""
    path.write_bytes(b"")
    offset = 0
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        with threads.room(path, offset, tensor.nbytes) as target:
            _put(tensor, target)
        value.const_value = ir.ExternalTensor(
            path.name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or value.name or "",
            base_dir=path.parent,
        )
        offset += tensor.nbytes


def _put(tensor: ir.TensorProtocol, target: Array) -> None:
    """Write the bytes of `tensor` into `target`: copied from its file, made there, or from memory."""
    if isinstance(tensor, ir.ExternalTensor):
        threads.copy(Path(tensor.path), tensor.offset or 0, target)
    elif isinstance(tensor, Made):
        tensor.fill(target.view(tensor.dtype.numpy()).reshape(tuple(tensor.shape.numpy())))
    else:
        held = np.frombuffer(tensor.tobytes(), np.uint8)
        threads.ranges(lambda start, end: np.copyto(target[start:end], held[start:end]), held.size, threads.PIECE_BYTES)
