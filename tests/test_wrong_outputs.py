"""Three wrong outputs that real tools give without a word, each made again: every one comes out `wrong` or `failed`.

Weights merged by an optimiser that did not load them, NaN from an attention mask in bf16, rotary positions that fit a
batch of one. Tiny models, the real tools, the session that is timed, and the accuracy check and verdict of every sweep.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxoptimizer
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from torch import Tensor, nn

from llama_bench import passes
from llama_bench.bench import accuracy
from llama_bench.engines import Task, open_session, settings
from llama_bench.errors import WorkError
from llama_bench.model import export, layers, llama
from llama_bench.model.inputs import input_names, make_inputs, output_names
from llama_bench.stats import evidence
from llama_bench.stats.verdicts import Comparison, judge
from llama_bench.sweep import AccuracyBounds, Model, Pass, Session, Target, Workload

Arrays = Mapping[str, np.ndarray]

SETTINGS = settings("onnxruntime", Session(), Target(tag="bench_cpu", threads=1), 1)
TEN_PER_CENT_FASTER = (-0.1, -0.101, -0.099, -0.1005, -0.0995, -0.1002)
WORKLOAD = Workload(batch=2, sequence=8)
PADDING = 3
"""Tokens at the start of the second sequence that are none."""


def tiny(**changed: Any) -> Model:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
    return Model(**{**sizes, "max_position_embeddings": 64, **changed})


def answer(folder: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    session = open_session(folder, SETTINGS, Task(tiny().model_dump(), WORKLOAD.model_dump(), inputs))
    session.run()
    return session.outputs()


def checked(outputs: Arrays, reference: Arrays) -> dict[str, dict[str, Any]]:
    """The rows of `accuracy` by output, under the bounds of an exact rewrite."""
    bounds = accuracy.bounds("exact", SETTINGS, AccuracyBounds())
    return {row["output"]: row for row in accuracy.compare(outputs, reference, bounds, "exact")}


def verdict(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The verdict on an arm that is 10 % faster and has these rows of `accuracy`."""
    wrong = evidence.wrong([{**row, "restart": 0} for row in rows.values()])
    return judge({"arm": Comparison(TEN_PER_CENT_FASTER, wrong=wrong)}, pilot=6, margin=0.02)["arm"].word


def torch_answer(model: Model, workload: Workload, inputs: Arrays) -> dict[str, np.ndarray]:
    """torch's fp32 outputs for `inputs`, by name."""
    with torch.inference_mode():
        results = llama.build(model, workload)(*(torch.from_numpy(inputs[name]) for name in input_names(model)))
    names = output_names(model, workload)
    return {name: result.contiguous().numpy() for name, result in zip(names, results, strict=True)}


def left_padded(model: Model) -> dict[str, np.ndarray]:
    """Inputs whose second sequence begins with padding: its positions count from its first token."""
    inputs = make_inputs(model, WORKLOAD)
    inputs["position_ids"][1] = np.maximum(np.arange(WORKLOAD.sequence) - PADDING, 0)
    if model.attention_mask:
        inputs["attention_mask"][1, :PADDING] = 0
    return inputs


def failed(error: WorkError) -> str:
    """The message of an arm without timings that this error stopped; it is `failed`."""
    cell = {"id": "c", "model": "m", "workload": "w", "target": "t"}
    row = {"cell": "c", **dict.fromkeys(("model", "workload", "target", "artifact", "stage")), "recipe": "arm"}
    word, message = evidence.without_number(cell, "arm", None, [{**row, "kind": "error", "message": str(error)}], None)
    assert word == "failed"
    return message


