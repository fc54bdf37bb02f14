"""Tiny real models with a KV cache: as torch exports them, and with GroupQueryAttention written by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llama_bench.engines import Task
from llama_bench.model import export, llama, reference
from llama_bench.model.inputs import make_inputs
from llama_bench.sweep import Model, Workload

MODEL = Model(
    hidden_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    intermediate_size=96,
    vocab_size=128,
    max_position_embeddings=64,
    cache=True,
)

PREFILL = Workload(kind="prefill", batch=2, sequence=9)
DECODE = Workload(kind="decode", batch=2, context=7)


@dataclass(frozen=True)
class Variant:
    """A folder with a graph, and what torch computes."""

    folder: Path
    network: llama.Llama
    model: Model

    def task(self, workload: Workload) -> Task:
        return Task(self.model.model_dump(), workload.model_dump(), make_inputs(self.model, workload))

    def torch(self, workload: Workload) -> dict[str, np.ndarray]:
        """Return torch's outputs for `workload` by name, of a decode its keys and values too."""
        given = make_inputs(self.model, workload)
        if workload.kind == "decode":
            return llama.run(self.network, self.model, workload, given)
        return reference.outputs(self.network, self.model, workload, given)

    def logits(self, windows: np.ndarray) -> np.ndarray:
        """Return torch's logits [N, W, vocabulary] of windows of tokens."""
        return np.stack(list(reference.predict(self.network, self.model, windows)))


def exported(folder: Path, workload: Workload, model: Model = MODEL) -> Variant:
    network = llama.build(model, workload)
    export.write(network, model, workload, folder / "model.onnx")
    return Variant(folder, network, model)


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The traced graph with the logits of the last token."""
    return exported(tmp_path_factory.mktemp("growing"), DECODE)


@pytest.fixture(scope="session")
def growing_all(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The traced graph with the logits of all tokens."""
    return exported(tmp_path_factory.mktemp("growing_all"), PREFILL)


@pytest.fixture(scope="session")
def static(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The same model without a cache, with the logits of all tokens."""
    return exported(tmp_path_factory.mktemp("static"), PREFILL, MODEL.model_copy(update={"cache": False}))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Variant]:
    """Return a maker of the model with GroupQueryAttention: `cache` and `logits` are element types."""

    def make(workload: Workload = DECODE, **types: Any) -> Variant:
        folder, network = tmp_path_factory.mktemp("shared"), llama.build(MODEL, workload)
        onnx.save(with_group_query_attention(network, workload, **types), folder / "model.onnx")
        return Variant(folder, network, MODEL)

    return make


def with_group_query_attention(
    network: llama.Llama, workload: Workload, *, cache: int = TensorProto.FLOAT, logits: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """Write the network by hand as ONNX Runtime's own model builder does, keys and values in one buffer a layer.

    In another type than fp32 `cache` is cast around the operator, `logits` at the end.
    """
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    heads, kv, size = MODEL.num_attention_heads, MODEL.kv_heads, MODEL.head_size
    angles = np.outer(np.arange(64), MODEL.rope_theta ** -(np.arange(0, size, 2) / size))
    constants |= {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}

    def add(op: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        domain = "com.microsoft" if op == "GroupQueryAttention" else ""
        nodes.append(helper.make_node(op, inputs, list(outputs), domain=domain, **attributes))
        return outputs[0]

    def weight(name: str) -> str:
        constants[name] = weights[name].T.copy() if weights[name].ndim == 2 else weights[name]
        return name

    def norm(x: str, name: str, out: str) -> str:
        return add("SimplifiedLayerNormalization", [x, weight(f"{name}.weight")], out, epsilon=MODEL.rms_norm_eps)

    constants["embedding"] = weights["model.embed_tokens.weight"]
    x = add("Gather", ["embedding", "input_ids"], "x")
    for i in range(MODEL.num_hidden_layers):
        at = f"model.layers.{i}"
        normed = norm(x, f"{at}.input_layernorm", f"n{i}")
        qkv = [add("MatMul", [normed, weight(f"{at}.self_attn.{p}_proj.weight")], f"{p}{i}") for p in "qkv"]
        past = [f"past.{i}.{part}" for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        if cache != TensorProto.FLOAT:
            past = [add("Cast", [name], f"{name}.wide", to=TensorProto.FLOAT) for name in past]
        made = [f"{name}.made" if cache != TensorProto.FLOAT else name for name in present]
        attended = add(
            "GroupQueryAttention",
            [*qkv, *past, "seqlens_k", "total_sequence_length", "cos", "sin"],
            f"a{i}",
            *made,
            num_heads=heads,
            kv_num_heads=kv,
            do_rotary=1,
        )
        for wide, name in zip(made, present, strict=True):
            if wide != name:
                add("Cast", [wide], name, to=cache)
        x = add("Add", [x, add("MatMul", [attended, weight(f"{at}.self_attn.o_proj.weight")], f"o{i}")], f"r{i}")
        normed = norm(x, f"{at}.post_attention_layernorm", f"m{i}")
        gate = add("MatMul", [normed, weight(f"{at}.mlp.gate_proj.weight")], f"g{i}")
        silu = add("Mul", [gate, add("Sigmoid", [gate], f"s{i}")], f"t{i}")
        wide = add("Mul", [silu, add("MatMul", [normed, weight(f"{at}.mlp.up_proj.weight")], f"u{i}")], f"w{i}")
        x = add("Add", [x, add("MatMul", [wide, weight(f"{at}.mlp.down_proj.weight")], f"d{i}")], f"y{i}")
    x = norm(x, "model.norm", "normed")
    if workload.outputs == "last_logits":
        constants |= {"last": np.array([-1], np.int64)}
        x = add("Gather", [x, "last"], "kept", axis=1)
    add("MatMul", [x, weight("lm_head.weight")], "wide_logits")
    add("Cast", ["wide_logits"], "logits", to=logits)

    rows: Any = 1 if workload.outputs == "last_logits" else "sequence"
    values = [f"{i}.{part}" for i in range(MODEL.num_hidden_layers) for part in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        *(helper.make_tensor_value_info(f"past.{v}", cache, ["batch", kv, "length", size]) for v in values),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", logits, ["batch", rows, MODEL.vocab_size]),
        *(helper.make_tensor_value_info(f"present.{v}", cache, ["batch", kv, "length", size]) for v in values),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "shared", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
