"""Going through a graph part by part: the same numbers as in one go, and nothing kept that is not needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_bench.errors import WorkError
from llama_bench.passes import files
from llama_bench.passes.info import Work
from llama_bench.passes.quantize import calibration, linear
from llama_bench.passes.quantize.options import Calibrated

OPTIONS = Calibrated(calibration_tokens=96, window=32)


def forward(graph: Any, folder: Path, options: Calibrated = OPTIONS) -> tuple[Any, Any, list[dict[str, Any]]]:
    model = files.read(graph.folder)
    work = Work("weights", options, graph.folder, folder, graph.model, graph.workload, folder)
    feeds = calibration.feeds(work, options, model.graph)
    return model, calibration.Forward(model, feeds, folder), feeds


def test_part_by_part_gives_what_the_whole_graph_gives(fused: Any, tmp_path: Path) -> None:
    model, parts, feeds = forward(fused, tmp_path)
    for layer in linear.find(model.graph, (), "test"):
        parts.at(layer.x)
    [found] = parts.at(model.graph.outputs[0])
    assert len(found) == 3
    for array, feed in zip(found, feeds, strict=True):
        assert np.allclose(array, fused.run(feed["input_ids"])["logits"], atol=1e-5)
    assert list(tmp_path.glob(".part-*")) == []


def test_only_what_is_still_needed_is_kept(exported: Callable[..., Any], tmp_path: Path) -> None:
    deep = exported(cache=True, num_hidden_layers=6)
    model, parts, _ = forward(deep, tmp_path)
    kept = []
    for layer in linear.find(model.graph, (), "test"):
        parts.at(layer.x)
        kept.append(sum(array.nbytes for array in parts.live[0].values()))
    # positions, mask, angles, the residual stream and one layer's own values
    assert max(kept[20:]) < 1.2 * max(kept[:20])


def test_a_static_graph_is_fed_whole_batches_of_its_own_length(static: Any, tmp_path: Path) -> None:
    _, _, feeds = forward(static, tmp_path, Calibrated(calibration_tokens=90))
    assert {feed["input_ids"].shape for feed in feeds} == {(2, 16)}
    assert len(feeds) == 3  # 5 windows fit into 90 tokens; the first comes again to fill the last batch
    assert np.array_equal(feeds[2]["input_ids"][1], feeds[0]["input_ids"][0])


def test_a_part_that_does_not_run_is_named(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path / "made", {"precision": "bf16"})
    model, parts, _ = forward(after, tmp_path, Calibrated(calibration_tokens=90))
    layers = linear.find(model.graph, (), "test")
    with pytest.raises(WorkError, match=r"the part up to node \S+ \(\w+\) does not run on the CPU: .*"):
        for layer in layers:
            parts.at(layer.x)