# --- weights that were not loaded ---


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with all its weights in a file beside the graph, as every export above 2 GB has them."""
    folder = tmp_path_factory.mktemp("exported")
    export.export(tiny(), WORKLOAD, folder)
    model = onnx.load(folder / "model.onnx")
    (folder / "model.onnx.data").unlink()
    onnx.save_model(
        model, str(folder / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=100
    )
    return folder


@pytest.mark.parametrize(
    ("name", "weights_lost", "rel", "cosine", "top1"),
    [
        # unloaded weights of one shape are all equally empty, so one is kept for all
        ("eliminate_duplicate_initializer", 15, 0.7, 0.8, 0.5),
        # nor does it see that the scales of the norms are not 1
        ("eliminate_nop_with_unit", 0, 0.3, 0.95, 0.8),
    ],
)
def test_weights_that_an_optimiser_merged_or_dropped_unseen_are_wrong(
    exported: Path, tmp_path: Path, name: str, weights_lost: int, rel: float, cosine: float, top1: float
) -> None:
    unloaded = onnx.load(exported / "model.onnx", load_external_data=False)
    optimised = onnxoptimizer.optimize(unloaded, [name])
    assert len(unloaded.graph.initializer) - len(optimised.graph.initializer) == weights_lost
    onnx.save_model(optimised, str(tmp_path / "model.onnx"))
    shutil.copy(exported / "weights.bin", tmp_path)

    reference = torch_answer(tiny(), WORKLOAD, make_inputs(tiny(), WORKLOAD))
    rows = checked(answer(tmp_path, make_inputs(tiny(), WORKLOAD)), reference)
    logits = rows["logits"]
    assert logits["max_rel"] > rel
    assert logits["cosine"] < cosine
    assert logits["top1"] < top1
    assert logits["kl"] > 100 * accuracy.BOUNDS["fp32"].max_kl
    assert [part.split()[0] for part in logits["violated"].split("; ")] == ["relative", "cosine", "KL"]
    assert not any(row["within_bound"] for row in rows.values())
    assert verdict(rows) == "wrong"


@pytest.mark.parametrize("name", ["eliminate_duplicate_initializer", "eliminate_nop_with_unit"])
def test_the_same_pass_in_a_recipe_loads_the_weights_and_stays_right(exported: Path, tmp_path: Path, name: str) -> None:
    passes.apply(Pass(family="onnxoptimizer", name=name), exported, tmp_path, tiny(), WORKLOAD, tmp_path / "state")
    reference = torch_answer(tiny(), WORKLOAD, make_inputs(tiny(), WORKLOAD))
    rows = checked(answer(tmp_path, make_inputs(tiny(), WORKLOAD)), reference)
    assert [row["violated"] for row in rows.values()] == [None] * 5
    assert verdict(rows) == "faster"


def test_a_pass_that_cannot_load_the_weights_is_failed(exported: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(exported / "model.onnx", source)
    with pytest.raises(WorkError, match=r"weights\.bin: the weights' file is missing") as error:
        passes.apply(
            Pass(family="onnxoptimizer", name="eliminate_duplicate_initializer"),
            source,
            tmp_path / "made",
            tiny(),
            WORKLOAD,
            tmp_path / "state",
        )
    assert failed(error.value).endswith("lies in it)")


# --- a mask in bf16 ---


def in_bf16(model: ModelProto, masked: float) -> ModelProto:
    """Make the value that masks in `model` `masked`, rounded to bf16 by ONNX Runtime itself."""
    where = next(node for node in model.graph.node if node.op_type == "Where")
    low = helper.make_tensor("low", TensorProto.FLOAT, [1], [masked])
    rounded = [
        helper.make_node("Cast", ["low"], ["low_bf16"], to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["low_bf16"], ["low_again"], to=TensorProto.FLOAT),
    ]
    where.input[2] = "low_again"
    model.graph.initializer.append(low)
    nodes = [*rounded, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.fixture(scope="module")
def masked_model(tmp_path_factory: pytest.TempPathFactory) -> ModelProto:
    """A Llama that takes an attention mask."""
    folder = tmp_path_factory.mktemp("masked")
    export.export(tiny(attention_mask=True), WORKLOAD, folder)
    return onnx.load(folder / "model.onnx")


def masked_rows(model: ModelProto, masked: float, folder: Path) -> dict[str, dict[str, Any]]:
    """Rows of `accuracy` of a padded batch whose mask is `masked` in bf16, against torch in fp32."""
    changed = ModelProto()
    changed.CopyFrom(model)
    onnx.save_model(in_bf16(changed, masked), str(folder / "model.onnx"))
    spec = tiny(attention_mask=True)
    inputs = left_padded(spec)
    return checked(answer(folder, inputs), torch_answer(spec, WORKLOAD, inputs))


def test_a_mask_of_the_lowest_fp32_value_is_nan_in_bf16_and_wrong(masked_model: ModelProto, tmp_path: Path) -> None:
    rows = masked_rows(masked_model, float(np.finfo(np.float32).min), tmp_path)
    # -3.4e38 rounds to -inf; a row of padding is -inf throughout, its softmax NaN, and the next layer's 0 · NaN spreads
    # it to every token of that sequence; the other sequence has none
    spoiled = WORKLOAD.sequence * 96
    assert (rows["logits"]["nan"], rows["logits"]["infinite"]) == (spoiled, 0)
    assert rows["logits"]["violated"] == f"{spoiled} of {2 * spoiled} values are NaN, 0 infinite"
    assert rows["present.1.key"]["nan"] == PADDING * 32  # keys of the second layer: those of the padding alone
    assert rows["present.0.key"]["violated"] is None  # keys of the first layer come before any mask
    assert verdict(rows) == "wrong"


def test_the_mask_of_every_exported_model_survives_bf16(masked_model: ModelProto, tmp_path: Path) -> None:
    rows = masked_rows(masked_model, layers.MASKED, tmp_path)
    assert [row["violated"] for row in rows.values()] == [None] * 5
    assert verdict(rows) == "faster"


# --- rotary positions of a batch of two ---


class SelfPositioned(nn.Module):
    """One attention layer that makes its own positions [1, S], as models without `position_ids` do."""

    inv_freq: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.heads, self.head_dim = model.num_attention_heads, model.head_size
        self.embed = nn.Embedding(model.vocab_size, model.hidden_size)
        self.q_proj = nn.Linear(model.hidden_size, model.hidden_size, bias=False)
        self.k_proj = nn.Linear(model.hidden_size, model.hidden_size, bias=False)
        self.register_buffer("inv_freq", llama.inverse_frequencies(model), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        batch, sequence, size = x.shape
        position_ids = torch.arange(sequence)[None]
        freqs = torch.matmul(self.inv_freq, position_ids[:, None, :].to(torch.float32)).transpose(1, 2)
        angles = torch.cat((freqs, freqs), dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]

        def turned(projected: Tensor) -> Tensor:
            heads = projected.view(batch, sequence, self.heads, self.head_dim).transpose(1, 2)
            return layers.rotate(heads, cos, sin)

        query, key = turned(self.q_proj(x)), turned(self.k_proj(x))
        scores = torch.matmul(query, key.transpose(2, 3)) * self.head_dim**-0.5
        mixed = torch.matmul(torch.softmax(scores, dim=-1), key).transpose(1, 2)
        return mixed.reshape(batch, sequence, size)


def fused_self_positioned(folder: Path, batch: int, dynamic: bool) -> tuple[dict[str, int], Arrays, Arrays]:
    """Export SelfPositioned, fuse it for ONNX Runtime; return how often each rule fired, inputs and torch's answer."""
    torch.manual_seed(0)
    network = SelfPositioned(tiny()).eval().requires_grad_(False)
    tokens = torch.from_numpy(make_inputs(tiny(), Workload(batch=batch, sequence=8))["input_ids"])
    with export.quiet():
        program = torch.onnx.export(
            network,
            (tokens,),
            dynamo=True,
            opset_version=18,
            input_names=["input_ids"],
            output_names=["mixed"],
            dynamic_shapes=({1: torch.export.Dim("sequence", min=2, max=64)},) if dynamic else None,
            verbose=False,
        )
    assert program is not None
    model, fired = optimize_for_ort(program.model)
    onnx_ir.save(model, folder / "model.onnx")
    return fired, {"input_ids": tokens.numpy()}, {"mixed": network(tokens).numpy()}


