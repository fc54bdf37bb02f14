"""The two passes that make Gemm, on the models of sweeps/gemm.yaml: when each finds something, what is executed then.

The sweep's own file is read and only its sizes are made small, so that it cannot lose what it was written for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import NodeProto
from safetensors.numpy import load_file
from torch import Tensor, nn

from llama_bench import graph, passes, plan
from llama_bench.engines import Task, open_session, settings
from llama_bench.engines.executed import Executed, examine
from llama_bench.engines.onnxruntime import CPU
from llama_bench.model import export as exporting
from llama_bench.model import reference
from llama_bench.model.inputs import make_inputs
from llama_bench.passes import Effect
from llama_bench.sweep import Model, Pass, Recipe, Session, Sweep, Target, Workload
from llama_bench.sweep_file import Catalogue, load

FILE = Path(__file__).parents[2] / "sweeps" / "gemm.yaml"
FUSE, DROP, TURN = "fuse_matmul_add_bias_into_gemm", "eliminate_deadend", "fuse_transpose_into_gemm"
LINEAR = 2 * 7  # linear layers of two decoder layers: q, k, v, o, gate, up, down
PRODUCTS = 2 * 2 + 1  # products that are none: scores and mixture of two decoder layers, and RoPE's angles
SPEC = ((Model, "model"), (Workload, "workload"))
SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}


@dataclass(frozen=True)
class Built:
    """One model of the sweep at small size: the folder of each recipe's variant, and what each pass of it did."""

    model: Model
    workload: Workload
    recipes: Mapping[str, Recipe]
    folders: Mapping[str, Path]
    effects: Mapping[str, list[Effect]]
    reference: Path
    scratch: Path

    def changed(self, recipe: str) -> list[int]:
        return [effect.nodes_changed for effect in self.effects[recipe]]

    def operators(self, recipe: str) -> dict[str, int]:
        return graph.histogram(graph.load(self.folders[recipe] / graph.MODEL))

    def executed(self, recipe: str) -> Executed:
        return examine(self.folders[recipe], chosen(self.recipes[recipe].session), self.task(), self.scratch)

    def task(self) -> Task:
        return Task(self.model.model_dump(), self.workload.model_dump(), make_inputs(self.model, self.workload))


def chosen(session: Session) -> dict[str, object]:
    return settings("onnxruntime", session, Target(tag="bench_cpu", threads=1), 1)


def small() -> Sweep:
    """Return the sweep of the file with small sizes; models that differ in nothing else are one."""
    catalogue = Catalogue(
        {"onnxoptimizer": {name: info.refused for name, info in passes.PASSES["onnxoptimizer"].items()}},
        (CPU,),
        ("onnxruntime",),
    )
    sweep = load(FILE, catalogue)
    models = {model.model_copy(update={**SMALL, "name": None}): model.label for model in sweep.models}
    return Sweep.model_validate(
        {
            **sweep.model_dump(),
            "models": [{**model.model_dump(), "name": label} for model, label in models.items()],
            "workloads": {name: {**w.model_dump(), "sequence": 8} for name, w in sweep.workloads.items()},
        }
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Built]:
    """Every cell of the small sweep, by whether its exporter folded constants; built as a run builds them."""
    root = tmp_path_factory.mktemp("gemm")
    planned = plan.make(small(), {})
    effects: dict[str, list[Effect]] = {}
    for artifact in planned.artifacts.values():
        if artifact.kind == "reference":
            (root / artifact.id).mkdir()
            reference.make(*(kind.model_validate(artifact.spec[key]) for kind, key in SPEC), None, root / artifact.id)
        elif artifact.parent is None:
            model, workload = (kind.model_validate(artifact.spec[key]) for kind, key in SPEC)
            exporting.export(model, workload, root / artifact.id)
            effects[artifact.id] = []
        else:
            step = Pass.model_validate(artifact.spec)
            effect = passes.apply(step, root / artifact.parent, root / artifact.id, model, workload, root)
            effects[artifact.id] = [*effects[artifact.parent], effect]
    found = {}
    for cell in planned.cells:
        arms = [arm for arm in cell.arms if not arm.control]
        found[cell.model.constant_folding] = Built(
            cell.model,
            cell.workload,
            {arm.name: arm.recipe for arm in arms},
            {arm.name: root / arm.variant for arm in arms},
            {arm.name: effects[arm.variant] for arm in arms},
            root / cell.reference,
            root,
        )
    assert set(found) == {False, True}
    return found


