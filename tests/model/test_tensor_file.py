from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from llama_bench.model.tensor_file import Stream, save


def test_the_library_reads_what_is_written(tmp_path):
    tensors = {
        "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
        "numbers": np.arange(5),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "none": np.empty((2, 0, 3), np.float32),
    }
    save(tmp_path / "file", tensors)
    found = load_file(tmp_path / "file")
    assert set(found) == set(tensors)
    for name, values in tensors.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_pieces_are_written_before_the_next_is_made(tmp_path):
    alive = []

    def pieces():
        for i in range(4):
            alive.append(i)
            yield np.full((2, 3), i, np.float32)

    save(tmp_path / "file", {"rows": Stream((8, 3), pieces()), "numbers": np.arange(3)})
    found = load_file(tmp_path / "file")
    np.testing.assert_array_equal(found["rows"], np.repeat(np.arange(4, dtype=np.float32), 2)[:, None] * np.ones(3))
    np.testing.assert_array_equal(found["numbers"], np.arange(3))


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_or_too_many_pieces_are_an_error(tmp_path, count):
    with pytest.raises(ValueError, match=r"rows came with another number of values than \[4, 3\]"):
        save(tmp_path / "file", {"rows": Stream((4, 3), [np.ones((2, 3), np.float32)] * count)})


def test_other_users_may_read_the_file_as_far_as_the_umask_lets_them(tmp_path):
    save(tmp_path / "file", {"numbers": np.arange(3)})
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
