"""MatMulNBits and GatherBlockQuantized: which layers become one, how near the outputs stay, what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llama_bench import passes
from llama_bench.errors import WorkError
from llama_bench.passes import checkpoint
from llama_bench.sweep import Model, Pass

VARIANTS: dict[str, dict[str, Any]] = {
    "static": {},
    "cached": {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "torchscript": {"exporter": "torchscript", "opset": 17},
    "biases": {"attention_mask": True, "flatten_tokens": True, "attention_bias": True, "mlp_bias": True},
    "gemm": {"flatten_tokens": True, "attention_bias": True, "exporter": "torchscript", "opset": 17},
    "unfolded": {"constant_folding": False},
}
LAYERS = 15
"""Seven linear layers in each of two decoder layers, and lm_head."""


def test_every_linear_layer_is_quantised_and_the_logits_stay_near(
    exported: Callable[..., Any], near: Callable[..., float], tmp_path: Path
) -> None:
    for variant, changed in VARIANTS.items():
        before = exported(**changed)
        after = before.applied(tmp_path / variant, {"quantize": {"bits": 4}})
        assert len(after.nodes("MatMulNBits")) == LAYERS, variant
        assert not any(array.size >= 64 * 32 for name, array in weights(after).items() if "embed" not in name), variant
        assert after.size() < 0.5 * before.size(), variant
        assert near(after.run()["logits"], before.run()["logits"]) > 0.98, variant


def weights(graph: Any) -> dict[str, np.ndarray]:
    """Return the matrices in fp32 that a product multiplies with."""
    held = graph.constants()
    read = {name for node in graph.proto.graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    return {name: array for name, array in held.items() if name in read and array.ndim == 2}


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"bits": 8}, 0.9999),
        ({"bits": 8, "symmetric": True}, 0.9999),
        ({"bits": 8, "accuracy_level": 0, "block_size": 16}, 0.9999),
        ({"bits": 4, "symmetric": True}, 0.98),
        ({"bits": 4, "accuracy_level": 0}, 0.98),
        ({"bits": 4, "method": "hqq"}, 0.985),
        ({"bits": 4, "method": "k_quant"}, 0.98),
        ({"bits": 4, "method": "gptq", "calibration_tokens": 512}, 0.97),
        ({"bits": 4, "method": "offsets"}, 0.985),
        ({"bits": 8, "method": "offsets", "accuracy_level": 0}, 0.9999),
        ({"bits": 2, "method": "hqq", "block_size": 16}, 0.8),
    ],
)
def test_each_method_keeps_the_logits_near(
    options: dict[str, Any], least: float, static: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    after = static.applied(tmp_path, {"quantize": options})
    [node, *others] = after.nodes("MatMulNBits")
    said = {attribute.name: attribute.i for attribute in node.attribute}
    level = options.get("accuracy_level", 4)
    expected = {"bits": options["bits"], "block_size": options.get("block_size", 32), "K": 64, "N": 64}
    assert said == expected | ({"accuracy_level": level} if level else {})
    assert len(others) == LAYERS - 1
    offsets = options.get("method") == "offsets"
    assert len(node.input) == (3 if options.get("symmetric") or offsets else 4)
    assert len(after.nodes("ReduceSum")) - len(static.nodes("ReduceSum")) == (9 if offsets else 0)  # one a value read
    assert near(after.run()["logits"], static.run()["logits"]) > least


def test_a_fused_graph_in_half_precision_is_quantised_in_half_precision(
    fused: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    steps = [{"precision": "fp16"}, {"quantize": {"bits": 4, "block_size": 16}}]
    after = fused.applied(tmp_path / "int4", *steps)
    products = after.nodes("MatMulNBits")
    assert len(products) == LAYERS - 4  # query, key and value are one
    scales = after.constants()[products[0].input[2]]
    assert scales.dtype == np.float16
    assert near(after.run(steps=[15, 1])["logits"], fused.run(steps=[15, 1])["logits"]) > 0.98


def test_gptq_is_nearer_to_the_original_on_its_text_than_rounding_is(static: Any, tmp_path: Path) -> None:
    options = {"bits": 4, "block_size": 32, "accuracy_level": 0}
    learned = static.applied(tmp_path / "gptq", {"quantize": {**options, "method": "gptq"}})
    rounded = static.applied(tmp_path / "rtn", {"quantize": options})
    text = checkpoint.windows(static.model, checkpoint.OnText(), 16, 256)
    distance = dict.fromkeys(("gptq", "rtn"), 0.0)
    for pair in text.reshape(-1, 2, 16):
        expected = static.run(pair)["logits"]
        for name, graph in (("gptq", learned), ("rtn", rounded)):
            distance[name] += float(np.square(graph.run(pair)["logits"] - expected).sum())
    assert distance["gptq"] < 0.8 * distance["rtn"]


def test_gptq_goes_through_a_cached_graph_of_fused_operators(
    fused: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    options = {"method": "gptq", "calibration_tokens": 300, "window": 48}
    after = fused.applied(tmp_path / "gptq", {"quantize": options})
    assert len(after.nodes("MatMulNBits")) == LAYERS - 4
    assert near(after.run()["logits"], fused.run()["logits"]) > 0.97
    assert list((tmp_path / "gptq" / "state-0").iterdir()) == []


def test_excluded_layers_stay_as_they_are(exported: Callable[..., Any], tmp_path: Path) -> None:
    for variant in ("static", "torchscript", "cached"):
        before = exported(**VARIANTS[variant])
        said = {"quantize": {"exclude": ("lm_head", "layers.1.mlp.*_proj")}}
        after = before.applied(tmp_path / variant, said)
        assert len(after.nodes("MatMulNBits")) == LAYERS - 4, variant
        assert len(after.nodes("MatMul")) == len(before.nodes("MatMul")) - (LAYERS - 4), variant


@pytest.mark.parametrize(
    ("said", "made"), [({"bits": 8}, "MatMulNBits"), ({"name": "dynamic"}, "MatMulIntegerToFloat")]
)
def test_frequencies_of_rope_are_no_weights(
    said: dict[str, Any], made: str, cached: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    after = cached.applied(tmp_path / "made", {"onnxscript": "optimize_for_ort"}, {"quantize": said})
    assert len(after.nodes(made)) == LAYERS
    assert near(after.run()["logits"], cached.run()["logits"]) > 0.999


def test_lm_head_keeps_its_name_after_fusions(fused: Any, tmp_path: Path) -> None:
    after = fused.applied(tmp_path / "made", {"quantize": {"exclude": ("lm_head",)}})
    [head] = [node for node in after.proto.graph.node if "logits" in node.output]
    assert head.op_type == "MatMul"


def test_offsets_work_on_flattened_tokens_and_with_a_cache(
    exported: Callable[..., Any], near: Callable[..., float], tmp_path: Path
) -> None:
    for variant in ("cached", "biases", "gemm"):
        before = exported(**VARIANTS[variant])
        after = before.applied(tmp_path / variant, {"quantize": {"bits": 8, "method": "offsets"}})
        assert near(after.run()["logits"], before.run()["logits"]) > 0.9999, variant


def test_offsets_of_a_fused_graph_in_half_precision_are_in_half_precision(
    fused: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    steps = [{"precision": "fp16"}, {"quantize": {"bits": 4, "block_size": 16, "method": "offsets"}}]
    after = fused.applied(tmp_path / "int4", *steps)
    assert near(after.run(steps=[15, 1])["logits"], fused.run(steps=[15, 1])["logits"]) > 0.985


def test_lm_head_may_have_other_bits(fused: Any, near: Callable[..., float], tmp_path: Path) -> None:
    all_alike = fused.applied(tmp_path / "four", {"quantize": {"bits": 4}})
    after = fused.applied(tmp_path / "eight", {"quantize": {"bits": 4, "head_bits": 8}})
    bits = [
        attribute.i for node in after.nodes("MatMulNBits") for attribute in node.attribute if attribute.name == "bits"
    ]
    assert bits == [4] * (LAYERS - 5) + [8]
    expected = fused.run()["logits"]
    assert near(after.run()["logits"], expected) > near(all_alike.run()["logits"], expected)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_embeddings_are_looked_up_in_quantised_rows(
    bits: int, cached: Any, near: Callable[..., float], tmp_path: Path
) -> None:
    plain = cached.applied(tmp_path / "plain", {"quantize": {"bits": bits}})
    after = cached.applied(tmp_path / "rows", {"quantize": {"bits": bits, "embeddings": True}})
    assert len(after.nodes("GatherBlockQuantized")) == 1
    assert not after.nodes("Gather") or all("input_ids" not in node.input for node in after.nodes("Gather"))
    assert after.size() < plain.size() - 128 * 64 * 4 * (1 - bits / 32) * 0.7
    found = near(after.run()["logits"], cached.run()["logits"])
    assert found > {2: 0.5, 4: 0.97, 8: 0.9999}[bits]


def test_the_source_is_not_changed_and_may_be_read_only_links(static: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in static.folder.iterdir():
        os.link(file, source / file.name)
    before = {file.name: file.read_bytes() for file in source.iterdir()}
    source.chmod(0o555)
    try:
        linked = type(static)(static.model, static.workload, source)
        after = linked.applied(tmp_path / "made", {"quantize": {"bits": 8}})
        assert len(after.nodes("MatMulNBits")) == LAYERS
        assert {file.name: file.read_bytes() for file in source.iterdir()} == before
    finally:
        source.chmod(0o755)


MISFITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"bits": 4, "block_size": 64}, {}, "block_size 64 does not divide intermediate_size 96"),
    ({"block_size": 128}, {"intermediate_size": 128}, "block_size 128 does not divide hidden_size 64"),
    ({"block_size": 48}, {}, "block_size: input should be 16, 32, 64, 128 or 256"),
    ({"bits": 3}, {}, "bits: input should be 2, 4 or 8"),
    ({"method": "awq"}, {}, "method: input should be 'rtn', 'hqq', 'gptq', 'k_quant' or 'offsets'"),
    ({"method": "offsets", "symmetric": True}, {}, "symmetric: offsets are in place of zero points"),
    ({"head_bits": 8}, {"head": "none"}, "head_bits is for lm_head, and the model has head: none"),
    ({"method": "k_quant", "symmetric": True}, {}, "symmetric: k_quant always has zero points"),
    ({"window": 16}, {}, "window is for gptq, which alone looks at text, not for rtn"),
    ({"method": "gptq", "window": 65}, {}, "a window of 65 tokens is longer than max_position_embeddings 64"),
    (
        {"method": "gptq", "calibration_tokens": 20},
        {"cache": True},
        "calibration_tokens 20 are fewer than a window of 64",
    ),
]


@pytest.mark.parametrize(("options", "changed", "message"), MISFITS)
def test_what_does_not_fit_is_refused_before_anything_is_built(
    options: dict[str, Any], changed: dict[str, Any], message: str, static: Any
) -> None:
    model = Model(**{**static.model.model_dump(), **changed})
    found = passes.misfit([Pass.model_validate({"quantize": options})], model)
    assert found is not None
    assert message in found[1].replace("Input", "input")


def test_what_only_the_graph_knows_is_an_error_that_names_it(
    static: Any, exported: Callable[..., Any], tmp_path: Path
) -> None:
    odd = exported(intermediate_size=72)
    with pytest.raises(WorkError, match=r"node node_linear_6: block_size 32 does not divide its 72 inputs"):
        odd.applied(tmp_path / "odd", {"quantize": {"bits": 4}})
    with pytest.raises(WorkError, match=r"quantize weights: exclude 'lm_haed' matches none of the 15 linear layers"):
        static.applied(tmp_path / "name", {"quantize": {"exclude": ("lm_haed",)}})
    with pytest.raises(WorkError, match=r"quantize weights gptq: the graph takes 16 tokens at a time, not a window"):
        static.applied(tmp_path / "window", {"quantize": {"method": "gptq", "window": 32}})


def test_a_text_shorter_than_a_window_is_an_error(cached: Any, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.", encoding="utf-8")
    options = {"method": "gptq", "file": str(text), "window": 32, "calibration_tokens": 64}
    with pytest.raises(WorkError, match=r"quantize weights gptq: .*tokens"):
        cached.applied(tmp_path / "made", {"quantize": options})


MEASURED = """
import sys
from pathlib import Path
from llama_bench import passes
from llama_bench.bench.proc import peak_bytes
from llama_bench.passes.info import Work
from llama_bench.sweep import Model, Pass, Workload
step = Pass.model_validate(eval(sys.argv[1]))
model = Model(hidden_size=1024, num_attention_heads=8, intermediate_size=4096, vocab_size=8192)
work = Work(passes.name_of(step), passes.options_of(step), Path(sys.argv[2]), Path(sys.argv[3]), model,
            Workload(sequence=16), Path(sys.argv[3]))
