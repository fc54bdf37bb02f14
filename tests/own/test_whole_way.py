"""An own model from its file to judged answers, by the plain functions; and once on Ray, as a user would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from llama_bench import counts, engines, estimate, graph, plan
from llama_bench.bench.accuracy import bounds, compare
from llama_bench.cli.common import catalogue
from llama_bench.cluster.build import build
from llama_bench.engines import Task, executed
from llama_bench.errors import InputError, WorkError
from llama_bench.model.export import export
from llama_bench.model.reference import INPUTS, OUTPUTS
from llama_bench.own import describe
from llama_bench.passes import find
from llama_bench.plan import Plan
from llama_bench.stats.bound import Rates, least_s
from llama_bench.store import Store
from llama_bench.sweep import Model, OwnModel, Workload
from llama_bench.sweep_file import load

from .graphs import CLASSES, INNER, WIDTH, tagger

SWEEP = """
name: own
models:
  sizes: [{{onnx: graphs/tagger.onnx}}]
recipes:
  original: {{}}
  tried: {{passes: [{}]}}
workloads:
  prefill: {{kind: prefill, batch: 2, sequence: 3}}
targets:
  B: {{tag: bench_cpu, threads: 1}}
measure: {{restarts: 2, blocks: 1, runs: 2, half_width: null, confirm: false}}
"""
TRANSPOSE = "{onnxoptimizer: fuse_transpose_into_gemm}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(tmp_path / "cache"))


def planned(folder: Path, step: str = TRANSPOSE, **options: Any) -> Plan:
    if not (folder / "graphs").exists():
        tagger(folder / "graphs" / "tagger.onnx", **options)
    path = folder / "own.yaml"
    path.write_text(SWEEP.format(step))
    return plan.make(load(path, catalogue()), {})


def built(made: Plan, folder: Path) -> Store:
    store = Store(folder / "store")
    for artifact in made.artifacts.values():
        build(artifact, store)
    return store


def answers(made: Plan, store: Store, recipe: str = "tried") -> list[dict[str, Any]]:
    """Run the recipe's session once and compare what comes out with the reference."""
    [cell] = made.cells
    arm = next(arm for arm in cell.arms if arm.name == recipe)
    reference = store.fetch(cell.reference)
    task = Task(cell.model.model_dump(), cell.workload.model_dump(), load_file(reference / INPUTS))
    settings = engines.settings("onnxruntime", arm.recipe.session, cell.target, 1)
    session = engines.open_session(store.fetch(arm.variant), settings, task)
    session.run()
    kinds = {find(step).kind for step in arm.recipe.passes}
    kind: Any = "approximate" if "approximate" in kinds else "exact"
    judged = bounds(kind, settings, made.sweep.measure.accuracy)
    return compare(session.outputs(), load_file(reference / OUTPUTS), judged, kind)


@pytest.mark.parametrize("external", [False, True])
def test_a_pass_changes_the_graph_and_its_answers_are_the_files_own(tmp_path: Path, external: bool) -> None:
    made = planned(tmp_path, external=external)
    store = built(made, tmp_path)
    [cell] = made.cells
    original, tried = cell.arms[0].variant, cell.arms[1].variant
    assert graph.histogram(graph.load(store.fetch(original) / "model.onnx"))["Transpose"] == 1
    effect = store.manifest(tried)["effect"]
    assert effect["changed"]
    assert effect["histogram_difference"] == {"Transpose": -1}
    rows = answers(made, store)
    assert [(row["output"], row["within_bound"]) for row in rows] == [("label", True), ("scores", True)]
    assert rows[0]["top1"] == 1.0
    # weights lie in the store by content, once for both variants
    shared = [{sha for sha, _ in store.manifest(one)["weights"]} for one in (original, tried)]
    assert shared[0] == shared[1] != set()
    facts = store.manifest(original)["export"]
    assert (facts["nodes"], facts["opset"], facts["exporter"]) == (10, 17, "ours")


def test_the_reference_is_the_file_itself_without_optimisation_and_says_so(tmp_path: Path) -> None:
    made = planned(tmp_path)
    store = built(made, tmp_path)
    [cell] = made.cells
    facts = store.manifest(cell.reference)["reference"]
    assert facts["how"].startswith("tagger.onnx itself in ONNX Runtime ")
    assert facts["how"].endswith("on the CPU, optimisation level disable")
    folder = store.fetch(cell.reference)
    given, found = load_file(folder / INPUTS), load_file(folder / OUTPUTS)
    file = onnx.load(str(tmp_path / "graphs" / "tagger.onnx"))
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in file.graph.initializer}
    rows = held["table"][given["input_ids"]].reshape(-1, WIDTH)
    scores = np.maximum(rows @ held["up"].T + held["up_bias"], 0) @ held["down"]
    np.testing.assert_allclose(found["scores"], scores, atol=1e-5)
    np.testing.assert_array_equal(found["label"], scores.argmax(-1))
    assert cell.entry["reference"] == "the file itself, not optimised"
    assert cell.entry["hidden_size"] is None


