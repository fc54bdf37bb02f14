"""Reading a graph as it is drawn: without weights, with names and sizes, shapes told from data."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from llama_bench.errors import InputError, WorkError
from llama_bench.report.graphs.read import Graph, build, read

from .conftest import CACHED, GEMM, Make


def test_weights_are_not_needed(made: Make, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((made(GEMM) / "model.onnx").read_bytes())
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:  # as if all bytes lay in a file that is not there
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="gone.data")
    onnx.save(model, tmp_path / "model.onnx")
    assert len(read(tmp_path).nodes) == len(read(made(GEMM)).nodes)


def test_a_product_is_named_after_its_layer_and_the_sizes_of_its_weight(study: Graph, made: Make) -> None:
    texts = {node.text for node in study.nodes if node.op == "MatMul"}
    assert {"q_proj 32×32", "gate_proj 32×48", "down_proj 48×32"} <= texts
    transposes = {node.text for node in read(made(GEMM)).nodes if node.op == "Transpose"}
    assert "perm 1 0, q_proj 32×32" in transposes


def test_small_constants_are_written_out(study: Graph) -> None:
    texts = {op: {node.text for node in study.nodes if node.op == op} for op in ("Pow", "Reshape", "Slice")}
    assert texts["Pow"] == {"2"}
    assert "[2 16 2 16]" in texts["Reshape"]
    assert texts["Slice"] == {"0:8", "8:"}


def test_what_only_computes_shapes_is_told_from_data(made: Make) -> None:
    graph = read(made(CACHED))
    shapes = {node.op for node in graph.nodes if node.shape}
    assert "Shape" in shapes
    assert not shapes & {"MatMul", "Softmax", "Transpose", "Sigmoid"}
    reshapes = [node for node in graph.nodes if node.op == "Reshape"]
    assert reshapes
    assert not any(node.shape for node in reshapes)


def test_layers_are_read_from_names(study: Graph) -> None:
    assert {node.layer for node in study.nodes} == {None, 0, 1}


def test_nodes_come_after_those_that_they_read_from_however_they_are_stored() -> None:
    one, two = helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["y"], ["z"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xz"]
    graph = build(helper.make_model(helper.make_graph([two, one], "g", value[:1], value[1:])), Path("m"))
    assert [node.op for node in graph.nodes] == ["Neg", "Abs"]


def test_a_circle_is_a_torn_graph() -> None:
    nodes = [helper.make_node("Neg", ["z"], ["y"]), helper.make_node("Abs", ["y"], ["z"])]
    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])]
    with pytest.raises(WorkError, match=r"m\.onnx: the graph is torn"):
        build(helper.make_model(helper.make_graph(nodes, "g", [], out)), Path("m.onnx"))


def test_a_missing_file_is_wrong_input_and_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(WorkError, match=r"text\.onnx: not a readable ONNX model"):
        read(tmp_path / "text.onnx")
