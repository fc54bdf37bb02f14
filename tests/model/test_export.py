from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from llama_bench.counts import model_bytes
from llama_bench.errors import InputError, WorkError
from llama_bench.model import export as exporting
from llama_bench.model import llama, streamed, weights
from llama_bench.model.inputs import cache_names, input_names, make_inputs, output_names, positions, token_ids
from llama_bench.sweep import Model, Workload

# exporter, opset, folding, mask, KV heads, outputs, further keys: every value of every axis meets both exporters
COMBINATIONS = [
    ("torchscript", 17, True, True, 4, "hidden", {"head": "none"}),  # the study's
    ("torchscript", 13, False, False, 2, "logits", {"tie_word_embeddings": True}),
    ("torchscript", 20, True, True, 1, "last_logits", {"attention_bias": True, "mlp_bias": True}),
    ("dynamo", 18, True, True, 4, "hidden", {"head": "none"}),
    ("dynamo", 18, False, False, 2, "last_logits", {"attention_bias": True, "mlp_bias": True}),
    ("dynamo", 23, True, True, 2, "logits", {"tie_word_embeddings": True}),
    ("torchscript", 17, False, True, 2, "logits", {"flatten_tokens": True, "attention_bias": True, "mlp_bias": True}),
    ("dynamo", 18, True, True, 2, "last_logits", {"flatten_tokens": True}),
    ("dynamo", 18, False, True, 2, "hidden", {"flatten_tokens": True, "attention_bias": True, "mlp_bias": True}),
]
SLOW = [
    (exporter, opset, folding, mask, 2, "logits", {})
    for exporter, opsets in exporting.OPSETS.items()
    for opset in opsets
    for folding, mask in ((True, False), (False, True))
]


def run(path: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, inputs)


@pytest.mark.parametrize(
    ("exporter", "opset", "folding", "mask", "kv_heads", "outputs", "more"),
    [*COMBINATIONS, *(pytest.param(*combination, marks=pytest.mark.slow) for combination in SLOW)],
)
def test_every_export_agrees_with_torch_and_keeps_the_contract(
    tiny, tmp_path, exporter, opset, folding, mask, kv_heads, outputs, more
):
    model = tiny(
        exporter=exporter,
        opset=opset,
        constant_folding=folding,
        attention_mask=mask,
        num_key_value_heads=kv_heads,
        **more,
    )
    workload = Workload(batch=2, sequence=8, outputs=outputs)
    facts = exporting.export(model, workload, tmp_path)
    json.dumps(facts)
    names = output_names(model, workload)
    assert list(facts["check"]) == names
    assert all(found["max_abs"] < 1e-4 for found in facts["check"].values())

    proto = onnx.load(tmp_path / "model.onnx")
    assert facts["nodes"] == len(proto.graph.node)
    assert [used.version for used in proto.opset_import if used.domain == ""] == [opset]
    assert [value.name for value in proto.graph.input] == input_names(model)
    assert [value.name for value in proto.graph.output] == names
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        assert all(dim.dim_value > 0 for dim in dims), f"{value.name} is not static"

    # The inputs are real ones: with other positions and a mask with zeros the graph still does what torch does.
    inputs = make_inputs(model, workload)
    inputs["position_ids"] = inputs["position_ids"] * 2 + 3
    if mask:
        inputs["attention_mask"][0, :3] = 0
    network = llama.build(model, workload)
    usual = llama.run(network, model, workload)
    with torch.inference_mode():
        wanted = network(*(torch.from_numpy(inputs[name]) for name in input_names(model)))
    for name, mine, other in zip(names, run(tmp_path / "model.onnx", inputs), wanted, strict=True):
        np.testing.assert_allclose(mine, other.numpy(), rtol=0, atol=1e-4, err_msg=name)
    assert np.abs(wanted[-2].numpy() - usual["present.1.key"]).max() > 1e-3


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_folding_removes_nodes_and_keeps_the_rest_named_as_in_hugging_face(tiny, tmp_path, exporter):
    nodes = {}
    for folding in (True, False):
        model = tiny(exporter=exporter, constant_folding=folding)
        facts = exporting.export(model, Workload(sequence=8), tmp_path / str(folding))
        nodes[folding] = facts["nodes"]
    assert nodes[True] < nodes[False]
    unfolded = onnx.load(tmp_path / "False" / "model.onnx", load_external_data=False)
    parameters = dict(llama.build(model, Workload(sequence=8)).named_parameters())
    assert set(parameters) <= {weight.name for weight in unfolded.graph.initializer}


