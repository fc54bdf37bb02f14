"""onnxscript's optimiser and fusions: what they do to a Llama, that outputs stay, and the mask that would be lost."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_bench import graph, passes
from llama_bench.errors import WorkError
from llama_bench.sweep import Model, Pass


def operators(folder: Path) -> Counter[str]:
    return Counter(graph.histogram(graph.load(folder / "model.onnx")))


def close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("variant", [{}, {"num_key_value_heads": 2}])
def test_a_static_graph_gets_norms_rotation_and_attention(
    variant: dict[str, Any], exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(**variant)
    after = before.applied(tmp_path, {"onnxscript": "optimize_for_ort"})
    expected = {"SkipSimplifiedLayerNormalization": 4, "RotaryEmbedding": 4, "MultiHeadAttention": 2, "Softmax": 0}
    found = operators(after.folder)
    assert {op: found[op] for op in expected} == expected
    close(after.run(), before.run())


def test_a_cached_graph_gets_them_too_and_its_cache_grows_as_before(
    exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(cache=True, num_key_value_heads=2, tie_word_embeddings=True)
    after = before.applied(tmp_path, {"onnxscript": "optimize_for_ort"})
    expected = {"SkipSimplifiedLayerNormalization": 4, "RotaryEmbedding": 4, "MultiHeadAttention": 2, "Softmax": 0}
    found = operators(after.folder)
    assert {op: found[op] for op in expected} == expected
    close(after.run(steps=[13, 1, 1, 1]), before.run(steps=[13, 1, 1, 1]))


def test_a_mask_that_would_be_dropped_is_refused_before_and_after(exported: Callable[..., Any], tmp_path: Path) -> None:
    masked = {"attention_mask": True, "num_key_value_heads": 2}
    step = Pass.model_validate({"onnxscript": "optimize_for_ort"})
    found = passes.misfit([step], Model(hidden_size=64, num_attention_heads=4, **masked))
    assert found is not None
    assert "leaves attention_mask of a model with grouped KV heads out" in found[1]
    with pytest.raises(WorkError, match="optimize_for_ort: its result does not read the input 'attention_mask' any"):
        exported(**masked).applied(tmp_path, {"onnxscript": "optimize_for_ort"})


def test_the_mask_of_equal_heads_is_kept(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(attention_mask=True)
    after = before.applied(tmp_path, {"onnxscript": "optimize_for_ort"})
    close(after.run(), before.run())
    assert any("attention_mask" in node.input for node in after.proto.graph.node)


def test_optimize_folds_what_the_exporter_left(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(cache=True, constant_folding=False)
    after = before.applied(tmp_path, {"onnxscript": "optimize"})
    assert operators(before.folder)["Constant"] > 50
    assert operators(after.folder)["Constant"] == 0
    close(after.run(steps=[13, 1, 1, 1]), before.run(steps=[13, 1, 1, 1]))


def test_what_the_exporter_has_optimised_is_given_back(static: Any, tmp_path: Path) -> None:
    source = Path(shutil.copytree(static.folder, tmp_path / "source"))
    step = Pass(family="onnxscript", name="optimize")
    effect = passes.apply(step, source, tmp_path / "made", static.model, static.workload, tmp_path)
    assert not effect.changed
    for file in source.iterdir():
        assert (tmp_path / "made" / file.name).read_bytes() == file.read_bytes()
