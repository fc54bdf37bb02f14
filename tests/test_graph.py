"""The canonical hash sees what a graph computes and nothing else; reading never takes missing weights for given."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from llama_bench import graph
from llama_bench.errors import WorkError


def two_layers() -> ModelProto:
    """Two layers of MatMul, Add and Clip with an optional input left out, and an If that captures a value."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>
        two_layers (float[2,8] x, bool flag) => (float[2,8] y) {
            [matmul_0] a = MatMul(x, w0)
            [add_0] b = Add(a, bias)
            [clip] c = Clip(b, , high)
            [matmul_1] d = MatMul(c, w1)
            [gelu] e = com.microsoft.QuickGelu<alpha = 1.0>(d)
            [if] y = If(flag) <
                then_branch = then () => (float[2,8] t) { t = Add(e, x) },
                else_branch = otherwise () => (float[2,8] f) { f = Mul(e, x) }
            >
        }
        """
    )
    rng = np.random.default_rng(0)
    weights = {
        "w0": rng.normal(size=(8, 8)).astype(np.float32),
        "w1": rng.normal(size=(8, 8)).astype(np.float32),
        "bias": rng.normal(size=8).astype(np.float32),
        "high": np.float32(3.0),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items())
    return model


def hash_of(model: ModelProto, folder: Path, **save: object) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "model.onnx"
    onnx.save_model(model, str(path), **save)
    return graph.canonical_sha256(path)


def renamed(model: ModelProto) -> ModelProto:
    """Rename every value and node that is no input or output, in subgraphs too."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}

    def new(name: str) -> str:
        return name if name in kept else f"renamed/{name}"

    for inner in graph.graphs(model.graph):
        inner.name, inner.doc_string = "another", "doc"
        for tensor in inner.initializer:
            tensor.name = new(tensor.name)
        for value in inner.output:
            value.name = new(value.name)
        for node in inner.node:
            node.name, node.doc_string = new(node.name), "doc"
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            node.metadata_props.add(key="where", value="layer 0")
    return model


def test_names_order_docs_and_the_place_of_weights_make_no_difference(tmp_path: Path) -> None:
    plain = hash_of(two_layers(), tmp_path / "plain")

    model = renamed(two_layers())
    for field in (model.graph.node, model.graph.initializer, model.graph.node[-1].attribute):
        items = list(field)
        random.Random(1).shuffle(items)
        del field[:]
        field.extend(items)
    model.producer_name, model.ir_version = "somebody", 10
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = node.domain or "ai.onnx"
        if node.op_type == "MatMul":
            node.input.append("")  # an optional input left out, named ''
    model.graph.value_info.append(helper.make_tensor_value_info("renamed/a", TensorProto.FLOAT, [2, 8]))
    for tensor in model.graph.initializer:  # the same numbers as typed fields instead of raw bytes
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.ravel()))

    assert hash_of(model, tmp_path / "renamed") == plain
    outside = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    assert hash_of(two_layers(), tmp_path / "external", **outside) == plain


def one_element(model: ModelProto) -> None:
    array = numpy_helper.to_array(model.graph.initializer[1]).copy()
    array[3, 5] = np.nextafter(array[3, 5], np.float32(9))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(array, "w1"))


def one_attribute(model: ModelProto) -> None:
    model.graph.node[4].attribute[0].f = 1.702


def one_edge(model: ModelProto) -> None:
    model.graph.node[3].input[0] = "b"


def order_of_inputs(model: ModelProto) -> None:
    model.graph.node[0].input[:] = ["w0", "x"]


def one_identity(model: ModelProto) -> None:
    model.graph.node.insert(3, helper.make_node("Identity", ["c"], ["c2"]))
    model.graph.node[4].input[0] = "c2"


def dead_node(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["x"], ["unread"]))


def unused_weight(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float32), "unread"))


def which_optional_input(model: ModelProto) -> None:
    model.graph.node[2].input[:] = ["b", "high"]


def inside_a_subgraph(model: ModelProto) -> None:
    model.graph.node[5].attribute[1].g.node[0].op_type = "Sub"


def captured_value(model: ModelProto) -> None:
    model.graph.node[5].attribute[0].g.node[0].input[0] = "d"


def operator_set(model: ModelProto) -> None:
    model.opset_import[0].version = 18


def domain(model: ModelProto) -> None:
    model.graph.node[4].domain = "org.other"


def input_name(model: ModelProto) -> None:
    model.graph.input[1].name = model.graph.node[5].input[0] = "switch"


