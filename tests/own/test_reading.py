"""Sweeps with models that are ONNX files: what is inferred, what identifies them, and what is refused, where."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llama_bench import plan
from llama_bench.cli.common import catalogue
from llama_bench.errors import InputError
from llama_bench.own.inputs import make_inputs
from llama_bench.sweep import OwnModel, Sweep
from llama_bench.sweep_file import json_schema, load
from llama_bench.sweep_own import model_of

from .graphs import CLASSES, INNER, WIDTH, WORDS, pictures, tagger

SWEEP = """
name: own
models:
  sizes:
    - onnx: graphs/tagger.onnx
recipes:
  original: {}
workloads:
  prefill: {kind: prefill, batch: 2, sequence: 3}
targets:
  B: {tag: bench_cpu}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tagger(tmp_path / "graphs" / "tagger.onnx")
    pictures(tmp_path / "graphs" / "pictures.onnx")
    return tmp_path


def read(folder: Path, text: str = SWEEP) -> Sweep:
    path = folder / "own.yaml"
    path.write_text(text)
    return load(path, catalogue())


def own(folder: Path, text: str = SWEEP) -> OwnModel:
    model = read(folder, text).models[0]
    assert isinstance(model, OwnModel)
    return model


def graph(path: Path, *inputs: tuple[str, int, Any], nodes: list[Any] | None = None) -> Path:
    """Write a graph that gives back its first input, and takes others."""
    values = [helper.make_tensor_value_info(*one) for one in inputs]
    out = helper.make_tensor_value_info("out", inputs[0][1], inputs[0][2])
    nodes = nodes or [helper.make_node("Identity", [inputs[0][0]], ["out"])]
    made = helper.make_graph(nodes, "g", values, [out])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


# ── what is inferred ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_is_inferred_of_a_file_whose_inputs_have_telling_names(folder: Path) -> None:
    model = own(folder)
    assert model.label == "tagger"
    assert {name: one.model_dump() for name, one in model.inputs.items()} == {
        "input_ids": {"shape": ("batch", "sequence"), "value": None, "high": WORDS, "dtype": "int64"},
        "attention_mask": {"shape": ("batch", "sequence"), "value": 1, "high": None, "dtype": "int64"},
    }
    assert (model.opset, model.reduced) == (17, False)
    assert model.product_bytes == 4 * (INNER * WIDTH + INNER + INNER * CLASSES)


def test_numbers_are_drawn_from_the_seed_below_the_tables_rows_and_masks_are_ones(folder: Path) -> None:
    sweep = read(folder, SWEEP.replace("batch: 2, sequence: 3", "batch: 8, sequence: 100"))
    [model], [workload] = sweep.models, sweep.workloads.values()
    assert isinstance(model, OwnModel)
    given = make_inputs(model, workload)
    ids = given["input_ids"]
    assert (ids.shape, ids.dtype, ids.min(), ids.max()) == ((8, 100), np.int64, 0, WORDS - 1)
    assert (given["attention_mask"] == 1).all()
    np.testing.assert_array_equal(make_inputs(model, workload)["input_ids"], ids)
    other = make_inputs(model.model_copy(update={"seed": 1}), workload)
    assert (other["input_ids"] != ids).any()


def test_floats_are_normal_flags_true_positions_count_and_the_cache_is_empty(folder: Path) -> None:
    graph(
        folder / "graphs" / "tagger.onnx",
        ("x", TensorProto.FLOAT, ["N", "T", 500]),
        ("keep", TensorProto.BOOL, ["N"]),
        ("position_ids", TensorProto.INT32, ["T"]),
        ("kind", TensorProto.INT64, []),
        ("past_key", TensorProto.FLOAT16, ["N", 2, "past_sequence", 4]),
        ("total_mask", TensorProto.FLOAT, ["N", "past_sequence + T"]),
    )
    sweep = read(folder, SWEEP)
    [model], [workload] = sweep.models, sweep.workloads.values()
    assert isinstance(model, OwnModel)
    given = make_inputs(model, workload)
    shapes = {name: (array.shape, array.dtype.name) for name, array in given.items()}
    assert shapes == {
        "x": ((2, 3, 500), "float32"),
        "keep": ((2,), "bool"),
        "position_ids": ((3,), "int32"),
        "kind": ((), "int64"),
        "past_key": ((2, 2, 0, 4), "float16"),
        "total_mask": ((2, 3), "float32"),
    }
    assert abs(given["x"].mean()) < 0.1
    assert abs(given["x"].std() - 1) < 0.05
    assert given["keep"].all()
    assert given["position_ids"].tolist() == [0, 1, 2]
    assert given["kind"] in (0, 1)