def test_the_sweep_tries_each_pass_alone_and_both_in_the_order_in_which_both_find_something() -> None:
    steps = {name: [step.name for step in recipe.passes] for name, recipe in small().recipes.items()}
    both = {"gemm": [FUSE, DROP], "gemm_transposed": [FUSE, DROP, TURN]}
    level0 = {f"{name}_level0": found for name, found in both.items()} | {"original_level0": []}
    assert steps == {"original": [], FUSE: [FUSE], TURN: [TURN], "onnxoptimizer_default": ["default"], **both, **level0}
    levels = {name: recipe.session.optimization_level for name, recipe in small().recipes.items()}
    assert levels == {name: "disable" if name in level0 else "all" for name in steps}


def test_both_passes_change_every_linear_layer_of_the_sweeps_model(built: dict[bool, Built]) -> None:
    cell = built[False]
    assert cell.operators("original").get("Gemm", 0) == 0
    # nodes removed and nodes added: Add → Gemm; MatMul goes; Transpose goes and Gemm → Gemm(transB=1)
    assert cell.changed("gemm_transposed") == [2 * LINEAR, LINEAR, 3 * LINEAR]
    before, after = cell.operators("original"), cell.operators("gemm_transposed")
    difference = {name: after.get(name, 0) - before.get(name, 0) for name in {*before, *after}}
    assert {name: n for name, n in difference.items() if n} == {
        "Gemm": LINEAR, "MatMul": -LINEAR, "Add": -LINEAR, "Transpose": -LINEAR,
    }  # fmt: skip
    assert after["MatMul"] == PRODUCTS


def test_the_transpose_pass_needs_the_gemm_of_the_other_one(built: dict[bool, Built]) -> None:
    assert built[False].changed(TURN) == [0]
    assert built[False].changed("gemm_transposed")[-1] == 3 * LINEAR


def test_an_exporter_that_folds_constants_leaves_the_transpose_pass_nothing(built: dict[bool, Built]) -> None:
    assert built[True].changed(TURN) == [0]
    assert built[True].changed("gemm_transposed") == [2 * LINEAR, LINEAR, 0]


@pytest.mark.parametrize("folding", [False, True])
def test_every_variant_keeps_the_outputs_at_its_level(built: dict[bool, Built], folding: bool) -> None:
    cell = built[folding]
    expected = load_file(cell.reference / "reference.safetensors")
    for name, recipe in cell.recipes.items():
        session = open_session(cell.folders[name], chosen(recipe.session), cell.task())
        session.run()
        found = session.outputs()
        assert set(found) == set(expected)
        for output, wanted in expected.items():
            np.testing.assert_allclose(found[output], wanted, rtol=0, atol=1e-4, err_msg=f"{name}: {output}")


@pytest.mark.parametrize("folding", [False, True])
def test_the_fusing_pass_alone_leaves_products_that_nobody_reads_and_that_are_executed(
    built: dict[bool, Built], folding: bool
) -> None:
    cell = built[folding]
    original, alone, clean = (cell.executed(name).placement[CPU] for name in ("original", FUSE, "gemm"))
    assert original["Gemm"] == alone["Gemm"] == clean["Gemm"] == LINEAR  # ONNX Runtime makes them of the original too
    assert alone["MatMul"] - original["MatMul"] == LINEAR
    assert clean == original


def test_of_a_folded_export_onnx_runtime_makes_the_same_graph_without_the_passes(built: dict[bool, Built]) -> None:
    cell = built[True]
    original = cell.executed("original")
    for recipe in ("gemm", "gemm_transposed", TURN):
        assert cell.executed(recipe) == original, recipe
    assert cell.executed("gemm_level0").sha256 != cell.executed("original_level0").sha256