passes.APPLY[step.family](work)
print(peak_bytes())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "said", [{"quantize": {"bits": 4}}, {"quantize": {"name": "dynamic"}}, {"precision": {"name": "bf16"}}]
)
def test_a_pass_takes_at_most_three_times_the_models_bytes(said: dict[str, Any], tmp_path: Path) -> None:
    size = large(tmp_path / "large", layers=22)
    made = tmp_path / "made"
    made.mkdir()
    command = [sys.executable, "-c", MEASURED, repr(said), str(tmp_path / "large"), str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3 * size
    assert sum(file.stat().st_size for file in made.iterdir()) < 0.55 * size


def large(folder: Path, layers: int) -> int:
    """Write a chain of `layers` matrices of 16 MiB outside the graph's file; return their bytes."""
    folder.mkdir()
    graph = helper.make_graph(
        [
            node
            for i in range(layers // 2)
            for node in (
                helper.make_node("MatMul", [f"x{i}", f"up{i}"], [f"h{i}"], f"up_{i}"),
                helper.make_node("MatMul", [f"h{i}", f"down{i}"], [f"x{i + 1}"], f"down_{i}"),
            )
        ],
        "large",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["tokens", 1024])],
        [helper.make_tensor_value_info(f"x{layers // 2}", TensorProto.FLOAT, ["tokens", 1024])],
    )
    rng, offset = np.random.default_rng(0), 0
    with (folder / "data").open("wb") as file:
        for i in range(layers // 2):
            for name, shape in ((f"up{i}", (1024, 4096)), (f"down{i}", (4096, 1024))):
                size = file.write(rng.standard_normal(shape, dtype=np.float32).tobytes())
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", "data"), ("offset", offset), ("length", size)):
                    tensor.external_data.add(key=key, value=str(value))
                graph.initializer.append(tensor)
                offset += size
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    return offset
