"""The section of a page: the baseline's layer, each pass once, and what has no picture in a sentence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from llama_bench.errors import InputError
from llama_bench.report.graphs.read import read
from llama_bench.report.graphs.sections import MOST_STEPS, of_run, of_variants
from llama_bench.report.graphs.variants import Step, Variant, variant
from llama_bench.store import Store

from .conftest import GEMM, Make

BIAS, DEADEND = {"onnxoptimizer": "fuse_matmul_add_bias_into_gemm"}, {"onnxoptimizer": "eliminate_deadend"}


@pytest.fixture
def three(made: Make) -> list[Variant]:
    plain, bias, dead = made(GEMM), made(GEMM, BIAS), made(GEMM, BIAS, DEADEND)
    first, second = Step("bias", plain, bias), Step("dead", bias, dead)
    idle = Step("idle", plain, plain)
    return [
        Variant("original", plain),
        Variant("one", bias, (first,)),
        Variant("two", dead, (first, second)),
        Variant("nothing", plain, (idle,)),
    ]


def test_passes_that_recipes_share_are_drawn_once(three: list[Variant]) -> None:
    section = of_variants(three, "original", "a tiny model")
    names = [picture.name for picture in section.pictures]
    assert names == [
        "layer", "bias", "bias-rewrite-1", "bias-operators", "dead", "dead-rewrite-1", "dead-operators",
    ]  # fmt: skip
    assert "original, a tiny model" in section.pictures[0].caption
    assert section.notes == ("Changed no node: idle.",)


def test_what_does_not_fit_on_a_page_is_named(three: list[Variant], made: Make, tmp_path: Path) -> None:
    plain, bias = made(GEMM), made(GEMM, BIAS)
    many = []
    for i in range(MOST_STEPS + 2):
        copy = tmp_path / f"{i}.onnx"
        copy.write_bytes((bias / "model.onnx").read_bytes())
        many.append(Variant(f"v{i}", copy, (Step(f"pass {i}", plain, copy),)))
    section = of_variants([three[0], *many], "original")
    assert len([picture for picture in section.pictures if picture.name.endswith("-operators")]) == MOST_STEPS
    assert f"pass {MOST_STEPS}, pass {MOST_STEPS + 1}" in section.notes[-1]


def test_a_baseline_that_is_not_there_is_wrong_input(three: list[Variant]) -> None:
    with pytest.raises(InputError, match="did you mean 'original'"):
        of_variants(three, "orginal")


def _saved(store: Store, made: Make) -> Store:
    """Keep an export and what a pass made of it, as the build does, under the names that synthetic runs give them."""
    label = "onnxoptimizer: fuse_matmul_add_bias_into_gemm on h/prefill"
    store.save("variant-original", made(GEMM), {"label": "export h", "kind": "export", "parent": None, "spec": {}})
    pass_ = {"label": label, "kind": "pass", "parent": "variant-original", "spec": BIAS}
    store.save("variant-bias", made(GEMM, BIAS), pass_)
    return store


def test_a_run_finds_its_graphs_in_the_store_beside_it(synthetic: ModuleType, made: Make, tmp_path: Path) -> None:
    run = synthetic.world({"bias": synthetic.Truth(executed="other", changed=28)}).write(tmp_path)
    _saved(Store(tmp_path), made)
    section = of_run(str(run))
    assert [picture.name for picture in section.pictures] == [
        "layer",
        "onnxoptimizer-fuse_matmul_add_bias_into_gemm",
        "onnxoptimizer-fuse_matmul_add_bias_into_gemm-rewrite-1",
        "onnxoptimizer-fuse_matmul_add_bias_into_gemm-operators",
    ]
    assert "original, h" in section.pictures[0].caption


def test_graphs_of_an_object_store_are_copied_without_their_weights(made: Make, tmp_path: Path) -> None:
    store = _saved(Store("memory://x"), made)
    found = variant(store, "bias", "variant-bias", tmp_path)
    assert [step.label for step in found.steps] == ["onnxoptimizer: fuse_matmul_add_bias_into_gemm"]
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"model.onnx"}
    assert len(read(found.path).nodes) == len(read(made(GEMM, BIAS)).nodes)