def input_shape(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def weight_as_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("bias", TensorProto.FLOAT, [8]))


@pytest.mark.parametrize(
    "change",
    [
        one_element, one_attribute, one_edge, order_of_inputs, one_identity, dead_node, unused_weight,
        which_optional_input, inside_a_subgraph, captured_value, operator_set, domain, input_name, input_shape,
        weight_as_input,
    ],
)  # fmt: skip
def test_every_real_change_changes_the_hash(change: Callable[[ModelProto], None], tmp_path: Path) -> None:
    model = two_layers()
    change(model)
    assert hash_of(model, tmp_path / "changed") != hash_of(two_layers(), tmp_path / "plain")


def test_a_model_local_function_is_part_of_the_hash(tmp_path: Path) -> None:
    def model(op: str) -> ModelProto:
        body = [helper.make_node(op, ["p"], ["q"])]
        function = helper.make_function("own", "twice", ["p"], ["q"], body, [helper.make_opsetid("", 17)])
        made = two_layers()
        made.functions.append(function)
        return made

    assert hash_of(model("Relu"), tmp_path / "relu") != hash_of(model("Abs"), tmp_path / "abs")


def test_taking_one_node_away_counts_as_one_node_changed(tmp_path: Path) -> None:
    model = two_layers()
    one_identity(model)
    more, fewer = graph.node_identities(model, tmp_path), graph.node_identities(two_layers(), tmp_path)
    assert (more - fewer).total() == 1
    assert (fewer - more).total() == 0
    assert fewer.total() == 8  # six nodes and one in each branch
    assert graph.histogram(model)["Add"] == 2


def test_weights_are_read_from_hard_linked_files(tmp_path: Path) -> None:
    hash_of(two_layers(), tmp_path / "store", save_as_external_data=True, location="w.bin", size_threshold=0)
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name in ("model.onnx", "w.bin"):
        os.link(tmp_path / "store" / name, fetched / name)
    model = graph.load(fetched / "model.onnx", weights=True)
    assert not graph.external_tensors(model, fetched)
    np.testing.assert_array_equal(
        numpy_helper.to_array(model.graph.initializer[0]), numpy_helper.to_array(two_layers().graph.initializer[0])
    )


def test_missing_and_short_weights_are_refused_by_name(tmp_path: Path) -> None:
    hash_of(two_layers(), tmp_path, save_as_external_data=True, location="w.bin", size_threshold=0)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:-20])
    for read in (graph.canonical_sha256, graph.model_bytes, lambda path: graph.load(path, weights=True)):
        with pytest.raises(WorkError, match=r"w\.bin: tensor 'high' needs 4 bytes|w\.bin: tensor 'bias' needs 32"):
            read(tmp_path / "model.onnx")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(WorkError, match=r"w\.bin: the weights' file is missing"):
        graph.load(tmp_path / "model.onnx", weights=True)


@pytest.mark.parametrize("place", ["../w.bin", "absolute"])
def test_weights_outside_the_folder_are_not_read(tmp_path: Path, place: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "w.bin"
    folder.mkdir()
    hash_of(two_layers(), folder, save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "w.bin").rename(outside)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in graph.tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(outside) if place == "absolute" else place
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    for read in (graph.canonical_sha256, graph.model_bytes, lambda path: graph.load(path, weights=True)):
        with pytest.raises(WorkError, match=r"model\.onnx: tensor '.*' keeps its data at .*w\.bin', which is no file"):
            read(folder / "model.onnx")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"", b"no model at all"):
        path.write_bytes(content)
        with pytest.raises(WorkError, match="not a readable ONNX model"):
            graph.load(path)


def test_a_torn_graph_is_refused(tmp_path: Path) -> None:
    model = two_layers()
    model.graph.node[3].input[0] = "nothing"
    with pytest.raises(WorkError, match="MatMul reads 'nothing'"):
        hash_of(model, tmp_path)
    model.graph.node[3].input[0] = "y"
    with pytest.raises(WorkError, match="its own output"):
        hash_of(model, tmp_path)


def test_packed_types_count_their_real_bytes() -> None:
    nine = TensorProto(data_type=TensorProto.INT4, dims=[3, 3])
    assert graph.tensor_bytes(nine) == 5
    assert graph.tensor_bytes(TensorProto(data_type=TensorProto.BFLOAT16, dims=[3, 3])) == 18
    assert graph.tensor_bytes(TensorProto(data_type=TensorProto.FLOAT, dims=[])) == 4
