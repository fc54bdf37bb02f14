"""What an exception of an arm means for the next try."""

from __future__ import annotations

import pytest

from llama_bench.cluster.launch import raised
from llama_bench.errors import StoreError, WorkError


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"),
        StoreError("store results: reading a/b failed: Not a directory"),
        WorkError("Load model from model.onnx failed. File doesn't exist"),
        RuntimeError("model.onnx.data: Stale file handle"),
    ],
)
def test_files_that_are_away_may_be_back_at_the_next_try(error: Exception) -> None:
    assert not raised(error).final


@pytest.mark.parametrize(
    "error",
    [
        WorkError("this build of ONNX Runtime has no CUDAExecutionProvider"),
        OSError("libnvinfer.so.10: cannot open shared object file: No such file or directory"),
        ValueError("no such size"),
    ],
)
def test_what_is_wrong_or_not_installed_will_be_so_again(error: Exception) -> None:
    assert raised(error).final
    assert raised(error).kind == type(error).__name__
