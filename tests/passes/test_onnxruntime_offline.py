"""ONNX Runtime's optimisation saved: what each level does, what can be left out, and that outputs stay."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from llama_bench import graph, passes
from llama_bench.errors import InputError, WorkError
from llama_bench.passes import onnxruntime_offline as family
from llama_bench.sweep import Model, Pass

TORCHSCRIPT = {"exporter": "torchscript", "opset": 17}
FUSED = {"SimplifiedLayerNormalization": 5, "QuickGelu": 2, "FusedMatMul": 2}


def operators(folder: Path) -> Counter[str]:
    return Counter(graph.histogram(graph.load(folder / "model.onnx")))


@pytest.mark.parametrize("level", family.PASSES)
@pytest.mark.parametrize("variant", [TORCHSCRIPT, {"cache": True, "num_key_value_heads": 2}])
def test_each_level_keeps_the_outputs(
    level: str, variant: dict[str, Any], exported: Callable[..., Any], tmp_path: Path
) -> None:
    before = exported(**variant)
    after = before.applied(tmp_path, {"onnxruntime": level})
    for steps in ([], [14, 1, 1]) if variant.get("cache") else ([],):
        expected, found = before.run(steps=steps), after.run(steps=steps)
        assert list(found) == list(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


def test_basic_keeps_to_onnxs_operators_and_the_levels_above_fuse(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(**TORCHSCRIPT)
    found = {
        level: operators(before.applied(tmp_path / level, {"onnxruntime": level}).folder) for level in family.PASSES
    }
    assert not {"Constant", *FUSED} & set(found["basic"])
    assert found["extended"] == found["layout"] == found["all"]
    assert {op: found["all"][op] for op in FUSED} == FUSED


def test_the_saved_graph_is_the_one_that_a_session_executes(exported: Callable[..., Any], tmp_path: Path) -> None:
    before = exported(**TORCHSCRIPT)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    onnxruntime.InferenceSession(before.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    after = before.applied(tmp_path, {"onnxruntime": "all"})
    executed = graph.load(tmp_path / "executed.onnx")
    assert graph.node_identities(executed, tmp_path) == graph.node_identities(after.proto, after.folder)


@pytest.mark.parametrize(
    ("disabled", "left"),
    [
        (["QuickGeluFusion"], {"QuickGelu": 0, "Sigmoid": 2, "SimplifiedLayerNormalization": 5}),
        (["SimplifiedLayerNormFusion", "MatMulScaleFusion"], {"SimplifiedLayerNormalization": 0, "FusedMatMul": 0}),
    ],
)
def test_an_optimiser_that_is_left_out_does_nothing(
    disabled: list[str], left: dict[str, int], exported: Callable[..., Any], tmp_path: Path
) -> None:
    after = exported(**TORCHSCRIPT).applied(tmp_path, {"onnxruntime": {"disabled": disabled}})
    found = operators(after.folder)
    assert {op: found[op] for op in left} == left


def test_an_unknown_optimiser_is_refused_with_the_nearest() -> None:
    step = Pass.model_validate({"onnxruntime": {"disabled": ["QuickGeluFuson"]}})
    with pytest.raises(InputError, match=r"disabled: .*'QuickGeluFuson'.*did you mean 'QuickGeluFusion'"):
        passes.options_of(step)
    found = passes.misfit([step], Model(hidden_size=64, num_attention_heads=4))
    assert found is not None
    assert found[0] == 0


def test_a_model_that_stays_as_it_is_is_given_back(exported: Callable[..., Any], tmp_path: Path) -> None:
    # the second time it still shares equal constants that the first time left
    twice = exported(**TORCHSCRIPT).applied(tmp_path, *[{"onnxruntime": "all"}] * 2)
    source = twice.folder / "model.onnx"
    step = Pass(family="onnxruntime", name="all")
    effect = passes.apply(step, twice.folder, tmp_path / "again", twice.model, twice.workload, tmp_path)
    assert not effect.changed
    assert (tmp_path / "again" / "model.onnx").read_bytes() == source.read_bytes()


def test_only_domains_of_its_own_nodes_are_listed(exported: Callable[..., Any], tmp_path: Path) -> None:
    for level, domains in (("basic", {""}), ("all", {"", "com.microsoft"})):
        after = exported(**TORCHSCRIPT).applied(tmp_path / level, {"onnxruntime": level})
        assert {entry.domain for entry in after.proto.opset_import} == domains


def test_a_large_result_has_one_weights_file(
    exported: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family, "EMBED_BYTES", 0)
    after = exported().applied(tmp_path, {"onnxruntime": "all"})
    assert sorted(file.name for file in after.folder.iterdir()) == ["model.onnx", "weights.bin"]
    np.testing.assert_allclose(after.run()["logits"], exported().run()["logits"], rtol=1e-5, atol=2e-6)


def test_what_onnx_runtime_says_is_passed_on(static: Any, tmp_path: Path) -> None:
    source = Path(shutil.copytree(static.folder, tmp_path / "source"))
    proto = graph.load(source / "model.onnx")
    proto.graph.node[0].op_type = "Gatter"
    (source / "model.onnx").write_bytes(proto.SerializeToString())
    broken = type(static)(static.model, static.workload, source)
    with pytest.raises(WorkError, match=r"onnxruntime pass all: .*Gatter"):
        broken.applied(tmp_path / "after", {"onnxruntime": "all"})


def test_a_crash_is_named_with_its_signal(static: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")
    monkeypatch.setattr(family, "CHILD", child)
    with pytest.raises(WorkError, match="onnxruntime pass all: crashed with SIGSEGV"):
        static.applied(tmp_path / "after", {"onnxruntime": "all"})