@pytest.mark.parametrize(("batch", "dynamic", "cached"), [(2, False, 0), (1, True, 2)])
def test_a_model_that_makes_its_own_positions_is_right_where_they_fold_or_the_batch_is_one(
    tmp_path: Path, batch: int, dynamic: bool, cached: int
) -> None:
    fired, inputs, reference = fused_self_positioned(tmp_path, batch, dynamic)
    assert fired["cos_sin_cache"] == cached
    assert checked(answer(tmp_path, inputs), reference)["mixed"]["violated"] is None


def test_rotary_positions_of_a_batch_of_one_fail_at_a_batch_of_two(tmp_path: Path) -> None:
    fired, inputs, _ = fused_self_positioned(tmp_path, 2, dynamic=True)
    assert fired["cos_sin_cache"] == 2  # fused without a complaint, and it loads
    with pytest.raises(WorkError, match="failed while running") as error:
        answer(tmp_path, inputs)
    assert failed(error.value).endswith("Input 'position_ids' dimension 0 should be of size batch_size, got 1")


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose four rotations are ONNX Runtime's RotaryEmbedding."""
    folder = tmp_path_factory.mktemp("fused")
    export.export(tiny(), WORKLOAD, folder)
    model, fired = optimize_for_ort(onnx_ir.load(folder / "model.onnx"))
    assert fired["cos_sin_cache"] == 4
    onnx_ir.save(model, folder / "model.onnx")
    return folder


