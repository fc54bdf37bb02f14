from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_bench import plan
from llama_bench.ids import digest
from llama_bench.sweep import Measure, Model, Pass, Recipe, Session, Sweep, Target, Text, Workload

from .effort import calls

ROOT = Path(__file__).parent.parent
VERSIONS = {"export": "torch 1", "onnxoptimizer": "0.4"}


def recipe(*names: str, **session: Any) -> Recipe:
    passes = tuple(Pass(family="onnxoptimizer", name=name) for name in names)
    return Recipe(passes=passes, session=Session(**session))


RECIPES = {
    "original": recipe(),
    "a": recipe("a"),
    "ab": recipe("a", "b"),
    "abc": recipe("a", "b", "c"),
    "ba": recipe("b", "a"),
    "level0": recipe(optimization_level="disable"),
}


def model(**changes: Any) -> Model:
    return Model(**{"hidden_size": 16, "num_attention_heads": 2, **changes})


def sweep(**changes: Any) -> Sweep:
    parts: dict[str, Any] = {
        "name": "tiny",
        "models": (model(),),
        "recipes": RECIPES,
        "workloads": {"prefill": Workload(sequence=8)},
        "targets": {"cpu": Target(tag="bench_cpu")},
    }
    return Sweep(**{**parts, **changes})


def make(**changes: Any) -> plan.Plan:
    return plan.make(sweep(**changes), VERSIONS)


def ids(made: plan.Plan) -> set[str]:
    return {*made.artifacts, *(cell.id for cell in made.cells)}


def test_equal_prefixes_are_built_once() -> None:
    made = make()
    steps = [artifact.spec["name"] for artifact in made.artifacts.values() if artifact.kind == "pass"]
    assert sorted(steps) == ["a", "a", "b", "b", "c"]  # a, a→b, a→b→c, b, b→a
    [cell] = made.cells
    variants = {arm.name: arm.variant for arm in cell.arms}
    assert made.artifacts[variants["abc"]].parent == variants["ab"]
    assert made.artifacts[variants["ab"]].parent == variants["a"]
    assert made.artifacts[variants["a"]].parent == variants["original"]
    assert variants["ab"] != variants["ba"]


def test_a_recipe_without_passes_is_the_export_itself() -> None:
    [cell] = make().cells
    variants = {arm.name: arm.variant for arm in cell.arms}
    made = make()
    assert variants["original"] == variants["level0"] == variants["control"]
    assert made.artifacts[variants["original"]].kind == "export"


def test_a_reference_is_an_artifact_of_its_own_that_no_pass_stands_on() -> None:
    made = make()
    assert made.artifacts[made.cells[0].reference].kind == "reference"
    assert all(made.artifacts[a.parent].kind != "reference" for a in made.artifacts.values() if a.parent is not None)


def test_another_text_changes_the_reference_and_no_graph() -> None:
    before, after = make(), make(measure=Measure(text=Text(tokens=9)))
    assert {before.artifacts[name].kind for name in set(before.artifacts) - set(after.artifacts)} == {"reference"}


def test_a_model_with_a_cache_has_one_graph_for_all_workloads_with_the_same_outputs() -> None:
    workloads = {
        "decode": Workload(kind="decode", context=8),
        "generate": Workload(kind="generate", prompt=4, new_tokens=3, batch=2),
        "last": Workload(sequence=8, outputs="last_logits"),
        "all": Workload(sequence=8),
    }
    made = make(models=(model(cache=True),), workloads=workloads, recipes={"original": recipe()})
    kinds = [artifact.kind for artifact in made.artifacts.values()]
    assert (kinds.count("export"), kinds.count("reference")) == (2, 4)


def test_where_a_checkpoint_or_a_text_lies_is_no_part_of_any_id() -> None:
    def placed(folder: str) -> plan.Plan:
        text = Text(file=f"{folder}/a.txt", file_sha256="cd")
        return make(models=(model(source=f"{folder}/m.gguf", source_sha256="ab"),), measure=Measure(text=text))

    assert [artifact.id for artifact in placed("x").artifacts.values()] == list(placed("y").artifacts)
    other = make(models=(model(source="x/m.gguf", source_sha256="ac"),))
    assert set(other.artifacts).isdisjoint(placed("x").artifacts)


def test_parents_come_before_their_children() -> None:
    seen: set[str] = set()
    for name, artifact in make(models=(model(), model(num_hidden_layers=1))).artifacts.items():
        assert name == artifact.id
        assert artifact.parent is None or artifact.parent in seen
        seen.add(name)


def test_targets_share_artifacts_and_workloads_do_not() -> None:
    alone = make()
    targets = {"A": Target(tag="bench_gpu", provider="CUDAExecutionProvider"), "B": Target(tag="bench_cpu")}
    assert set(make(targets=targets).artifacts) == set(alone.artifacts)
    longer = {"prefill": Workload(sequence=8), "longer": Workload(sequence=16)}
    assert len(make(workloads=longer).artifacts) == 2 * len(alone.artifacts)


