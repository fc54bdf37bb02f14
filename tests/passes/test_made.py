"""Constants written in pieces by threads: the bytes are those that numpy makes of the whole at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llama_bench import threads
from llama_bench.passes import made
from llama_bench.passes.fuse import pack
from llama_bench.passes.precision.convert import _Conversion


@pytest.fixture(autouse=True)
def small_pieces_in_three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(threads, "PIECE_BYTES", 500)


def on_disk(folder: Path, name: str, array: np.ndarray[Any, Any], offset: int = 0) -> ir.Value:
    """Return a constant whose numbers lie in a file, by its whole path, as passes read them."""
    path = folder / f"{name}.data"
    path.write_bytes(b"x" * offset + array.tobytes())
    dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    tensor = ir.ExternalTensor(str(path), offset, array.nbytes, dtype, shape=shape, name=name)
    return ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=tensor)


def matrix(rows: int, columns: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 1e5, (rows, columns)).astype(np.float32)


def test_what_is_copied_joined_and_in_memory_lies_in_the_file_one_after_another(tmp_path: Path) -> None:
    parts = [matrix(40, columns, columns) for columns in (30, 7, 3)]
    values = [on_disk(tmp_path, f"part{i}", part, offset=4 * i) for i, part in enumerate(parts)]
    joined, widths = pack._joined(values)
    assert widths == [30, 7, 3]
    few = np.arange(2001, dtype=np.uint8)  # leaves what follows at an odd byte
    held = ir.tensor(few, name="few")
    vectors = [on_disk(tmp_path, f"vector{i}", part[0]) for i, part in enumerate(parts)]
    written = [
        values[0],
        ir.Value(name="few", const_value=held),
        ir.Value(name="packed", const_value=joined),
        ir.Value(name="bias", const_value=pack._joined(vectors)[0]),
    ]
    made.outside(written, tmp_path / "weights.bin")
    whole, bias = np.concatenate(parts, axis=-1), np.concatenate([part[0] for part in parts])
    assert (tmp_path / "weights.bin").read_bytes() == b"".join(x.tobytes() for x in (parts[0], few, whole, bias))
    for value, array in zip(written, (parts[0], few, whole, bias), strict=True):
        assert isinstance(value.const_value, ir.ExternalTensor)
        np.testing.assert_array_equal(value.const_value.numpy(), array)
    assert all(value.const_value.raw is None for value in values[1:])  # let go again
    np.testing.assert_array_equal(joined.numpy(), whole)


@pytest.mark.parametrize(("name", "half"), [("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.BFLOAT16)])
def test_half_of_the_bytes_are_those_of_the_whole_rounded_at_once(name: str, half: ir.DataType, tmp_path: Path) -> None:
    array = matrix(50, 61, 0)
    assert (np.abs(array) > 65504).any()
    value, number = on_disk(tmp_path, "weight", array), ir.tensor(np.float32(0.1), name="number")
    scalar = ir.Value(name="number", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT), const_value=number)
    graph = ir.Graph([], [], nodes=[], initializers=[value, scalar], opset_imports={"": 18})
    conversion = _Conversion(graph, half, name, (), cache=False)
    copies = [conversion._constant(one) for one in (value, scalar)]
    expected = np.clip(array, -float(half.max), float(half.max)).astype(half.numpy())
    made.outside(copies[:1], tmp_path / "weights.bin")
    assert (tmp_path / "weights.bin").read_bytes() == expected.tobytes()
    assert copies[1].const_value is not None
    assert copies[1].const_value.numpy() == np.float32(0.1).astype(half.numpy())
    assert value.const_value is not None
    assert value.const_value.raw is None


def test_a_file_cut_off_under_way_is_an_error(tmp_path: Path) -> None:
    value = on_disk(tmp_path, "weight", matrix(40, 30, 0))
    (tmp_path / "weight.data").write_bytes(b"short")
    with pytest.raises(OSError, match=r"weight\.data: ends before byte 4800"):
        made.outside([value], tmp_path / "weights.bin")