def test_flattened_tokens_make_every_linear_layer_a_product_of_two_matrices_of_the_same_weights(tiny, tmp_path):
    stored, ranks = {}, {}
    for flat in (False, True):
        model = tiny(flatten_tokens=flat, constant_folding=False, attention_bias=True, mlp_bias=True)
        exporting.export(model, Workload(batch=2, sequence=8), tmp_path / str(flat))
        graph = onnx.load(tmp_path / str(flat) / "model.onnx").graph
        parameters = dict(llama.build(model, Workload(sequence=8)).named_parameters())
        stored[flat] = {
            tensor.name: onnx.numpy_helper.to_array(tensor).tobytes()
            for tensor in graph.initializer
            if tensor.name in parameters
        }
        assert set(stored[flat]) == set(parameters)
        rank = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
        turned = {node.output[0] for node in graph.node if node.op_type == "Transpose" and node.input[0] in parameters}
        linear = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in turned]
        assert len(linear) == 2 * 7 + 1
        ranks[flat] = {rank[node.input[0]] for node in linear}
    assert ranks == {False: {3}, True: {2}}
    assert stored[True] == stored[False]


@pytest.mark.parametrize(("exporter", "folding"), [("dynamo", True), ("dynamo", False), ("torchscript", False)])
def test_tied_weights_are_exported_once(tiny, tmp_path, exporter, folding):
    # A vocabulary large enough that folding leaves the head's Transpose alone, as it does in a real model.
    model = tiny(exporter=exporter, constant_folding=folding, tie_word_embeddings=True, vocab_size=4000)
    exporting.export(model, Workload(sequence=8), tmp_path)
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert len([weight.name for weight in proto.graph.initializer if 4000 in weight.dims]) == 1


def test_two_exports_have_the_same_bytes_and_say_nothing_of_the_machine(tiny, tmp_path):
    written = []
    for folder in ("a", "b"):
        exporting.export(tiny(), Workload(sequence=8), tmp_path / folder)
        written.append((tmp_path / folder / "model.onnx").read_bytes())
    assert written[0] == written[1]
    assert str(Path(llama.__file__).parent).encode() not in written[0]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_an_export_prints_nothing_and_warns_of_nothing(tiny, tmp_path, capfd, exporter):
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exporting.export(tiny(exporter=exporter, attention_mask=True), Workload(sequence=8), tmp_path)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == level


def planted(folder: Path, factor: float) -> None:
    """Multiply the last norm's weights in `folder/model.onnx`: a graph that is really another model."""
    proto = onnx.load(folder / "model.onnx")
    [norm] = [weight for weight in proto.graph.initializer if weight.name == "model.norm.weight"]
    norm.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(norm) * np.float32(factor), norm.name))
    onnx.save(proto, folder / "model.onnx")


@pytest.mark.parametrize(("factor", "difference"), [(1.01, r"by 0\.0\d+"), (np.nan, "by nan"), (np.inf, "by inf")])
@pytest.mark.parametrize("more", [{"exporter": "torchscript", "opset": 17}, {"cache": True}], ids=["static", "cached"])
def test_a_planted_mismatch_is_refused_with_its_output_and_size(tiny, tmp_path, factor, difference, more):
    model, workload = tiny(**more, head="none"), Workload(sequence=8, outputs="hidden")
    exporting.export(model, workload, tmp_path)
    cases = exporting.expectations(llama.build(model, workload), model, workload)
    planted(tmp_path, factor)
    with pytest.raises(WorkError, match=f"output hidden_states {difference}"):
        exporting.check(tmp_path, model, cases)


def test_a_graph_that_torch_never_wrote_fails_the_whole_export(tiny, tmp_path, monkeypatch):
    right = exporting.write

    def wrong(network, model, workload, path):
        right(network, model, workload, path)
        planted(path.parent, 1.01)

    monkeypatch.setattr(exporting, "write", wrong)
    with pytest.raises(WorkError, match="output hidden_states"):
        exporting.export(tiny(), Workload(sequence=8, outputs="hidden"), tmp_path)


