"""What a graph costs, against counting by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llama_bench.own.count import count, table_rows, weights

from .graphs import CLASSES, INNER, WIDTH, WORDS, pictures, tagger

ROWS = 2 * 3


def write(path: Path, nodes: list[Any], inputs: dict[str, list[Any]], constants: dict[str, tuple[int, ...]]) -> Path:
    """Write a graph of float inputs whose last node's result comes out."""
    held = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in constants.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    out = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["a", "b"])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", given, [out], held), opset_imports=opsets, ir_version=8)
    onnx.save(model, str(path))
    return path


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], output, **attributes)


@pytest.mark.parametrize("external", [False, True])
def test_products_inputs_outputs_and_what_is_alive_are_counted(tmp_path: Path, external: bool) -> None:
    path = tagger(tmp_path / "t.onnx", external=external)
    found = count(path, {"input_ids": [2, 3], "attention_mask": [2, 3]})
    products = 2 * ROWS * (WIDTH * INNER + INNER * CLASSES)
    assert (found["operations"], found["least_operations"], found["uncounted"]) == (products, products, None)
    assert found["input_bytes"] == 2 * 8 * ROWS
    assert found["output_bytes"] == 4 * ROWS * CLASSES + 8 * ROWS
    # Relu reads and writes the widest value, beside nothing else that is still needed
    assert found["live_bytes"] == 2 * 4 * ROWS * INNER


def test_a_convolution_counts_as_work_and_not_as_the_least_work(tmp_path: Path) -> None:
    found = count(pictures(tmp_path / "p.onnx"), {"pixels": [2, 3, 8, 10]})
    assert found["operations"] == 2 * (2 * 4 * 8 * 10) * (3 * 3 * 3)
    assert found["least_operations"] == 0


def test_equal_products_unread_ones_and_constant_ones_are_no_work_that_must_be_done(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "x w", "b"),  # the same again
        node("MatMul", "x v", "unread"),
        node("MatMul", "w w", "folded"),
        node("MatMul", "a folded", "c"),
        node("MatMul", "b c", "d"),  # no weight in it: attention may leave half of it out
        node("Add", "d b", "out"),
    ]
    path = write(tmp_path / "g.onnx", nodes, {"x": ["N", 4]}, {"w": (4, 4), "v": (4, 4)})
    found = count(path, {"x": [4, 4]})
    one = 2 * 4 * 4 * 4
    assert found["operations"] == 5 * one
    assert found["least_operations"] == 2 * one


def test_gemms_are_counted_by_what_they_turn(tmp_path: Path) -> None:
    path = write(tmp_path / "g.onnx", [node("Gemm", "x w", "out", transA=1, transB=1)], {"x": [5, "N"]}, {"w": (7, 5)})
    assert count(path, {"x": [5, 3]})["operations"] == 2 * 3 * 7 * 5


def test_what_cannot_be_counted_is_said(tmp_path: Path) -> None:
    nodes = [node("NonZero", "x", "where"), node("Cast", "where", "y", to=1), node("MatMul", "w y", "out")]
    path = write(tmp_path / "g.onnx", nodes, {"x": ["N", 4]}, {"w": (4, 2)})
    found = count(path, {"x": [4, 4]})
    assert found["uncounted"] == "the shapes of MatMul out are not known"
    nodes = [node("Einsum", "x w", "out", equation="ij,jk->ik")]
    path = write(tmp_path / "e.onnx", nodes, {"x": ["N", 4]}, {"w": (4, 2)})
    assert count(path, {"x": [4, 4]})["uncounted"] == "Einsum out is not counted"


def test_tables_are_found_behind_reshapes_and_their_weights_are_not_multiplied_by(tmp_path: Path) -> None:
    model = onnx.load(str(tagger(tmp_path / "t.onnx")))
    assert table_rows(model) == {"input_ids": WORDS}
    found = weights(model)
    assert found["weight_bytes"] - found["product_bytes"] == 4 * WORDS * WIDTH + 8 * 3  # and two shapes
    assert found["reduced"] is False


def test_weights_in_less_than_fp32_are_seen(tmp_path: Path) -> None:
    model = onnx.load(str(tagger(tmp_path / "t.onnx")))
    half = numpy_helper.from_array(np.ones(4, np.float16), "half")
    model.graph.initializer.append(half)
    assert weights(model)["reduced"] is True