def test_what_a_sweep_says_of_an_input_comes_before_what_is_inferred(folder: Path) -> None:
    inputs = "{input_ids: {shape: [batch, 7], high: 9}, attention_mask: {value: 0}}"
    text = SWEEP.replace("tagger.onnx", f"tagger.onnx\n      name: ours\n      inputs: {inputs}")
    model = own(folder, text.replace("sequence: 3", "sequence: 7"))
    assert model.label == "ours"
    assert model.inputs["input_ids"].numbers(2, 1) == (2, 7)
    # the same symbol is the same size in every input
    assert model.inputs["attention_mask"].numbers(2, 1) == (2, 7)
    assert (model.inputs["input_ids"].high, model.inputs["attention_mask"].value) == (9, 0)


def test_llamas_and_own_models_share_a_sweep_and_its_defaults(folder: Path) -> None:
    text = SWEEP.replace("  sizes:", "  defaults: {num_hidden_layers: 1, vocab_size: 8}\n  sizes:").replace(
        "tagger.onnx", "tagger.onnx\n    - {hidden_size: 16, num_attention_heads: 2, intermediate_size: 16}"
    )
    assert [model.label for model in read(folder, text).models] == ["tagger", "h16-a2-l1"]


def test_the_schema_of_editors_knows_the_keys_and_none_that_is_filled_in(folder: Path) -> None:
    schema = json_schema(catalogue())

    def errors(size: dict[str, Any]) -> list[str]:
        sweep = {
            "name": "x", "models": {"sizes": [size]}, "recipes": {"original": {}},
            "workloads": {"p": {"sequence": 1}}, "targets": {"B": {"tag": "bench_cpu"}},
        }  # fmt: skip
        return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(sweep)]

    assert errors({"onnx": "a.onnx", "inputs": {"x": {"shape": ["batch", 3], "value": 1}}, "seed": 3}) == []
    assert errors({"hidden_size": 16, "num_attention_heads": 2}) == []
    assert errors({"onnx": "a.onnx", "hidden_size": 16})
    assert errors({"onnx": "a.onnx", "weight_bytes": 16})
    assert errors({"onnx": "a.onnx", "inputs": {"x": {"shap": [1]}}})


def test_the_shipped_sweep_reads_the_shipped_graph_which_is_the_tagger(folder: Path) -> None:
    from llama_bench.cli.common import read_sweep

    shipped = Path(__file__).parents[2] / "sweeps"
    [model] = read_sweep(shipped / "own.yaml").models
    assert isinstance(model, OwnModel)
    assert Path(model.onnx).read_bytes() == (folder / "graphs" / "tagger.onnx").read_bytes()
    assert model.inputs == own(folder).inputs  # what it says is what would have been inferred


