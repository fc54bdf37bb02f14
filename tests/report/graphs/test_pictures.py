"""The pictures themselves: rows and marks of the SVG, escaped names, sizes of the PNG, what a page may inline."""

from __future__ import annotations

import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from llama_bench.report.drawing import png
from llama_bench.report.graphs.difference import Difference, compare
from llama_bench.report.graphs.kinds import CARD, KINDS, MARKS, OPERATORS, kinds_of_operators
from llama_bench.report.graphs.pictures import before_and_after, layer, operators, rewrites
from llama_bench.report.graphs.read import Graph, build, read
from llama_bench.report.graphs.scene import shortened

from .conftest import GEMM, Make

SVG = "{http://www.w3.org/2000/svg}"
BIAS = {"onnxoptimizer": "fuse_matmul_add_bias_into_gemm"}


@pytest.fixture(scope="module")
def bias(made: Make) -> Difference:
    return compare(read(made(GEMM)), read(made(GEMM, BIAS)))


def _texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def _chain(*ops: str, name: str = "n", weight: str = "w") -> Graph:
    """A chain of operators on one value; a MatMul reads a weight."""
    nodes = [
        helper.make_node(op, [f"v{i}", *([weight] if op == "MatMul" else [])], [f"v{i + 1}"], name=f"{name}{i}")
        for i, op in enumerate(ops)
    ]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [4, 4]) for end in ("v0", f"v{len(ops)}")]
    held = helper.make_tensor(weight, TensorProto.FLOAT, [4, 4], [0.0] * 16)
    return build(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [held])), Path("m.onnx"))


def test_every_drawn_operator_is_a_row_with_the_letter_of_its_kind(study: Graph) -> None:
    texts = _texts(layer(study, "a model").svg)
    assert sum(text.startswith("MatMul") for text in texts) == 1 + 9  # the angles' and one layer's
    assert sum(text.startswith("Softmax") for text in texts) == 1
    assert "q_proj 32×32" in " ".join(texts)
    assert {"M", "N", "E", "F", "L"} & set(texts) == {"M", "E", "F", "L"}
    assert {"matrix product", "activation", "layout, copy"} <= set(texts)
    assert "normalisation" not in texts  # the legend names what occurs


def test_the_caption_says_what_was_left_out(study: Graph) -> None:
    constants = sum(node.op == "Constant" for node in study.nodes)
    assert f"Left out: {constants} constants and 0 nodes that only compute shapes." in layer(study, "a model").caption


def test_a_known_rewrite_is_marked_on_both_sides(bias: Difference) -> None:
    [picture] = rewrites(bias, "bias", "bias")
    assert "done 14 times: Add → Gemm" in picture.caption
    root = ElementTree.fromstring(picture.svg)
    before, after = root.findall(f"{SVG}g")
    for panel, op, sign, dashed in ((before, "Add", "−1", True), (after, "Gemm", "+1", False)):
        frames = [rect for rect in panel.iter(f"{SVG}rect") if rect.get("stroke") == MARKS["fused"].colour]
        assert len(frames) == 1
        assert (frames[0].get("stroke-dasharray") is not None) is dashed
        texts = ["".join(text.itertext()) for text in panel.iter(f"{SVG}text")]
        assert sign in texts
        assert any(text.startswith(op) for text in texts)
    assert "MatMul" in " ".join(after.itertext())  # left behind, and shown beside the Gemm


def test_more_hops_show_more_neighbours(bias: Difference) -> None:
    near, far = (len(_texts(rewrites(bias, "b", "b", hops)[0].svg)) for hops in (1, 3))
    assert far > near


def test_before_and_after_stand_side_by_side_with_equal_layers_folded(bias: Difference) -> None:
    picture = before_and_after(bias, "bias", "bias")
    assert picture is not None
    texts = _texts(picture.svg)
    assert f"before: {len(bias.before.nodes)} nodes" in texts
    assert f"after: {len(bias.after.nodes)} nodes" in texts
    assert texts.count("one of 2 equal layers") == 2
    assert texts.count("−1") == texts.count("+1") == 7  # one layer's


def test_constants_that_only_moved_are_no_picture_but_a_sentence() -> None:
    before = _chain("MatMul", "Neg")
    constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [2.0]))
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1]) for end in ("v0", "v1")]
    add = helper.make_node("Add", ["v0", "c"], ["v1"])
    models = []
    for nodes, held in (([constant, add], []), ([add], [constant.attribute[0].t])):
        proto = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
        models.append(build(helper.make_model(proto), Path("m")))
    difference = compare(*models)
    assert [node.op for node in difference.removed] == ["Constant"]
    assert before_and_after(difference, "t", "n") is None
    assert rewrites(difference, "t", "n") == []
    assert compare(before, before).rewrites == ()


