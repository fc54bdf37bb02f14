"""Weights of products turned, so that what a product's row adds up lies together in memory."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from llama_bench.passes.fuse.values import CONTRIB, add_constant, constant_shape


def turn_weights(model: ir.Model) -> int:
    """Store the constant matrix [in, out] of every product as [out, in], and let the product turn it; say how many.

    On a GPU cuBLAS has more kernels for products of this form; which of the two is faster goes by the sizes. A matrix
    that something else reads too stays as it is.
    """
    graph, count = model.graph, 0
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" and not node.domain else None
        if weight is None or len(constant_shape(weight) or ()) != 2 or len(weight.uses()) > 1:
            continue
        turned = add_constant(graph, f"{weight.name}.turned", _turned(weight))
        attributes = {"transB": 1}
        made = ir.node("FusedMatMul", [node.inputs[0], turned], attributes, domain=CONTRIB, name=node.name)
        result, product = node.outputs[0], made.outputs[0]
        product.name, product.type, product.shape = result.name, result.type, result.shape
        graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(result, product, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        count += 1
    if count:
        graph.opset_imports[CONTRIB] = 1
    return count


def _turned(weight: ir.Value) -> ir.LazyTensor:
    """Return the constant turned, only as it is written."""
    tensor, shape = ir.convenience.get_const_tensor(weight), constant_shape(weight)
    assert tensor is not None and shape is not None
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(tensor.numpy().T)), dtype=tensor.dtype, shape=ir.Shape(shape[::-1])
    )