GENERAL = [
    "{onnxoptimizer: default}", "{onnxruntime: all}", "{onnxruntime: basic}", "{onnxscript: optimize_for_ort}",
    "{onnxscript: optimize}", "{transformers: bert}", "{fuse: norm}", "{fuse: qkv}", "{fuse: swiglu}",
    "{precision: fp16}", "{quantize: {name: dynamic, exclude: [down]}}", "{quantize: {bits: 8, block_size: 16}}",
]  # fmt: skip


@pytest.mark.parametrize("step", GENERAL)
def test_every_family_that_takes_any_graph_gives_one_that_answers_within_its_bounds(tmp_path: Path, step: str) -> None:
    made = planned(tmp_path, step)
    store = built(made, tmp_path)
    effect = store.manifest(made.cells[0].arms[1].variant)["effect"]
    # the graph has no norm, no SwiGLU, and no three products of one value
    assert effect["changed"] is not step.startswith("{fuse:")
    rows = answers(made, store)
    assert {row["output"] for row in rows} == {"label", "scores"}
    assert [row["violated"] for row in rows] == [None, None]


def test_fusions_find_their_patterns_in_somebody_elses_graph(tmp_path: Path) -> None:
    llama = Model(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=24, vocab_size=32,
        exporter="torchscript", opset=17, attention_mask=True,
    )  # fmt: skip
    export(llama, Workload(batch=2, sequence=3), tmp_path / "graphs")
    (tmp_path / "graphs" / "model.onnx").rename(tmp_path / "graphs" / "tagger.onnx")
    made = planned(tmp_path, "{fuse: skip_norm}, {fuse: qkv}, {fuse: swiglu}")
    store = built(made, tmp_path)
    own, workload = made.sweep.models[0], made.sweep.workloads["prefill"]
    counted, known = counts.flops(own, workload), counts.flops(llama, workload)
    assert known < counted < 1.01 * known  # positions times RoPE's frequencies is a product too
    variant = store.fetch(made.cells[0].arms[1].variant)
    assert graph.histogram(graph.load(variant / "model.onnx"))["SkipSimplifiedLayerNormalization"] == 2
    rows = answers(made, store)
    assert [row["violated"] for row in rows] == [None] * 3
    assert next(row["kl"] for row in rows if row["output"] == "logits") < 1e-6


def test_a_wrong_graph_is_outside_its_bounds_also_where_one_label_alone_differs(tmp_path: Path) -> None:
    made = planned(tmp_path)
    store = built(made, tmp_path)
    reference = load_file(store.fetch(made.cells[0].reference) / OUTPUTS)
    wrong = {name: array.copy() for name, array in reference.items()}
    wrong["label"][3] += 1
    exact = bounds("exact", {}, made.sweep.measure.accuracy)
    label, scores = compare(wrong, reference, exact, "exact")
    assert label["violated"] == "1 of 6 whole numbers are not the reference's, the first at [3]"
    assert scores["violated"] is None
    loose = bounds("approximate", {}, made.sweep.measure.accuracy)
    [judged] = compare({"label": wrong["label"]}, {"label": reference["label"]}, loose, "approximate")
    assert judged["violated"] == "top-1 agreement 0.833 is below 0.9"


def test_inputs_named_like_a_cache_are_inputs_like_any_other(tmp_path: Path) -> None:
    path = tagger(tmp_path / "graphs" / "tagger.onnx")
    model = onnx.load(str(path))
    for value in model.graph.input:
        if value.name == "attention_mask":
            value.name = "past.mask"
    model.graph.node[1].input[0] = "past.mask"
    onnx.save(model, str(path))
    made = planned(tmp_path, "{precision: fp16}")
    assert [row["violated"] for row in answers(made, built(made, tmp_path))] == [None, None]


def test_what_onnx_runtime_makes_of_it_is_examined_like_any_variant(tmp_path: Path) -> None:
    made = planned(tmp_path)
    store = built(made, tmp_path)
    [cell] = made.cells
    task = Task(cell.model.model_dump(), cell.workload.model_dump(), load_file(store.fetch(cell.reference) / INPUTS))
    found = []
    for arm in cell.arms[:2]:
        settings = engines.settings("onnxruntime", arm.recipe.session, cell.target, 1)
        found.append(executed.examine(store.fetch(arm.variant), settings, task, tmp_path))
    assert found[0].sha256 == found[1].sha256  # it takes the Transpose into the Gemm itself: a no-op


def test_a_plan_says_what_an_own_model_takes(tmp_path: Path) -> None:
    made = planned(tmp_path)
    model, workload = made.sweep.models[0], made.sweep.workloads["prefill"]
    assert isinstance(model, OwnModel)
    needs = estimate.estimates(made, 1e9)
    operations = 2 * 6 * (WIDTH * INNER + INNER * CLASSES)
    assert needs.weight_bytes == model.weight_bytes
    assert needs.cells[0].run_s == operations / 1e9
    assert needs.reference_bytes == 2 * 8 * 6 + 4 * 6 * CLASSES + 8 * 6
    assert needs.cells[0].arm_bytes > model.weight_bytes
    # where products cannot be counted, two operations a weight and token are a guess
    [cost] = model.costs
    unknown = model.model_copy(update={"costs": (cost.model_copy(update={"uncounted": "x", "operations": 0}),)})
    assert counts.flops(unknown, workload) == 2 * model.product_bytes / 4 * 6