def test_a_file_that_no_engine_reads_is_refused(tiny, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(WorkError, match="does not run in ONNX Runtime"):
        exporting.check(tmp_path, tiny(), [])


def test_outputs_of_other_names_or_shapes_are_refused():
    one = {"logits": np.ones((2, 3), np.float32)}
    with pytest.raises(WorkError, match="outputs are a, not logits"):
        exporting.compare("m", one, {"a": one["logits"]})
    with pytest.raises(WorkError, match=r"shape \[3, 2\], not \[2, 3\]"):
        exporting.compare("m", one, {"logits": one["logits"].T})


def test_an_opset_that_the_exporter_would_silently_replace_is_refused(tiny, tmp_path):
    with pytest.raises(WorkError, match="dynamo writes opsets 18 to 25, not 17; exporter torchscript can"):
        exporting.export(tiny(exporter="dynamo", opset=17), Workload(sequence=8), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_exporter_that_fails_says_why(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.OPSETS, "torchscript", range(1, 30))
    model = tiny().model_copy(update={"exporter": "torchscript", "opset": 27})
    with pytest.raises(WorkError, match=r"exporter torchscript failed at opset 27: .*27"):
        exporting.export(model, Workload(sequence=8), tmp_path)


def test_logits_without_a_head_are_refused_before_any_work(tiny, tmp_path):
    with pytest.raises(InputError, match="need head: lm"):
        exporting.export(tiny(head="none"), Workload(sequence=8), tmp_path / "out")
    assert not (tmp_path / "out").exists()


CACHED = [
    ({"num_key_value_heads": 2}, "last_logits"),
    ({"num_key_value_heads": 1, "tie_word_embeddings": True, "constant_folding": False}, "logits"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "head_dim": 12, "attention_bias": True}, "logits"),
    ({"head": "none"}, "hidden"),
]


@pytest.mark.parametrize(("more", "outputs"), CACHED)
def test_one_graph_of_a_cached_model_serves_every_batch_length_and_past(tiny, tmp_path, more, outputs):
    model, workload = tiny(cache=True, **more), Workload(sequence=1, outputs=outputs)
    facts = exporting.export(model, workload, tmp_path)
    json.dumps(facts)
    names = output_names(model, workload)
    assert list(facts["check"]) == names
    assert all(found["max_abs"] < 1e-4 for found in facts["check"].values())
    proto = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    heads, width = model.kv_heads, model.head_size
    last = {"hidden": 32, "logits": 96, "last_logits": 96}[outputs]
    assert shapes == {
        **{key: ["batch", "sequence"] for key in ("input_ids", "position_ids")},
        **{key: ["batch", heads, "past", width] for key in cache_names(model, "past")},
        names[0]: ["batch", 1 if outputs == "last_logits" else "sequence", last],
        **{key: ["batch", heads, "past + sequence", width] for key in cache_names(model, "present")},
    }
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    network = llama.build(model, workload)
    for batch, past, new in ((1, 0, 1), (3, 0, 20), (1, 30, 1), (2, 9, 5)):
        ids = token_ids(model, batch, past + new)
        whole = {"input_ids": ids, "position_ids": positions(batch, 0, past + new)}
        first, *kept = llama.run(network, model, workload, whole).values()
        given = {"input_ids": ids[:, past:], "position_ids": positions(batch, past, new)}
        cache = dict(zip(cache_names(model, "past"), (part[:, :, :past] for part in kept), strict=True))
        found = session.run(names, given | cache)
        for name, mine, other in zip(names, found, [first[:, -found[0].shape[1] :], *kept], strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4, err_msg=name)


def test_a_cached_graph_whose_mask_forgets_the_past_is_refused(tiny, tmp_path):
    model, workload = tiny(cache=True), Workload(sequence=1)
    exporting.export(model, workload, tmp_path)
    cases = exporting.expectations(llama.build(model, workload), model, workload)
    proto = onnx.load(tmp_path / "model.onnx")
    [compare] = [node for node in proto.graph.node if node.op_type == "LessOrEqual"]
    compare.op_type = "Equal"  # a token then sees itself and nothing before it
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(WorkError, match="output logits"):
        exporting.check(tmp_path, model, cases)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_given_weights_are_exported_and_not_the_models_own(tiny, tmp_path, exporter):
    model, workload = tiny(exporter=exporter), Workload(sequence=8)
    given = {name: weights.draw(name, shape, 7) for name, shape in weights.shapes(model).items()}
    exporting.export(model, workload, tmp_path, given)
    wanted = llama.run(llama.build(model, workload, given), model, workload)
    found = run(tmp_path / "model.onnx", make_inputs(model, workload))
    for mine, (name, other) in zip(found, wanted.items(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-4, err_msg=name)
    own = llama.run(llama.build(model, workload), model, workload)
    assert np.abs(own["logits"] - wanted["logits"]).max() > 1e-2


def test_given_weights_of_another_shape_stop_the_export(tiny, tmp_path):
    given = {name: np.zeros(shape[::-1], np.float32) for name, shape in weights.shapes(tiny()).items()}
    with pytest.raises(WorkError, match=r"embed_tokens\.weight has shape \[32, 96\], not \[96, 32\]"):
        exporting.export(tiny(), Workload(sequence=8), tmp_path, given)


@pytest.mark.parametrize("more", [{"cache": True}, {"tie_word_embeddings": True}], ids=["cached", "tied"])
def test_a_model_too_large_to_hold_is_exported_to_the_same_bytes(tiny, tmp_path, monkeypatch, more):
    model, workload = tiny(**more), Workload(sequence=8)
    exporting.export(model, workload, tmp_path / "held")
    monkeypatch.setattr(streamed, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(llama, "build", None)
    facts = exporting.export(model, workload, tmp_path / "streamed")
    assert all(found["max_abs"] < 1e-4 for found in facts["check"].values())
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "held" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 18), ("torchscript", 17)])
def test_a_model_above_2_gb_is_exported_with_its_weights_outside(tmp_path, exporter, opset):
    model = Model(hidden_size=4096, num_attention_heads=32, vocab_size=18000, exporter=exporter, opset=opset)
    assert model_bytes(model) > 1 << 31
    exporting.export(model, Workload(sequence=16), tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 1 << 20
    if exporter == "dynamo":
        assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