def test_names_of_a_model_are_text_whatever_is_in_them() -> None:
    evil = "a\"b'<script>&🦙\x07\ud800"
    graph = _chain("MatMul", "Neg", "Softmax", weight=evil.replace("\ud800", "") + ".weight")
    picture = layer(graph, f"Layer of {evil}")
    root = ElementTree.fromstring(picture.svg)
    assert root.find(f"{SVG}script") is None
    assert [element.tag for element in root.iter() if "script" in element.tag] == []
    assert any("<script>" in text and "🦙" in text and '"' in text for text in _texts(picture.svg))
    assert png(picture.svg, 1.0).startswith(b"\x89PNG")


def test_a_long_name_is_cut_and_stays_in_one_line() -> None:
    assert shortened("x" * 99) == "x" * 33 + "…"
    assert shortened("a\n\tb") == "a b"


def test_a_page_can_inline_them(bias: Difference) -> None:
    both = before_and_after(bias, "bias", "bias")
    assert both is not None
    for picture in (both, *rewrites(bias, "bias", "bias"), layer(bias.before, "a")):
        assert not re.search(r"\bid=|href|<style|\bclass=|url\(|<script|<image", picture.svg)
        assert len(picture.svg) < 150_000
        assert picture.svg.startswith("<svg ")


def test_a_png_has_the_size_that_the_svg_states(bias: Difference) -> None:
    [picture] = rewrites(bias, "bias", "bias")
    root = ElementTree.fromstring(picture.svg)
    stated = int(root.attrib["width"]), int(root.attrib["height"])
    data = png(picture.svg, 2.0)
    assert struct.unpack(">II", data[16:24]) == (2 * stated[0], 2 * stated[1])
    assert len(data) > 5000


def test_nothing_lies_outside_the_picture_and_no_box_on_another(bias: Difference) -> None:
    svg = rewrites(bias, "bias", "bias")[0].svg
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for panel in root.findall(f"{SVG}g"):
        dx, dy = map(float, re.findall(r"[\d.]+", panel.attrib["transform"]))
        boxes = [
            tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            for rect in panel.iter(f"{SVG}rect")
            if rect.get("fill") == CARD
        ]
        assert boxes
        for i, (x, y, wide, tall) in enumerate(boxes):
            assert 0 <= x + dx <= width - wide
            assert 0 <= y + dy <= height - tall
            for a, b, c, d in boxes[:i]:
                assert x >= a + c or a >= x + wide or y >= b + d or b >= y + tall


def test_a_huge_graph_is_cut_with_a_note() -> None:
    nodes, outputs = [], []
    for i in range(500):  # branches side by side, each of another length, so that nothing folds
        ops = ["Neg", "Abs"] * (1 + i % 2)
        for j, op in enumerate(ops):
            nodes.append(helper.make_node(op, ["x" if j == 0 else f"{i}.{j}"], [f"{i}.{j + 1}"]))
        outputs.append(helper.make_tensor_value_info(f"{i}.{len(ops)}", TensorProto.FLOAT, [1]))
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph(nodes, "g", given, outputs))
    picture = layer(build(model, Path("m")), "wide")
    assert re.search(r"\d+ boxes at the end did not fit in\.", picture.caption)
    assert len(picture.svg) < 150_000


def test_the_chart_counts_operators_that_differ(bias: Difference) -> None:
    picture = operators(bias, "bias", "operators")
    assert picture is not None
    texts = " ".join(_texts(picture.svg))
    assert "Gemm" in texts
    assert "14 (+14)" in texts
    assert "(−14)" in texts
    assert "Sigmoid" not in texts
    assert operators(compare(bias.before, bias.before), "same", "operators") is None


def test_every_kind_has_a_letter_of_its_own_and_no_operator_two_kinds() -> None:
    letters = [kind.letter for kind in KINDS.values()]
    assert len(set(letters)) == len(letters)
    listed = [op for ops in OPERATORS.values() for op in ops.split()]
    assert len(listed) == len(set(listed)) == len(kinds_of_operators())
    assert set(kinds_of_operators().values()) <= set(KINDS)


def test_what_lies_on_a_box_keeps_its_colours_on_dark_paper() -> None:
    from llama_bench.report.drawing import BLUE, FAINT, GREEN, GREY, INK, PAPER, VERMILLION

    turned = {BLUE, FAINT, GREEN, GREY, INK, PAPER, VERMILLION}
    used = {CARD, *(mark.colour for mark in MARKS.values()), *(mark.tint for mark in MARKS.values())}
    assert not turned & (used | {kind.colour for kind in KINDS.values()})
