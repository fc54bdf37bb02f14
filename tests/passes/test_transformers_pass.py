"""onnxruntime.transformers: what its model types do to a Llama, that outputs stay, and what is said when it fails."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_bench import graph
from llama_bench.errors import WorkError
from llama_bench.passes import transformers_pass as family

VARIANTS: dict[str, dict[str, Any]] = {
    "cached": {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "torchscript": {"exporter": "torchscript", "opset": 17},
}


def operators(folder: Path) -> Counter[str]:
    return Counter(graph.histogram(graph.load(folder / "model.onnx")))


@pytest.mark.parametrize("name", family.PASSES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_model_type_fuses_the_norms_and_keeps_the_outputs(
    name: str, variant: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(**VARIANTS[variant])
    after = before.applied(tmp_path, {"transformers": name})
    found = operators(after.folder)
    assert found["SimplifiedLayerNormalization"] + found["SkipSimplifiedLayerNormalization"] == 5
    assert found["SkipSimplifiedLayerNormalization"] == 4
    assert found["Pow"] == 0
    expected, results = before.run(), after.run()
    assert list(results) == list(expected)
    for output, array in expected.items():
        np.testing.assert_allclose(results[output], array, rtol=1e-5, atol=2e-6, err_msg=output)


@pytest.mark.parametrize("variant", [{}, {"constant_folding": False, "cache": True}])
def test_matrices_stay_in_their_file(
    variant: dict[str, Any], exported: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "SMALL_BYTES", 1024)
    before = exported(**variant)
    after = before.applied(tmp_path, {"transformers": "gpt2"})
    np.testing.assert_allclose(after.run()["logits"], before.run()["logits"], rtol=1e-5, atol=2e-6)


def test_the_librarys_folder_of_scripts_does_not_stay_on_the_import_path(static: Any, tmp_path: Path) -> None:
    before = list(sys.path)
    static.applied(tmp_path, {"transformers": "bert"})
    assert sys.path == before


def test_a_missing_library_is_named(static: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.transformers", None)
    monkeypatch.delitem(sys.modules, "onnxruntime.transformers.optimizer", raising=False)
    with pytest.raises(WorkError, match=r"transformers pass gpt2: onnxruntime.transformers needs onnxruntime"):
        static.applied(tmp_path, {"transformers": "gpt2"})


def test_a_failure_of_the_library_is_named(static: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(family.PASSES, "phi", family.PASSES["gpt2"])
    with pytest.raises(WorkError, match="transformers pass phi: TypeError: "):
        static.applied(tmp_path, {"transformers": "phi"})
