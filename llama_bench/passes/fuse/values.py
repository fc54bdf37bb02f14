"""What the fusions ask of a value in a graph, and the constants that they add."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import onnx_ir as ir

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """Return the numbers of a constant, None for everything else."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """Return the one number of a constant, None for everything else."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of a constant without a look at its numbers, None for everything else."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tuple(cast("list[int]", list(tensor.shape)))


def shape_of(value: ir.Value) -> tuple[Any, ...]:
    """Return the dimensions of `value`, numbers or names; empty where the graph does not say."""
    return () if value.shape is None else tuple(getattr(dim, "value", dim) for dim in list(value.shape))


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol | np.ndarray[Any, Any]) -> ir.Value:
    """Give `graph` a constant under `name` and return it."""
    held = ir.tensor(tensor, name=name) if isinstance(tensor, np.ndarray) else tensor
    shape = ir.Shape(cast("list[int]", list(held.shape)))
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(held.dtype), const_value=held)
    graph.register_initializer(value)
    return value