def test_the_documented_models_are_those_of_the_documentation(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-models.md").read_text(encoding="utf-8")
    written = page.partition("```yaml\n")[2].partition("```")[0]
    shutil.copytree(Path(__file__).parents[2] / "sweeps" / "graphs", folder / "graphs", dirs_exist_ok=True)
    rest = SWEEP[SWEEP.index("recipes:") : SWEEP.index("workloads:")] + SWEEP[SWEEP.index("targets:") :]
    sweep = read(folder, f"name: own\n{written}{rest}")
    assert [model.label for model in sweep.models] == ["tagger", "ours"]
    assert sweep.models[1].inputs["input_ids"].high == 20  # type: ignore[union-attr]


# ── what identifies it ───────────────────────────────────────────────────────────────────────────────────────────────


def ids(sweep: Sweep) -> tuple[list[str], list[str]]:
    made = plan.make(sweep, {})
    return [cell.id for cell in made.cells], list(made.artifacts)


def test_a_model_is_known_by_its_content_and_not_by_its_place(folder: Path) -> None:
    before = ids(read(folder))
    shutil.copytree(folder / "graphs", folder / "elsewhere")
    assert ids(read(folder, SWEEP.replace("graphs/", "elsewhere/"))) == before
    tagger(folder / "graphs" / "tagger.onnx", seed=1)
    assert not {*ids(read(folder))[1]} & {*before[1]}


def test_external_data_is_part_of_the_content(folder: Path) -> None:
    path = tagger(folder / "graphs" / "tagger.onnx", external=True)
    before = own(folder)
    assert before.weight_bytes > 4 * INNER * WIDTH
    data = path.with_name("tagger.onnx.data")
    data.write_bytes(bytes(reversed(data.read_bytes())))
    assert own(folder).onnx_sha256 != before.onnx_sha256


def test_other_workloads_leave_a_cells_id_as_it_is_and_one_export_serves_all(folder: Path) -> None:
    one = plan.make(read(folder), {})
    more = plan.make(read(folder, SWEEP.replace("targets:", "  long: {sequence: 9}\ntargets:")), {})
    assert one.cells[0].id in {cell.id for cell in more.cells}
    assert [artifact.kind for artifact in more.artifacts.values()] == ["export", "reference", "reference"]


def test_an_own_model_comes_back_from_what_a_run_keeps(folder: Path) -> None:
    sweep = read(folder)
    kept = sweep.model_dump(mode="json")
    assert Sweep.model_validate(kept) == sweep
    assert model_of(kept["models"][0]) == sweep.models[0]


def test_the_keys_of_llamas_are_what_they_were_before_there_were_own_models() -> None:
    # ids are made of them: a new one would lose what was measured
    from llama_bench.sweep import Model

    keys = Model(hidden_size=16, num_attention_heads=2).model_dump()
    assert not {"onnx", "onnx_sha256", "inputs", "costs"} & set(keys)


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


WITH = "graphs/tagger.onnx\n      {}"

REFUSALS = [
    (
        "graphs/tager.onnx",
        "own.yaml:5: models.sizes[0].onnx: graphs/tager.onnx: no such file; did you mean 'tagger.onnx'?",
    ),
    (
        WITH.format("hidden_size: 16"),
        "own.yaml:6: models.sizes[0].hidden_size: hidden_size is not for a model with onnx, which is what its file "
        "says",
    ),
    (WITH.format("cache: true"), "own.yaml:6: models.sizes[0].cache: cache is not for a model with onnx"),
    (WITH.format("head: none"), "own.yaml:6: models.sizes[0].head: head is not for a model with onnx"),
    (WITH.format("costs: []"), "own.yaml:6: models.sizes[0].costs: costs is not for a model with onnx"),
    (
        WITH.format("input: {}"),
        "own.yaml:6: models.sizes[0]: unknown key 'input'; did you mean 'inputs'?",
    ),
    (
        WITH.format("inputs: {input_id: {high: 3}}"),
        "own.yaml:6: models.sizes[0].inputs.input_id: tagger.onnx has no input 'input_id'; did you mean 'input_ids'?",
    ),
    (
        WITH.format("inputs: {input_ids: {hihg: 3}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids: unknown key 'hihg'; did you mean 'high'?",
    ),
    (
        WITH.format("inputs: {input_ids: {shape: [batch]}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids.shape: [batch] has 1 dimensions, but input 'input_ids' of "
        "tagger.onnx has 2: [batch, sequence]",
    ),
    (
        WITH.format("inputs: {input_ids: {shape: [batch, sequense]}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids.shape[1]: must be a whole number or a word of the "
        "workload, not 'sequense'; did you mean 'sequence'?",
    ),
    (
        WITH.format("inputs: {input_ids: {value: ones}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids.value: must be one number, true or false, or positions "
        "(0, 1, 2 …), not 'ones'",
    ),
    (
        WITH.format("inputs: {input_ids: {high: 0}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids.high: must be greater than 0, not 0",
    ),
    (
        WITH.format("inputs: {input_ids: {high: 3, value: 1}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids.high: high is for numbers that are drawn",
    ),
    (
        WITH.format("inputs: {input_ids: {value: 1.5}}"),
        "own.yaml:6: models.sizes[0].inputs.input_ids.value: 1.5 is no whole number, and input 'input_ids' of "
        "tagger.onnx is int64",
    ),
    (WITH.format("inputs: [1]"), "own.yaml:6: models.sizes[0].inputs: must be a mapping, not a list"),
    (
        WITH.format("onnx_sha256: abc"),
        "own.yaml:6: models.sizes[0].onnx_sha256: 'abc' here, but graphs/tagger.onnx has ",
    ),
    (
        "graphs/pictures.onnx",
        "own.yaml:5: models.sizes[0].onnx: graphs/pictures.onnx: nothing says how long dimension 2 (height) of input "
        "'pixels' is; add to this model inputs: {pixels: {shape: [batch, 3, height, width]}} with a number for height",
    ),
    (
        "graphs/pictures.onnx\n      inputs: {pixels: {shape: [batch, 4, 8, 8]}}",
        "own.yaml:6: models.sizes[0].inputs.pixels.shape[1]: 4 here, but dimension 1 of input 'pixels' is 3",
    ),
    (
        "graphs/pictures.onnx\n      inputs: {pixels: {high: 8, shape: [batch, 3, 8, 8]}}",
        "own.yaml:6: models.sizes[0].inputs.pixels.high: high is for whole numbers, and input 'pixels' of "
        "pictures.onnx is float32",
    ),
]


@pytest.mark.parametrize(("instead", "message"), REFUSALS)
def test_what_does_not_fit_the_file_is_refused_at_its_line(folder: Path, instead: str, message: str) -> None:
    assert refusal(folder, SWEEP.replace("graphs/tagger.onnx", instead)).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "{kind: prefill, batch: 2, sequence: 3}",
            "{kind: decode, context: 3}",
            "own.yaml:9: workloads.prefill.kind: decode goes through a KV cache step by step, and model tagger is an "
            "ONNX file that is run once: kind: prefill",
        ),
        (
            "{kind: prefill, batch: 2, sequence: 3}",
            "{kind: generate, prompt: 3, new_tokens: 2}",
            "own.yaml:9: workloads.prefill.kind: generate goes through a KV cache step by step",
        ),
        (
            "targets:",
            "measure: {text: {tokens: 64}}\ntargets:",
            "own.yaml:10: measure.text: no text can be scored: it needs a Llama made here, and this model is an ONNX "
            "file of its own (tagger)",
        ),
        (
            "original: {}",
            "original: {}\n  eager: {engine: torch-eager}",
            "own.yaml:8: recipes.eager.engine: engine 'torch-eager' does not fit model tagger: it needs a Llama made",
        ),
    ],
)
def test_what_needs_a_llama_is_refused_before_anything_is_built(folder: Path, old: str, new: str, message: str) -> None:
    assert refusal(folder, SWEEP.replace(old, new)).startswith(message)


LLAMAS = [
    "{prune: {name: heads}}", "{prune: {name: layers}}", "{prune: {name: magnitude}}", "{distill: logits}",
    "{fuse: all}", "{fuse: attention}", "{fuse: last_token}", "{quantize: static}", "{quantize: {method: gptq}}",
    "{quantize: {head_bits: 8}}", "{quantize: {name: dynamic, smooth: 0.5}}",
]  # fmt: skip


@pytest.mark.parametrize("step", LLAMAS)
def test_passes_that_know_a_llamas_structure_are_refused_with_the_reason(folder: Path, step: str) -> None:
    said = refusal(folder, SWEEP.replace("original: {}", f"original: {{}}\n  bad: {{passes: [{step}]}}"))
    assert said.startswith("own.yaml:8: recipes.bad.passes[0]: ")
    assert "does not fit model tagger: it needs a Llama made here, and this is an ONNX file of its own: " in said


def test_every_pass_either_takes_any_graph_or_says_what_it_needs_a_llama_for(folder: Path) -> None:
    from llama_bench.passes import PASSES, misfit
    from llama_bench.sweep import Pass

    model = own(folder)
    taken = {
        (family, name)
        for family, table in PASSES.items()
        for name, info in table.items()
        if not info.refused and not info.needs and misfit([Pass(family=family, name=name)], model) is None
    }
    assert {family for family, _ in taken} == {
        "onnxoptimizer", "onnxruntime", "onnxscript", "transformers", "fuse", "precision", "quantize",
    }  # fmt: skip
    assert {name for family, name in taken if family == "quantize"} == {"weights", "dynamic"}
    fusions = {"norm", "skip_norm", "qkv", "gate_up", "turn", "swiglu"}
    assert {name for family, name in taken if family == "fuse"} == fusions


def test_a_file_that_is_no_model_or_lies_about_its_weights_is_refused(folder: Path) -> None:
    path = folder / "graphs" / "tagger.onnx"
    path.write_bytes(b"no model")
    assert "not a readable ONNX model" in refusal(folder, SWEEP)
    tagger(path, external=True)
    path.with_name("tagger.onnx.data").write_bytes(b"short")
    assert "tagger.onnx.data: tensor 'table' needs" in refusal(folder, SWEEP)
    path.with_name("tagger.onnx.data").unlink()
    assert "the weights' file is missing" in refusal(folder, SWEEP)


def test_external_data_outside_the_files_folder_is_refused(folder: Path) -> None:
    path = tagger(folder / "graphs" / "tagger.onnx", external=True)
    shutil.move(path.with_name("tagger.onnx.data"), folder / "secret")
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    path.write_bytes(model.SerializeToString())
    said = refusal(folder, SWEEP)
    assert "graphs/tagger.onnx: tensor 'table' keeps its data at '../secret', which is no file beside it" in said


def test_a_graph_that_contradicts_itself_or_the_workload_is_refused(folder: Path) -> None:
    path = folder / "graphs" / "tagger.onnx"
    nodes = [helper.make_node("MatMul", ["x", "y"], ["out"])]
    graph(path, ("x", TensorProto.FLOAT, [2, 3]), ("y", TensorProto.FLOAT, [4, 5]), nodes=nodes)
    assert "no valid ONNX model" in refusal(folder, SWEEP)
    graph(path, ("x", TensorProto.FLOAT, ["N", "M"]), ("y", TensorProto.FLOAT, [4, "N"]), nodes=nodes)
    assert "inputs of x [2, 3], y [4, 2] do not fit the graph" in refusal(folder, SWEEP)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TensorProto.STRING, "output 'out' is string, which cannot be compared"),
        (TensorProto.BFLOAT16, "output 'out' is bfloat16, which cannot be compared"),
    ],
)
def test_types_that_numpy_lacks_are_refused(folder: Path, kind: int, message: str) -> None:
    graph(folder / "graphs" / "tagger.onnx", ("x", kind, ["N"]))
    assert message in refusal(folder, SWEEP)
    nodes = [helper.make_node("Shape", ["x"], ["out"])]
    out = helper.make_tensor_value_info("out", TensorProto.INT64, [1])
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", kind, ["N"])], [out])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "graphs" / "tagger.onnx"))
    assert "input 'x' is " in refusal(folder, SWEEP)


def test_a_graph_that_draws_numbers_is_refused_since_nothing_can_be_checked_against_it(folder: Path) -> None:
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["out"], "noise")]
    graph(folder / "graphs" / "tagger.onnx", ("x", TensorProto.FLOAT, ["N"]), nodes=nodes)
    assert "node 'noise' (RandomNormalLike) draws other numbers in every run" in refusal(folder, SWEEP)