def test_every_cell_holds_all_recipes_and_a_control_of_the_baseline() -> None:
    made = make(measure=Measure(baseline="a"), models=(model(), model(num_hidden_layers=1)))
    assert [cell.label for cell in made.cells] == ["h16-a2-l2/prefill/cpu", "h16-a2-l1/prefill/cpu"]
    for cell in made.cells:
        assert [arm.name for arm in cell.arms] == [*RECIPES, plan.CONTROL]
        assert cell.baseline == "a"
        control = cell.arms[-1]
        assert control.control and not any(arm.control for arm in cell.arms[:-1])
        assert (control.recipe, control.variant) == (cell.arms[1].recipe, cell.arms[1].variant)


def test_a_models_name_is_no_part_of_any_id() -> None:
    assert ids(make(models=(model(name="mine"),))) == ids(make())


@given(st.permutations(list(RECIPES)))
def test_the_order_of_keys_is_no_part_of_any_id(order: list[str]) -> None:
    assert ids(make(recipes={name: RECIPES[name] for name in order})) == ids(make())


@pytest.mark.parametrize(
    "changes",
    [
        {"models": (model(rope_theta=10001.0),)},
        {"models": (model(seed=1),)},
        {"workloads": {"prefill": Workload(sequence=9)}},
        {"workloads": {"prefill": Workload(sequence=8, kv_out=False)}},
    ],
)
def test_what_shapes_the_export_shapes_every_id(changes: dict[str, Any]) -> None:
    assert ids(make(**changes)).isdisjoint(ids(make()))


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": {"cpu": Target(tag="bench_cpu", threads=1)}},
        {"targets": {"other": Target(tag="bench_cpu")}},
        {"measure": Measure(seed=1)},
        {"measure": Measure(baseline="a")},
        {"recipes": {**RECIPES, "level0": recipe(optimization_level="basic")}},
        {"recipes": {**RECIPES, "host": recipe(io="host")}},
        {"recipes": {name: RECIPES[name] for name in ("original", "a", "ab", "abc", "ba")}},
    ],
)
def test_what_shapes_only_the_timing_shapes_only_cells(changes: dict[str, Any]) -> None:
    changed, before = make(**changes), make()
    assert set(changed.artifacts) == set(before.artifacts)
    assert {cell.id for cell in changed.cells}.isdisjoint(cell.id for cell in before.cells)


def test_other_versions_of_a_pass_family_keep_the_exports() -> None:
    before, after = make(), plan.make(sweep(), {**VERSIONS, "onnxoptimizer": "0.5"})
    kept = {after.artifacts[name].kind for name in set(after.artifacts) & set(before.artifacts)}
    assert kept == {"export", "reference"}
    newer = plan.make(sweep(), {**VERSIONS, "export": "torch 2", "reference": "torch 2"})
    assert ids(newer).isdisjoint(ids(before))


def test_ids_are_the_same_in_every_process() -> None:
    program = (
        "import json, sys; from llama_bench import plan; from llama_bench.sweep import Sweep;"
        "made = plan.make(Sweep.model_validate_json(sys.argv[1]), json.loads(sys.argv[2]));"
        "print(*sorted({*made.artifacts, *(cell.id for cell in made.cells)}))"
    )
    arguments = [sys.executable, "-c", program, sweep().model_dump_json(), json.dumps(VERSIONS)]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}
    out = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True).stdout
    assert out.split() == sorted(ids(make()))


def test_two_equal_recipes_share_their_variant() -> None:
    [cell] = make(recipes={"original": recipe(), "x": recipe("a"), "y": recipe("a")}).cells
    variants = {arm.name: arm.variant for arm in cell.arms}
    assert variants["x"] == variants["y"]


def test_a_digest_does_not_depend_on_the_order_of_keys_and_refuses_what_is_not_json() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": 2})
    assert len(digest("x")) == 16
    with pytest.raises(TypeError):
        digest({1, 2})


def test_an_id_is_the_digest_of_what_shapes_it() -> None:
    recipes = {"original": recipe(), "ab": recipe("a", "b")}
    text = Text(file="there/é.txt", file_sha256="cd")
    made = make(recipes=recipes, measure=Measure(text=text))
    [cell] = made.cells
    spec, workload = cell.model.model_dump(exclude={"name"}), cell.workload.model_dump()
    read = {key: value for key, value in text.model_dump().items() if key != "file"}
    export = digest("export", {"model": without_source(spec), "workload": workload}, VERSIONS["export"])
    a = digest(export, Pass(family="onnxoptimizer", name="a").model_dump(), VERSIONS["onnxoptimizer"])
    ab = digest(a, Pass(family="onnxoptimizer", name="b").model_dump(), VERSIONS["onnxoptimizer"])
    reference = digest("reference", {"model": without_source(spec), "workload": workload, "text": read}, "")
    assert set(made.artifacts) == {export, reference, a, ab}
    identity = {
        "model": without_source(spec),
        "workload": {"prefill": workload},
        "export": export,
        "reference": reference,
        "arms": {
            name: [variant, digest(recipes[name].model_dump())] for name, variant in (("original", export), ("ab", ab))
        },
    }
    target = digest({"cpu": cell.target.model_dump()})
    measured = digest(made.sweep.measure.model_dump())
    assert cell.id == digest("cell", digest(identity), target, measured)


