"""What ONNX Runtime executes is told by graph and placement: the same for a no-op, another for a real change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from llama_bench import engines, passes
from llama_bench.engines import Task
from llama_bench.engines.executed import Executed, by_provider, examine, placement
from llama_bench.errors import WorkError
from llama_bench.sweep import Model, Pass, Session, Target, Workload

X = np.random.default_rng(1).normal(size=(4, 32)).astype(np.float32)


def chosen(**session: Any) -> dict[str, Any]:
    return engines.settings("onnxruntime", Session(**session), Target(tag="bench_cpu", threads=1), 1)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Two Linear layers with an Identity between them; the first weight is large enough to go beside a saved graph."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        tiny (float[4,32] x) => (float[4,32] y)
        <float[4,32] product, float[4,32] biased, float[4,32] same> {
            product = MatMul(x, w0)
            biased = Add(product, bias)
            same = Identity(biased)
            y = MatMul(same, w1)
        }
        """
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w0", (32, 32)), ("w1", (32, 32)), ("bias", (32,))):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    folder = tmp_path / "original"
    folder.mkdir()
    onnx.save_model(model, str(folder / "model.onnx"), save_as_external_data=True, location="w", size_threshold=0)
    return folder


def applied(name: str, source: Path, destination: Path) -> bool:
    model, workload = Model(hidden_size=32, num_attention_heads=2), Workload(sequence=4)
    step = Pass(family="onnxoptimizer", name=name)
    return passes.apply(step, source, destination, model, workload, destination.parent).changed


def examined(folder: Path, scratch: Path, **session: Any) -> Executed:
    return examine(folder, chosen(**session), Task({"cache": False}, {"kind": "prefill"}, {"x": X}), scratch)


def test_a_pass_that_onnx_runtime_repeats_itself_is_a_no_op_only_where_it_does(original: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    assert applied("eliminate_identity", original, without)

    plain, optimised = (examined(folder, tmp_path, optimization_level="disable") for folder in (original, without))
    assert plain.sha256 != optimised.sha256
    assert plain.histogram == {"Add": 1, "Identity": 1, "MatMul": 2}
    assert optimised.histogram == {"Add": 1, "MatMul": 2}
    assert plain.placement == {"CPUExecutionProvider": plain.histogram}

    plain, optimised = (examined(folder, tmp_path, optimization_level="all") for folder in (original, without))
    assert plain == optimised
    assert "Identity" not in plain.histogram
    assert plain.nodes == sum(plain.histogram.values()) == sum(plain.placement["CPUExecutionProvider"].values())


def test_a_fusion_that_leaves_its_matmul_behind_is_seen(original: Path, tmp_path: Path) -> None:
    name = "fuse_matmul_add_bias_into_gemm"
    applied(name, original, tmp_path / name)
    executed = examined(tmp_path / name, tmp_path)
    assert executed.histogram["MatMul"] == 2  # ONNX Runtime runs the dead one too
    assert executed.sha256 != examined(original, tmp_path).sha256


def test_one_weight_changes_the_executed_graph(original: Path, tmp_path: Path) -> None:
    before = examined(original, tmp_path)
    data = bytearray((original / "w").read_bytes())
    data[5000] ^= 1
    (original / "w").write_bytes(data)
    after = examined(original, tmp_path)
    assert after.sha256 != before.sha256
    assert after.placement_sha256 == before.placement_sha256


def test_a_disabled_optimiser_leaves_its_nodes_in_the_executed_graph(growing: Any, tmp_path: Path) -> None:
    workload = Workload(kind="decode", batch=1, context=3)
    plain, without = (
        examine(growing.folder, chosen(disabled_optimizers=names), growing.task(workload), tmp_path)
        for names in ((), ("QuickGeluFusion",))
    )
    assert plain.histogram is not None
    assert without.histogram is not None
    assert (plain.histogram["QuickGelu"], plain.histogram.get("Sigmoid", 0)) == (2, 0)
    assert (without.histogram.get("QuickGelu", 0), without.histogram["Sigmoid"]) == (0, 2)
    assert plain.sha256 != without.sha256


def test_a_graph_with_a_shared_cache_is_examined_in_every_kind_of_run(shared: Any, tmp_path: Path) -> None:
    variant = shared()
    kinds = [
        Workload(kind="prefill", sequence=4, outputs="last_logits"),
        Workload(kind="decode", context=3),
        Workload(kind="generate", prompt=3, new_tokens=2),
    ]
    found = [examine(variant.folder, chosen(), variant.task(workload), tmp_path) for workload in kinds]
    assert found[0] == found[1] == found[2]
    assert found[0].histogram is not None
    assert found[0].histogram["GroupQueryAttention"] == 2
    assert found[0].placement == {"CPUExecutionProvider": found[0].histogram}


def test_nodes_by_provider_are_sorted_and_counted() -> None:
    placed = [("B", "MatMul"), ("A", "Gather"), ("B", "Add"), ("B", "MatMul")]
    assert list(by_provider(placed)) == ["A", "B"]
    assert by_provider(placed) == {"A": {"Gather": 1}, "B": {"Add": 1, "MatMul": 2}}


@pytest.mark.parametrize("io", ["device", "host"])
def test_examining_leaves_nothing_behind_and_tells_the_same_twice(original: Path, tmp_path: Path, io: str) -> None:
    scratch = tmp_path / "scratch"
    assert examined(original, scratch, io=io) == examined(original, scratch, io=io)
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in original.iterdir()) == ["model.onnx", "w"]


def test_a_failed_examination_leaves_nothing_behind_either(original: Path, tmp_path: Path) -> None:
    (original / "model.onnx").write_bytes(b"")
    with pytest.raises(WorkError):
        examined(original, tmp_path / "scratch")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_too_little_room_is_said_before_the_work(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_bench.engines.executed.model_bytes", lambda path: 1 << 60)
    with pytest.raises(WorkError, match=r"saving the executed graph wants \d+ MiB, \d+ MiB are free"):
        examined(original, tmp_path)


def test_a_node_that_ran_twice_is_placed_once() -> None:
    def event(name: str, provider: str, op: str, index: str) -> dict[str, Any]:
        args = {"provider": provider, "op_name": op, "node_index": index}
        return {"cat": "Node", "name": name, "args": args}

    events = [
        event("a_kernel_time", "CUDAExecutionProvider", "MatMul", "0"),
        event("a_kernel_time", "CUDAExecutionProvider", "MatMul", "0"),
        event("_kernel_time", "CUDAExecutionProvider", "MatMul", "1"),
        event("b_kernel_time", "CPUExecutionProvider", "Gather", "2"),
        event("b_fence_before", "CPUExecutionProvider", "Gather", "2"),
        {"cat": "Session", "name": "model_run", "args": {}},
    ]
    assert placement(events) == {"CPUExecutionProvider": {"Gather": 1}, "CUDAExecutionProvider": {"MatMul": 2}}