def test_positions_beyond_their_table_are_refused(folder: Path) -> None:
    inputs = "inputs: {input_ids: {value: positions, high: 2}}"
    said = refusal(folder, SWEEP.replace("tagger.onnx", f"tagger.onnx\n      {inputs}"))
    assert "positions up to 3 in 'input_ids', whose table has 2 rows" in said


def test_a_search_and_a_fixed_size_say_what_they_need(folder: Path) -> None:
    from llama_bench.cli.common import read_model

    read(folder)
    with pytest.raises(InputError, match="the search knows recipes for Llamas; tagger is an ONNX file"):
        read_model(str(folder / "own.yaml"))
    graph(folder / "graphs" / "tagger.onnx", ("x", TensorProto.FLOAT, [1, 3]))
    assert "no input takes batch 2 (x [1, 3]); say batch: 1" in refusal(folder, SWEEP)
    inputs = "graphs/pictures.onnx\n      inputs: {pixels: {shape: [batch, 3, 8, 8]}}"
    said = refusal(folder, SWEEP.replace("graphs/tagger.onnx", inputs).replace("sequence: 3", "sequence: 5"))
    assert said == (
        "own.yaml:5: models.sizes[0]: model pictures: no input takes sequence 5 (pixels [batch, 3, 8, 8]); "
        "say sequence: 1"
    )
