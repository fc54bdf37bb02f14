"""Repeated layers are found in the structure, with and without names, and only equal ones are folded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llama_bench.report.graphs.fold import fold
from llama_bench.report.graphs.pictures import layer
from llama_bench.report.graphs.read import Graph, read

from .conftest import STUDY, Make


def _shown(graph: Graph) -> list[int]:
    return [node.index for node in graph.nodes if not node.shape]


def test_two_and_eight_layers_give_one_picture_but_for_the_counts(made: Make) -> None:
    svgs = []
    for layers in (2, 8):
        svg = layer(read(made(STUDY, num_hidden_layers=layers)), "a model").svg
        assert f"one of {layers} equal layers" in svg
        assert f"× {layers - 1} more" in svg
        svgs.append(sorted(re.findall(r">([^<>]+)<", svg)))
    counts = re.compile(r"one of \d equal layers|× \d more|outputs: .*")
    texts = [[text for text in found if not counts.fullmatch(text)] for found in svgs]
    assert texts[0] == texts[1]


def test_layers_are_found_when_all_names_are_lost(made: Make, nameless: Callable[[Path], Graph]) -> None:
    graph = nameless(made(STUDY, num_hidden_layers=8))
    [stretch] = fold(graph, _shown(graph)).stretches
    assert stretch.times == 8


def test_layers_are_found_in_an_order_that_mixes_their_branches(made: Make, nameless: Callable[[Path], Graph]) -> None:
    graph = nameless(made(STUDY, num_hidden_layers=8))
    shown = _shown(graph)
    depth: dict[int, int] = {}
    for index in shown:  # breadth first: branches of a layer lie between each other, as some optimisers store them
        depth[index] = 1 + max((depth[source] for source in graph.before(index) if source in depth), default=0)
    mixed = sorted(shown, key=lambda index: (depth[index], -index))
    assert mixed != shown
    place = {index: i for i, index in enumerate(mixed)}
    assert all(place[source] < place[index] for index in mixed for source in graph.before(index) if source in place)
    folded = fold(graph, mixed)
    assert sum(stretch.period * stretch.times for stretch in folded.stretches) > 0.7 * len(shown)
    assert max(stretch.times for stretch in folded.stretches) >= 7


def test_a_layer_that_differs_is_not_folded(made: Make) -> None:
    graph = read(made(STUDY, num_hidden_layers=8))
    other = next(node for node in graph.nodes if node.layer == 3 and node.op == "Softmax")
    nodes = tuple(replace(node, identity="another") if node is other else node for node in graph.nodes)
    stretches = fold(replace(graph, nodes=nodes), _shown(graph)).stretches
    assert sorted(stretch.times for stretch in stretches) == [3, 4]
    period = fold(graph, _shown(graph)).stretches[0].period
    assert {stretch.period for stretch in stretches} == {period}


def test_a_mark_on_one_layer_keeps_it_apart_too(made: Make) -> None:
    graph = read(made(STUDY, num_hidden_layers=8))
    marked = next(node.index for node in graph.nodes if node.layer == 7 and node.op == "Softmax")
    assert [stretch.times for stretch in fold(graph, _shown(graph), {marked: "removed 1"}).stretches] == [7]


def test_one_layer_is_not_folded_though_queries_and_keys_are_turned_alike(made: Make) -> None:
    picture = layer(read(made(STUDY, num_hidden_layers=1)), "a model")
    assert "equal layers" not in picture.svg
    assert "No layers repeat." in picture.caption


def test_a_stretch_begins_where_the_names_say_a_layer_does(study: Graph) -> None:
    folded = fold(study, _shown(study))
    [stretch] = folded.stretches
    first = folded.order[stretch.start]
    assert study.nodes[first].layer == 0
    assert study.nodes[folded.order[stretch.start - 1]].layer is None
