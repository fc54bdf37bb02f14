"""The graph that is traced on shapes alone, and the weights that are written into it one at a time."""

from __future__ import annotations

import weakref

import numpy as np
import onnx
import pytest
import torch

from llama_bench.errors import WorkError
from llama_bench.graph import canonical_sha256
from llama_bench.model import dynamo, export, llama
from llama_bench.model.inputs import input_names, output_names
from llama_bench.sweep import Workload

SAME = {
    "static": {},
    "cached": {"cache": True, "num_key_value_heads": 2},
    "unfolded": {"constant_folding": False, "attention_bias": True},
    "flattened": {"flatten_tokens": True, "attention_bias": True, "mlp_bias": True},
    "fused by the exporter": {"opset": 23},
}


@pytest.mark.parametrize("more", SAME.values(), ids=SAME)
def test_the_graph_is_that_of_torchs_own_export_with_all_weights_in_memory(tiny, tmp_path, more):
    model, workload = tiny(**more), Workload(batch=2, sequence=8)
    network = llama.build(model, workload)
    export.write(network, model, workload, tmp_path / "model.onnx")
    with export.quiet():
        program = torch.onnx.export(
            network,
            tuple(dynamo.example(model, workload)),
            dynamo=True,
            optimize=model.constant_folding,
            input_names=input_names(model),
            output_names=output_names(model, workload),
            opset_version=model.opset,
            dynamic_shapes={"args": dynamo.dynamic_shapes(model)} if model.cache else None,
        )
    assert program is not None
    program.save(tmp_path / "theirs.onnx")
    assert canonical_sha256(tmp_path / "model.onnx") == canonical_sha256(tmp_path / "theirs.onnx")


def test_weights_come_in_any_order_and_few_at_a_time(tiny, tmp_path):
    model, workload = tiny(), Workload(sequence=8)
    network, alive = llama.build(model, workload), []

    def backwards():
        for name, array in reversed(list(export.tensors(network))):
            copy = array.copy()
            if copy.nbytes >= dynamo.INSIDE_BYTES:
                # one is written, one waits, and this one is made
                assert sum(reference() is not None for reference in alive) <= 2
                alive.append(weakref.ref(copy))
            yield name, copy

    export.write(network, model, workload, tmp_path / "model.onnx")
    dynamo.write(model, workload, tmp_path / "other.onnx", backwards())
    assert canonical_sha256(tmp_path / "model.onnx") == canonical_sha256(tmp_path / "other.onnx")
    assert len(alive) > 7


def test_matrices_lie_turned_in_the_data_file_under_a_name_that_says_so(tiny, tmp_path):
    model, workload = tiny(num_key_value_heads=2), Workload(sequence=8)
    network = llama.build(model, workload)
    export.write(network, model, workload, tmp_path / "model.onnx")
    slim = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in slim.graph.initializer
    }
    stored = {tensor.name: tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    for name, array in network.tensors():
        turned = array.ndim == 2 and "embed" not in name
        tensor = stored[f"{name}.T" if turned else name]
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array.T if turned else array, err_msg=name)
        if array.nbytes >= dynamo.INSIDE_BYTES:
            assert int(places[tensor.name]["offset"]) % dynamo.ALIGNMENT == 0
        else:
            assert not places[tensor.name]


def test_a_weight_that_nobody_gives_is_named(tiny, tmp_path):
    model, workload = tiny(), Workload(sequence=8)
    given = [pair for pair in export.tensors(llama.build(model, workload)) if pair[0] != "model.norm.weight"]
    with pytest.raises(WorkError, match=r"nothing was given for weight model\.norm\.weight"):
        dynamo.write(model, workload, tmp_path / "model.onnx", given)