def test_of_an_unfolded_export_onnx_runtime_executes_the_same_nodes_on_weights_stored_the_other_way(
    built: dict[bool, Built],
) -> None:
    cell = built[False]
    original, fused = cell.executed("original"), cell.executed("gemm_transposed")
    assert fused.histogram == original.histogram
    assert fused.placement_sha256 == original.placement_sha256
    assert fused.sha256 != original.sha256  # Gemm(transB=1) and W, not Gemm and Wᵀ


def test_without_onnx_runtimes_own_optimisation_the_passes_save_a_node_of_each_kind_a_layer(
    built: dict[bool, Built],
) -> None:
    cell = built[False]
    levels = [cell.executed(f"{name}_level0") for name in ("original", "gemm", "gemm_transposed")]
    assert [found.nodes - levels[0].nodes for found in levels] == [0, -LINEAR, -2 * LINEAR]
    assert [found.histogram.get("Gemm", 0) for found in levels] == [0, LINEAR, LINEAR]
    turned = [found.histogram["Transpose"] for found in levels]
    assert turned[0] == turned[1] == turned[2] + LINEAR


class Written(nn.Module):
    """One linear layer on flattened tokens, in one of the ways in which torch code writes it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(16, 24)

    def forward(self, x: Tensor) -> Tensor:
        flat, weight, bias = x.flatten(0, 1), self.layer.weight, self.layer.bias
        if self.way == "nn.Linear":
            return self.layer(flat)
        if self.way == "addmm":
            return torch.addmm(bias, flat, weight.t())
        return torch.matmul(flat, weight.t()) + bias


# way, exporter, folding → what is exported (T: Transpose, B: transB), nodes that each pass changes, alone and in turn
FORMS = [
    ("nn.Linear", "torchscript", True, "Gemm B", 0, 0, 0),
    ("nn.Linear", "dynamo", False, "Gemm B", 0, 0, 0),
    ("addmm", "torchscript", False, "Gemm B", 0, 0, 0),
    ("addmm", "dynamo", True, "Gemm", 0, 0, 0),
    ("addmm", "dynamo", False, "Transpose Gemm", 0, 3, 3),
    ("product and sum", "torchscript", False, "Transpose MatMul Add", 0, 0, 0),  # no shapes are written down
    ("product and sum", "dynamo", True, "MatMul Add", 2, 0, 0),
    ("product and sum", "dynamo", False, "Transpose MatMul Add", 2, 0, 2),  # Transpose stays: the dead MatMul reads it
]


@pytest.mark.parametrize(("way", "exporter", "folding", "form", "fused", "turned", "turned_after"), FORMS)
def test_what_the_passes_find_depends_on_how_the_layer_is_written_and_exported(
    way: str, exporter: str, folding: bool, form: str, fused: int, turned: int, turned_after: int, tmp_path: Path
) -> None:
    source, network, x = tmp_path / "source", Written(way).eval(), torch.ones(2, 4, 16)
    source.mkdir()
    with exporting.quiet():
        if exporter == "dynamo":
            program = torch.onnx.export(network, (x,), dynamo=True, optimize=folding, opset_version=18, verbose=False)
            assert program is not None
            program.save(source / graph.MODEL)
        else:
            options = {"do_constant_folding": folding, "opset_version": 17}
            torch.onnx.export(network, (x,), str(source / graph.MODEL), dynamo=False, **options)

    def name(node: NodeProto) -> str:
        return node.op_type + " B" * any(attribute.name == "transB" and attribute.i for attribute in node.attribute)

    nodes = graph.load(source / graph.MODEL).graph.node
    assert " ".join(name(node) for node in nodes if node.op_type in ("Transpose", "MatMul", "Add", "Gemm")) == form

    def apply(pass_name: str, start: Path, made: str) -> int:
        step, any_model = Pass(family="onnxoptimizer", name=pass_name), Model(**SMALL)
        return passes.apply(
            step, start, tmp_path / made, any_model, Workload(sequence=8), tmp_path / "state"
        ).nodes_changed

    assert apply(FUSE, source, "fused") == fused
    assert apply(TURN, source, "turned") == turned
    assert apply(TURN, tmp_path / "fused", "both") == turned_after
