"""How models are read and written: one weight at a time, from hard links too, and what is missing by its name."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_bench import graph
from llama_bench.errors import WorkError
from llama_bench.passes import files
from llama_bench.passes.fuse import pack

WIDE = {"hidden_size": 256, "intermediate_size": 1024, "vocab_size": 2048}


def test_a_large_result_has_one_weights_file_and_takes_the_memory_of_one_layer(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    source = exported(**WIDE)
    tracemalloc.start()
    model = files.read(source.folder)
    files.prepare(model)
    assert pack.fuse_qkv(model) == 2
    files.write(model, tmp_path, embed_bytes=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]
    assert source.size() > 9e6
    assert peak < 3e6  # a packed product is 0.8 MB, and the rest is the graph
    after = type(source)(source.model, source.workload, tmp_path)
    for name, array in source.run().items():
        np.testing.assert_allclose(after.run()[name], array, rtol=1e-5, atol=1e-5)


def test_weights_inside_and_outside_are_the_same_model(static: Any, tmp_path: Path) -> None:
    for name, limit in (("inside", 1 << 20), ("outside", 0)):
        (tmp_path / name).mkdir()
        files.write(files.read(static.folder), tmp_path / name, embed_bytes=limit)
    assert [file.name for file in (tmp_path / "inside").iterdir()] == ["model.onnx"]
    hashes = [graph.canonical_sha256(path / "model.onnx") for path in (static.folder, *sorted(tmp_path.iterdir()))]
    assert len(set(hashes)) == 1


@pytest.mark.parametrize(
    "step", [{"fuse": "all"}, {"onnxscript": "optimize_for_ort"}, {"transformers": "gpt2"}, {"onnxruntime": "all"}]
)
def test_weights_are_read_through_hard_links_and_left_as_they_are(
    step: dict[str, str], static: Any, tmp_path: Path
) -> None:
    linked = Path(shutil.copytree(static.folder, tmp_path / "linked"))
    for file in list(linked.iterdir()):
        os.link(file, tmp_path / file.name)
    before = {file.name: file.read_bytes() for file in linked.iterdir()}
    after = type(static)(static.model, static.workload, linked).applied(tmp_path / "after", step)
    np.testing.assert_allclose(after.run()["logits"], static.run()["logits"], rtol=1e-5, atol=2e-6)
    assert {file.name: file.read_bytes() for file in linked.iterdir()} == before


@pytest.mark.parametrize("family", ["fuse", "onnxscript", "transformers", "onnxruntime"])
def test_missing_weights_are_named(family: str, static: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes((static.folder / "model.onnx").read_bytes())
    default = {"onnxscript": "optimize_for_ort", "transformers": "gpt2"}.get(family, "all")
    with pytest.raises(WorkError, match=r"data: the weights' file is missing \(tensor 'model.embed_tokens.weight'"):
        type(static)(static.model, static.workload, broken).applied(tmp_path / "after", {family: default})


def test_a_library_that_changes_the_signature_is_caught(static: Any, tmp_path: Path) -> None:
    with (
        pytest.raises(WorkError, match="some pass: the inputs changed from"),
        files.result("some pass", static.folder, tmp_path) as folder,
    ):
        model = files.read(static.folder)
        model.graph.inputs[0].name = "tokens"
        files.write(model, folder)
    assert not list(tmp_path.iterdir())