def positioned(source: Path, folder: Path, positions: np.ndarray, readers: set[str]) -> None:
    """Write the fused model with constant `positions` where these operators read its input `position_ids`."""
    model = onnx.load(source / "model.onnx")
    reading = [node for node in model.graph.node if "position_ids" in node.input and node.op_type in readers]
    assert {node.op_type for node in reading} == readers
    for node in reading:
        node.input[list(node.input).index("position_ids")] = "constant_positions"
    model.graph.initializer.append(numpy_helper.from_array(positions.astype(np.int64), "constant_positions"))
    onnx.save_model(model, str(folder / "model.onnx"))


@pytest.mark.parametrize("inputs", [left_padded, lambda model: make_inputs(model, WORKLOAD)])
def test_the_fused_rotation_with_positions_of_every_sequence_is_right(
    fused: Path, inputs: Callable[[Model], dict[str, np.ndarray]]
) -> None:
    given = inputs(tiny())
    rows = checked(answer(fused, given), torch_answer(tiny(), WORKLOAD, given))
    assert [row["violated"] for row in rows.values()] == [None] * 5


def test_one_offset_for_a_batch_is_wrong_where_the_second_sequence_begins_elsewhere(
    fused: Path, tmp_path: Path
) -> None:
    positioned(fused, tmp_path, np.array([0]), {"RotaryEmbedding"})
    given = left_padded(tiny())
    outputs, reference = answer(tmp_path, given), torch_answer(tiny(), WORKLOAD, given)
    rows = checked(outputs, reference)
    assert rows["present.0.key"]["max_rel"] > 0.1
    assert rows["logits"]["violated"].startswith("relative error ")
    assert rows["present.0.value"]["violated"] is None  # values are not turned
    assert verdict(rows) == "wrong"
    first = checked({n: v[:1] for n, v in outputs.items()}, {n: v[:1] for n, v in reference.items()})
    assert [row["violated"] for row in first.values()] == [None] * 5


def test_positions_counted_on_through_the_batch_are_wrong_in_the_keys_alone(fused: Path, tmp_path: Path) -> None:
    counted_on = np.arange(WORKLOAD.tokens).reshape(WORKLOAD.batch, WORKLOAD.sequence)
    positioned(fused, tmp_path, counted_on, {"RotaryEmbedding", "ReduceMax"})
    inputs = make_inputs(tiny(), WORKLOAD)
    rows = checked(answer(tmp_path, inputs), torch_answer(tiny(), WORKLOAD, inputs))
    # attention sees differences of positions only, so the logits of this prefill are right; the keys that a later
    # decode goes on from are not
    assert {name for name, row in rows.items() if row["violated"]} == {"present.0.key", "present.1.key"}
    assert rows["present.0.key"]["cosine"] < 0.9
    assert verdict(rows) == "wrong"