def without_source(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "source"}


def wide(side: int) -> Sweep:
    """Return a sweep of `side` models × `side` recipes that share no prefix."""
    recipes = {"original": recipe()} | {f"r{i}": recipe(f"x{i}", f"y{i}", f"z{i}") for i in range(1, side)}
    return sweep(models=tuple(model(hidden_size=16 * (i + 1)) for i in range(side)), recipes=recipes)


def test_ten_thousand_variants_are_planned_each_once() -> None:
    made = plan.make(wide(100), VERSIONS)
    assert len(made.artifacts) == 100 * (2 + 99 * 3)
    assert sum(len(cell.arms) - 1 for cell in made.cells) == 10_000


def test_planning_grows_with_the_variants_and_no_faster() -> None:
    """How many seconds a plan takes is what benchmarks/scale.py measures."""

    def effort(side: int) -> int:
        asked = wide(side)
        return calls(lambda: plan.make(asked, VERSIONS))

    assert effort(60) < 1.1 * 9 * effort(20)


CELLS: dict[str, Any] = {
    "models": (model(), model(hidden_size=32, name="wide", cache=True)),
    "workloads": {"prefill": Workload(sequence=8), "decode": Workload(kind="decode", context=8)},
    "targets": {"gpu": Target(tag="bench_gpu", provider="CUDAExecutionProvider"), "cpu": Target(tag="bench_cpu")},
}
"""Two models, of which one has no cache, so that not every workload fits each."""


def test_a_sweep_may_say_which_cells_it_has_in_which_order_and_with_which_arms() -> None:
    made = make(
        **CELLS,
        cells=(
            {"model": "wide", "workload": "decode", "target": "cpu", "recipes": ["ab*"], "baseline": "level0"},
            {"workload": "prefill", "recipes": ["a"]},
        ),
    )
    assert [(cell.label, cell.baseline, [arm.name for arm in cell.arms]) for cell in made.cells] == [
        ("wide/decode/cpu", "level0", ["ab", "abc", "level0", "control"]),
        ("h16-a2-l2/prefill/gpu", "original", ["original", "a", "control"]),
        ("wide/prefill/gpu", "original", ["original", "a", "control"]),
        ("h16-a2-l2/prefill/cpu", "original", ["original", "a", "control"]),
        ("wide/prefill/cpu", "original", ["original", "a", "control"]),
    ]
    control = made.cells[0].arms[-1]
    assert (control.control, control.recipe) == (True, RECIPES["level0"])
    built = {artifact.label for artifact in made.artifacts.values()}
    assert "onnxoptimizer: b on wide/decode" in built
    assert not any("onnxoptimizer: b on wide/prefill" in label for label in built)  # what no cell needs is not built


def test_a_cell_belongs_to_the_first_entry_that_it_matches() -> None:
    made = make(cells=({"recipes": ["a"]}, {"recipes": ["ba"]}))
    assert [[arm.name for arm in cell.arms] for cell in made.cells] == [["original", "a", "control"]]


def test_a_cell_is_the_same_whether_it_was_chosen_or_is_there_anyway_but_for_another_baseline() -> None:
    [plain], [chosen] = make().cells, make(cells=({"recipes": ["*"]},)).cells
    [other] = make(cells=({"recipes": ["*"], "baseline": "a"},)).cells
    assert plain.id == chosen.id != other.id


def test_cells_may_have_blocks_and_runs_of_their_own_and_are_other_cells_then() -> None:
    def cells(*choices: dict[str, Any]) -> dict[str, plan.Cell]:
        made = make(**CELLS, cells=choices, measure=Measure(runs=7))
        return {cell.label: cell for cell in made.cells}

    prefill = {"workload": "prefill", "target": "cpu"}
    own = cells({**prefill, "model": "wide", "blocks": 9, "runs": 2}, prefill)
    plain = cells({**prefill, "model": "wide", "blocks": 4}, prefill)  # what `measure` says anyway
    wide, small = own["wide/prefill/cpu"], own["h16-a2-l2/prefill/cpu"]
    assert (wide.measure.blocks, wide.measure.runs, wide.measure.restarts) == (9, 2, 6)
    assert (wide.entry["blocks"], wide.entry["runs"]) == (9, 2)
    assert small.measure == Measure(runs=7)
    assert small.id == plain[small.label].id
    assert wide.id != plain[wide.label].id == cells(prefill)[wide.label].id
