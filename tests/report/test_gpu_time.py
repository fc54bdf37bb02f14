"""The page's section on where the time goes on the GPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from llama_bench.report import compose
from llama_bench.report.document import Block, Figure, Folded, Section
from llama_bench.report.gpu_time import LONGEST, longest
from llama_bench.report.table import Table
from llama_bench.stats import views

PRODUCT, NORM = ("gemm", "matmul", 9, 6e-4), ("cuApplyLayerNorm", "norm", 5, 1e-4)
COPY = ("Memcpy DtoH (Device -> Pinned)", "copy", 0.5, 2e-5)


def section(world: Any) -> Section:
    found = compose(views.make(world.run, world.datasets()))
    return next(one for one in found.sections if one.id == "gpu")


def inside(blocks: Any, kind: type[Block]) -> list[Any]:
    return [block for block in blocks if isinstance(block, kind)]


@pytest.fixture
def world(synthetic: ModuleType) -> Any:
    Truth = synthetic.Truth
    recipes = {
        "fused": Truth(0.6, executed="aa"),
        "graph": Truth(0.5, executed="bb"),
        "int4": Truth(0.4, executed="cc", kind="approximate", within_bound=False),
        "torch": Truth(0.7, engine="torch-sdpa"),
    }
    return synthetic.world(recipes, targets={"A": "CUDAExecutionProvider"}, spread=1e-6)


def test_a_run_without_profiles_has_no_such_section(world: Any) -> None:
    assert section(world).blocks == []


def test_the_baseline_and_the_fastest_right_arm_are_shown_and_others_folded(world: Any) -> None:
    world.profile({name: [PRODUCT, NORM, COPY] for name in ("original", "fused", "graph", "int4")})
    found = section(world)
    _, summary, figure, classes, kernels, others = found.blocks
    assert isinstance(summary, Table)
    assert [row[2] for row in summary.rows] == ["original", "fused", "graph", "int4"]
    assert isinstance(figure, Figure)
    assert isinstance(classes, Table)
    # int4 is faster, and wrong
    assert list(dict.fromkeys(row[0] for row in classes.rows)) == ["original", "graph"]
    assert isinstance(kernels, Folded)
    assert [table.title for table in inside(kernels.blocks, Table)] == [
        "Longest kernels of original",
        "Longest kernels of graph",
    ]
    assert isinstance(others, Folded)
    assert others.summary == "2 other arms: target A · h512-a4-l2 · prefill"
    assert len(inside(others.blocks, Figure)) == 1
    assert len(found.figures) == 2  # folded ones are written as files too
    assert [table.title for table in found.tables] == [summary.title, classes.title]


def test_the_numbers_of_an_arm_are_those_of_its_kernels(world: Any) -> None:
    world.profile({"graph": [PRODUCT, NORM, COPY]})
    _, summary, _, classes, *_ = section(world).blocks
    assert isinstance(summary, Table)
    assert isinstance(classes, Table)
    [[*_, time_ms, floor_ms, idle, launches, on_cpu, copies]] = summary.rows
    assert float(time_ms) == pytest.approx(1.0, rel=0.1)
    assert float(floor_ms) > 0
    assert idle == f"{1 - 0.72 / float(time_ms):.0%}"
    assert (launches, on_cpu, copies) == ("14", "2", "1")
    rows = {row[1]: row[2:] for row in classes.rows}
    assert list(rows) == ["matrix products", "norms and reductions", "copies", "no kernel ran"]
    assert rows["matrix products"][:2] == ("9", "0.6000")
    assert rows["copies"][0] == "0.5"
    assert rows["norms and reductions"][2] == "0"


def test_the_bar_says_each_class_and_has_a_mark_at_the_floor(world: Any) -> None:
    world.profile({"graph": [PRODUCT, NORM]})
    [figure] = section(world).figures
    svg = figure.first.svg()
    assert "graph: matrix products 0.6000 ms" in svg
    assert "graph: no kernel ran" in svg
    assert "graph: floor 0." in svg
    world.rows["ceilings"] = []
    [figure] = section(world).figures
    assert "floor" not in figure.first.svg()
    assert "mark across" not in figure.first.caption


def test_of_many_kernels_the_longest_are_shown_and_the_others_summed() -> None:
    rows = [{"kernel": f"k{n}", "class": "other", "count": 2.0, "seconds": n * 1e-5} for n in range(1, LONGEST + 4)]
    found = longest(rows, "graph", 0.01)
    assert [row[0] for row in found.rows] == [f"k{n}" for n in range(LONGEST + 3, 3, -1)]
    assert found.rows[0][2:] == ("2", "0.09000", "0.1800", "1.8%")
    assert found.notes == ("3 more kernels took 0.06000 ms together.",)
