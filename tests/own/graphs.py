"""Graphs of somebody's own: a tagger of tokens with two inputs and two outputs, and a small convolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH, INNER, CLASSES = 50, 16, 64, 8


def tagger(path: Path, *, external: bool = False, opset: int = 17, seed: int = 0) -> Path:
    """Write a graph of `input_ids` and `attention_mask` [batch, sequence]: `scores` of each token, and its `label`.

    Its first product is a Transpose before a Gemm, which `fuse_transpose_into_gemm` takes into the Gemm.
    """
    random = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / shape[-1] ** 0.5, name)

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"], "embed"),
        helper.make_node("Cast", ["attention_mask"], ["mask"], "mask", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["masks"], "masks"),
        helper.make_node("Mul", ["words", "masks"], ["masked"], "masking"),
        helper.make_node("Reshape", ["masked", "columns"], ["rows"], "rows"),
        helper.make_node("Transpose", ["up"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("Gemm", ["rows", "turned", "up_bias"], ["inner"], "up"),
        helper.make_node("Relu", ["inner"], ["active"], "relu"),
        helper.make_node("MatMul", ["active", "down"], ["scores"], "down"),
        helper.make_node("ArgMax", ["scores"], ["label"], "choose", axis=-1, keepdims=0),
    ]
    ids = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"])
        for n in ("input_ids", "attention_mask")
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["tokens", CLASSES]),
        helper.make_tensor_value_info("label", TensorProto.INT64, ["tokens"]),
    ]
    constants = [
        weight("table", WORDS, WIDTH),
        weight("up", INNER, WIDTH),
        weight("up_bias", INNER),
        weight("down", INNER, CLASSES),
        numpy_helper.from_array(np.array([-1]), "last"),
        numpy_helper.from_array(np.array([-1, WIDTH]), "columns"),
    ]
    return _write(path, nodes, ids, outputs, constants, opset, external)


def pictures(path: Path, *sizes: Any) -> Path:
    """Write a graph of `pixels` (their shape is `sizes`, or [N, 3, height, width]): one 3 × 3 convolution."""
    kernel = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, sizes or ["N", 3, "height", "width"])
    edges = helper.make_tensor_value_info("edges", TensorProto.FLOAT, [None] * 4)
    node = helper.make_node("Conv", ["pixels", "kernel"], ["edges"], "conv", pads=[1, 1, 1, 1])
    return _write(path, [node], [pixels], [edges], [numpy_helper.from_array(kernel, "kernel")], 17, False)


def _write(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    constants: list[Any],
    opset: int,
    external: bool,
) -> Path:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="ours")
    path.parent.mkdir(parents=True, exist_ok=True)
    outside = (
        {"save_as_external_data": True, "location": f"{path.name}.data", "size_threshold": 512} if external else {}
    )
    onnx.save_model(model, str(path), **outside)
    return path
