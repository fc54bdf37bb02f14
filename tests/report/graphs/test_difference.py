"""What real passes did: which nodes went, which came, and which new ones stand for which old ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llama_bench.report.graphs.difference import Difference, compare
from llama_bench.report.graphs.pictures import summary
from llama_bench.report.graphs.read import Graph, read

from .conftest import CACHED, GEMM, STUDY, Make

BIAS = {"onnxoptimizer": "fuse_matmul_add_bias_into_gemm"}
TRANSPOSE = {"onnxoptimizer": "fuse_transpose_into_gemm"}
DEADEND = {"onnxoptimizer": "eliminate_deadend"}
FUSE = {"fuse": "all"}


def _compare(before: Path, after: Path) -> Difference:
    return compare(read(before), read(after))


def _kinds(difference: Difference) -> list[tuple[int, dict[str, int], dict[str, int]]]:
    return [(kind["times"], kind["removed"], kind["added"]) for kind in difference.to_dict()["rewrites"]]


def test_the_bias_pass_puts_a_gemm_for_each_add_and_leaves_the_products(made: Make) -> None:
    difference = _compare(made(GEMM), made(GEMM, BIAS))
    assert _kinds(difference) == [(14, {"Add": 1}, {"Gemm": 1})]
    assert difference.histogram()["MatMul"] == [19, 19]


def test_dead_products_are_removed_and_nothing_stands_for_them(made: Make) -> None:
    difference = _compare(made(GEMM, BIAS), made(GEMM, BIAS, DEADEND))
    assert _kinds(difference) == [(14, {"MatMul": 1}, {})]
    marks = {mark for marked in difference.marks() for mark in marked.marks.values()}
    assert marks == {"removed"}


def test_the_transpose_pass_replaces_a_transpose_and_a_gemm_by_one_gemm(made: Make) -> None:
    difference = _compare(made(GEMM, BIAS, DEADEND), made(GEMM, BIAS, DEADEND, TRANSPOSE))
    assert _kinds(difference) == [(14, {"Gemm": 1, "Transpose": 1}, {"Gemm": 1})]
    old, new = difference.marks()
    assert set(old.marks.values()) == {"replaced"}
    assert set(new.marks.values()) == {"fused"}
    assert set(old.numbers.values()) == set(new.numbers.values()) == {1}


def test_an_identity_goes_and_what_read_it_stays(made: Make) -> None:
    difference = _compare(made(GEMM), made(GEMM, {"onnxoptimizer": "eliminate_identity"}))
    [(times, removed, added)] = _kinds(difference)
    assert (removed, added) == ({"Identity": 1}, {})
    assert times == difference.histogram()["Identity"][0] > 0
    assert len(difference.same) == len(difference.after.nodes)


def test_a_pass_that_changes_nothing_says_so_in_one_line(made: Make) -> None:
    difference = _compare(made(STUDY), made(STUDY, TRANSPOSE))
    assert not difference.changed
    assert summary(difference) == f"changed nothing (0 of {len(difference.before.nodes)} nodes)."


def test_our_fusions_are_told_apart_layer_by_layer(made: Make) -> None:
    kinds = _kinds(_compare(made(CACHED), made(CACHED, FUSE)))
    [(times, removed)] = [(times, removed) for times, removed, added in kinds if "GroupQueryAttention" in added]
    assert times == 2
    assert removed["Softmax"] == 1
    assert not {"Cos", "Sin"} & set(removed)  # all layers share them
    [alone] = [removed for _, removed, added in kinds if "Cos" in removed]
    assert alone["Sin"] == 1
    norms = [(times, removed) for times, removed, added in kinds if "SkipSimplifiedLayerNormalization" in added]
    assert sum(times for times, _ in norms) == 4
    assert all(removed["Pow"] == 1 and removed["Add"] == 2 for _, removed in norms)


def test_quantised_products_stand_for_products(made: Make) -> None:
    difference = _compare(made(CACHED, FUSE), made(CACHED, FUSE, {"quantize": {"bits": 4, "block_size": 16}}))
    assert [(removed, added) for _, removed, added in _kinds(difference)] == [({"MatMul": 1}, {"MatMulNBits": 1})]


def test_weights_of_another_type_are_seen_though_their_nodes_stayed(made: Make) -> None:
    difference = _compare(made(CACHED, FUSE), made(CACHED, FUSE, {"precision": "fp16"}))
    resized = {difference.before.nodes[index].op for index in difference.resized}
    assert {"MatMul", "Gather"} <= resized
    assert "read constants of other sizes or types" in summary(difference)
    assert {mark for marked in difference.marks() for mark in marked.marks.values()} == {"resized", "added"}


@pytest.mark.parametrize("steps", [(BIAS,), (BIAS, DEADEND), (BIAS, DEADEND, TRANSPOSE)], ids=len)
def test_nodes_are_matched_without_any_names(
    made: Make, nameless: Callable[[Path], Graph], steps: tuple[dict[str, str], ...]
) -> None:
    before, after = made(GEMM, *steps[:-1]), made(GEMM, *steps)
    named = _compare(before, after)
    renamed = compare(nameless(before), nameless(after))
    assert (len(renamed.removed), len(renamed.added)) == (len(named.removed), len(named.added))
    assert _kinds(renamed) == _kinds(named)


def test_counts_agree_with_the_effect_that_the_pass_reports(made: Make) -> None:
    from llama_bench.passes import effect

    before, after = made(GEMM, BIAS, DEADEND), made(GEMM, BIAS, DEADEND, TRANSPOSE)
    difference, told = _compare(before, after), effect(before, after, 0.0)
    assert len(difference.removed) + len(difference.added) == told.nodes_changed
    counts = {op: new - old for op, (old, new) in difference.histogram().items() if new != old}
    assert counts == told.histogram_difference