def test_no_run_is_faster_than_its_products_and_an_unknown_count_bounds_nothing(tmp_path: Path) -> None:
    model = planned(tmp_path).sweep.models[0]
    assert isinstance(model, OwnModel)
    workload = planned(tmp_path).sweep.workloads["prefill"]
    rates = Rates({("matmul", "fp32"): 1e6, ("matmul", "int8"): 4e6, ("read", ""): 1e6}, cache_bytes=0)
    variant = {"settings": json.dumps({}), "class": "exact", "weight_bytes": model.weight_bytes}
    [cost] = model.costs
    found = least_s(model, workload, variant, rates)
    read = model.product_bytes + cost.input_bytes + cost.output_bytes  # the table is looked up, not read
    assert found == {"compute": cost.operations / 1e6, "memory": read / 1e6}
    quantised = least_s(model, workload, {**variant, "class": "approximate", "weight_bytes": 5000}, rates)
    assert quantised is not None
    assert quantised["compute"] == cost.operations / 4e6
    assert quantised["memory"] < found["memory"]
    for changed, why in (({"uncounted": "an Einsum"}, "an Einsum"), ({"least_operations": 0}, "fewer operations")):
        other = model.model_copy(update={"costs": (cost.model_copy(update=changed),)})
        assert least_s(other, workload, variant, rates) is None
        assert why in describe.summary(other)
    assert "limit" not in describe.summary(model)


def test_a_file_that_changed_or_went_since_the_sweep_was_read_is_not_taken(tmp_path: Path) -> None:
    made = planned(tmp_path)
    tagger(tmp_path / "graphs" / "tagger.onnx", seed=1)
    for artifact in made.artifacts.values():
        if artifact.kind != "pass":
            with pytest.raises(WorkError, match=r"tagger.onnx: changed since the sweep was read: hash \w{16}…, not"):
                build(artifact, Store(tmp_path / "store"))
    shutil.rmtree(tmp_path / "graphs")
    with pytest.raises(InputError, match="no such file"):
        build(next(iter(made.artifacts.values())), Store(tmp_path / "store"))


def test_export_writes_a_folder_with_graph_card_and_hashes_but_no_config(tmp_path: Path) -> None:
    from llama_bench.cli.main import make_app

    planned(tmp_path)
    out = tmp_path / "served"
    words = ["export", str(tmp_path / "own.yaml"), "--recipe", "tried", "--out", str(out)]
    result = CliRunner().invoke(make_app(), [*words, "--store", str(tmp_path / "store")])
    assert result.exit_code == 0, result.stderr
    names = ["README.md", "llama_bench.json", "model.onnx", "model.onnx.data"]
    assert sorted(path.name for path in out.iterdir()) == names
    card = (out / "README.md").read_text()
    assert "* Inputs: `input_ids` int64 [batch, sequence], `attention_mask` int64 [batch, sequence]" in card
    assert "those of tagger.onnx (opset 17" in card
    import onnxruntime

    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    ones = np.ones((1, 4), np.int64)
    assert session.run(None, {"input_ids": ones, "attention_mask": ones})[0].shape == (4, CLASSES)


@pytest.mark.slow
@pytest.mark.ray
def test_a_sweep_of_an_own_model_runs_from_its_file_to_tables_and_charts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    import llama_bench
    from llama_bench.cli.main import make_app

    planned(tmp_path)
    store = tmp_path / "store"
    monkeypatch.delenv("LLAMA_BENCH_CEILINGS")
    try:
        result = CliRunner().invoke(make_app(), ["run", str(tmp_path / "own.yaml"), "--store", str(store)])
    finally:
        ray.shutdown()
    assert result.exit_code == 0, result.output
    frames = llama_bench.load(str(store / "own"))
    rows = {row["recipe"]: row for row in frames.speedups.collect().to_dicts()}
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "original": "baseline", "tried": "no-op", "control": "control",
    }  # fmt: skip
    assert {row["hidden_size"] for row in rows.values()} == {None}
    assert rows["tried"]["nodes_changed"] == 3
    assert rows["original"]["of_bound"] is not None
    assert set(frames.accuracy.collect()["within_bound"]) == {True}
    [report] = store.glob("own/*/report/report.md")
    text = report.read_text()
    assert "Target B · tagger · prefill (2×3 tokens)" in text
    assert "answers are checked against that file itself in ONNX Runtime on the CPU, nothing optimised" in text
    assert "(label), against the file itself, not optimised." in text
    charts = {path.stem for path in report.parent.glob("charts/*.png")}
    assert {"speedups-B", "limit-B", "tokens-B", "graph-layer"} <= charts
    assert not any(name.startswith("time-") for name in charts)  # a model without a size has no line
    shown = CliRunner().invoke(make_app(), ["status", str(store / "own")])
    assert shown.exit_code == 0
    assert "3 of 3 artifacts" in shown.stdout
