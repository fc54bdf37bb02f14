"""Every onnxoptimizer pass on its own: what it does, that outputs stay right, and what it is refused for."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxoptimizer
import onnxruntime
import psutil
import pytest
from onnx import ModelProto, helper, numpy_helper

from llama_bench import graph, passes
from llama_bench.errors import WorkError
from llama_bench.passes import onnxoptimizer as family
from llama_bench.sweep import Model, Pass, Workload

X = np.random.default_rng(1).normal(size=(4, 16)).astype(np.float32)

TINY = """
    <ir_version: 8, opset_import: ["" : 17]>
    tiny (float[4,16] x) => (float[4,16] y, float[4,16] extra)
    <float[4,16] same, float[4,16] product, float[4,16] biased, float[16,16] turned, float[4,16] scaled> {
        same = Identity(x)
        product = MatMul(same, w0)
        biased = Add(product, bias)
        turned = Transpose<perm = [1, 0]>(w1)
        scaled = Mul(biased, scale)
        extra = Gemm(scaled, turned, bias)
        y = MatMul(extra, w2)
    }
"""


def tiny() -> ModelProto:
    """2-D Linear layers with a bias; w0, w1 and w2 have one shape and different numbers, `scale` is not 1."""
    model = onnx.parser.parse_model(TINY)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(16, 16)) for name in ("w0", "w1", "w2")}
    weights |= {"bias": rng.normal(size=16), "scale": rng.normal(size=16)}
    model.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    return model


def written(folder: Path, model: ModelProto | None = None, *, external: bool = True) -> Path:
    folder.mkdir()
    options = {"save_as_external_data": True, "location": "data", "size_threshold": 0} if external else {}
    onnx.save_model(tiny() if model is None else model, str(folder / "model.onnx"), **options)
    (folder / "reference.safetensors").write_bytes(b"torch's outputs")
    return folder


def outputs(folder: Path) -> Sequence[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: X})


def apply(name: str, source: Path, destination: Path) -> passes.Effect:
    step, model = Pass(family="onnxoptimizer", name=name), Model(hidden_size=16, num_attention_heads=2)
    return passes.apply(step, source, destination, model, Workload(sequence=8), destination / "state")


def test_the_table_has_every_pass_of_the_library_and_no_other() -> None:
    assert set(family.PASSES) == {*onnxoptimizer.get_available_passes(), "default"}


def test_four_passes_are_refused_with_a_reason_and_the_default_list_holds_none_of_them() -> None:
    refused = {name for name, info in family.PASSES.items() if info.refused}
    assert refused == {"split_init", "split_predict", "lift_lexical_references", "rewrite_input_dtype"}
    assert not refused & set(onnxoptimizer.get_fuse_and_elimination_passes())


@pytest.mark.parametrize("name", [name for name, info in family.PASSES.items() if not info.refused])
def test_every_usable_pass_keeps_the_outputs_right(name: str, tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    effect = apply(name, source, tmp_path / "made")
    for made, wanted in zip(outputs(tmp_path / "made"), outputs(source), strict=True):
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    assert not (tmp_path / "made" / "reference.safetensors").exists()
    if not effect.changed:
        assert effect.nodes_changed == 0
        assert (tmp_path / "made" / "model.onnx").read_bytes() == before["model.onnx"]
        assert (tmp_path / "made" / "data").read_bytes() == before["data"]
        assert effect.bytes_after == effect.bytes_before


@pytest.mark.parametrize(
    ("name", "difference", "nodes_changed"),
    [
        ("eliminate_identity", {"Identity": -1}, 1),
        ("fuse_matmul_add_bias_into_gemm", {"Add": -1, "Gemm": 1}, 2),  # the MatMul stays, and nobody reads it
        ("fuse_transpose_into_gemm", {"Transpose": -1}, 3),  # and one Gemm is replaced by one with transB
        ("default", {"Add": -1, "Gemm": 1, "Identity": -1, "MatMul": -1, "Transpose": -1}, 7),
        ("fuse_qkv", {}, 0),
    ],
)
def test_the_effect_says_which_nodes_changed(
    name: str, difference: dict[str, int], nodes_changed: int, tmp_path: Path
) -> None:
    effect = apply(name, written(tmp_path / "source"), tmp_path / "made")
    assert effect.histogram_difference == difference
    assert effect.nodes_changed == nodes_changed
    assert effect.changed == bool(difference)
    assert effect.nodes_before == 7
    assert effect.nodes_after == 7 + sum(difference.values())
    assert effect.seconds > 0
    assert passes.Effect.from_dict(effect.to_dict()) == effect


@pytest.mark.parametrize("name", ["default", "fuse_transpose_into_gemm", "eliminate_identity"])
def test_the_result_is_that_of_the_librarys_own_function(name: str, tmp_path: Path) -> None:
    apply(name, written(tmp_path / "source"), tmp_path / "made")
    chosen = None if name == "default" else [name]
    own = written(tmp_path / "own", onnxoptimizer.optimize(tiny(), chosen), external=False)
    assert graph.canonical_sha256(tmp_path / "made" / "model.onnx") == graph.canonical_sha256(own / "model.onnx")


def test_a_large_result_has_one_weights_file_and_the_same_outputs(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    large, small = tmp_path / "large", tmp_path / "small"
    for folder, embed_bytes in ((large, 0), (small, family.EMBED_BYTES)):
        folder.mkdir()
        family.apply("default", source, folder, embed_bytes=embed_bytes)
    assert sorted(path.name for path in large.iterdir()) == ["model.onnx", "weights.bin"]
    assert sorted(path.name for path in small.iterdir()) == ["model.onnx"]
    assert graph.canonical_sha256(large / "model.onnx") == graph.canonical_sha256(small / "model.onnx")
    assert not np.array_equal(outputs(large)[0], np.zeros_like(X))
    for made, wanted in zip(outputs(large), outputs(small), strict=True):
        np.testing.assert_array_equal(made, wanted)


def test_weights_are_told_apart_by_their_numbers(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    bare = onnx.load(str(source / "model.onnx"), load_external_data=False)
    wrong = onnxoptimizer.optimize(bare, ["eliminate_duplicate_initializer"])
    assert len(wrong.graph.initializer) == 2  # what the library makes of five weights that nobody loaded

    for name in ("eliminate_duplicate_initializer", "eliminate_nop_with_unit"):
        assert not apply(name, source, tmp_path / name).changed


def test_equal_weights_are_stored_once_and_that_is_a_change(tmp_path: Path) -> None:
    model = tiny()
    model.graph.initializer[2].raw_data = model.graph.initializer[0].raw_data
    source = written(tmp_path / "source", model)
    effect = apply("eliminate_duplicate_initializer", source, tmp_path / "made")
    assert effect.changed
    assert effect.nodes_changed == 0
    assert effect.bytes_before - effect.bytes_after > 900
    for made, wanted in zip(outputs(tmp_path / "made"), outputs(source), strict=True):
        np.testing.assert_array_equal(made, wanted)


def test_missing_or_short_weights_are_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    data = (source / "data").read_bytes()
    (source / "data").write_bytes(data[:-4])
    with pytest.raises(WorkError, match="data: tensor 'scale' needs 64 bytes"):
        apply("eliminate_identity", source, tmp_path / "made")
    (source / "data").unlink()
    with pytest.raises(WorkError, match="data: the weights' file is missing"):
        apply("eliminate_identity", source, tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


def test_hard_linked_weights_are_read(tmp_path: Path) -> None:
    source = written(tmp_path / "source")
    os.link(source / "data", tmp_path / "second name")
    assert apply("default", source, tmp_path / "made").nodes_changed == 7


def test_inputs_and_outputs_keep_their_names_when_a_pass_renames_them(tmp_path: Path) -> None:
    model = onnxoptimizer.optimize(tiny(), ["rename_input_output"])
    assert [value.name for value in model.graph.input] == ["input_0"]
    assert not apply("rename_input_output", written(tmp_path / "source"), tmp_path / "made").changed


def test_another_signature_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "source")
    with pytest.raises(WorkError, match="split_predict: its result is not usable: the inputs changed"):
        family.apply("split_predict", source, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_pass_that_throws_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="lift_lexical_references: RuntimeError: Unresolved value references"):
        family.apply("lift_lexical_references", written(tmp_path / "source"), tmp_path)


def test_a_crash_in_the_library_is_named_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    monkeypatch.setattr(family, "CHILD", child)
    with pytest.raises(WorkError, match="eliminate_identity: crashed with SIGSEGV"):
        family.apply("eliminate_identity", written(tmp_path / "source"), tmp_path)


def test_too_little_memory_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written(tmp_path / "source")
    total = psutil.virtual_memory().total
    monkeypatch.setattr(graph, "tensor_bytes", lambda tensor: total)
    monkeypatch.setattr(graph, "external_tensors", lambda model, folder: [])
    with pytest.raises(WorkError, match=r"wants [\d.]+ GiB of free memory \(7 × the weights'"):
        family.apply("eliminate_identity", source, tmp_path)


def test_what_the_library_would_drop_is_refused(tmp_path: Path) -> None:
    model = tiny()
    function = helper.make_function(
        "own", "f", ["p"], ["q"], [helper.make_node("Relu", ["p"], ["q"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(function)
    with pytest.raises(WorkError, match="the model has model-local functions"):
        family.apply("eliminate_identity", written(tmp_path / "source", model), tmp_path)
