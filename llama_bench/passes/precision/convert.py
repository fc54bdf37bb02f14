"""A graph in fp32 to one in half precision, node by node, with Casts where the two meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from llama_bench.errors import WorkError
from llama_bench.passes.precision.fp32 import in_fp32
from llama_bench.passes.precision.slots import Slots, infer, slots_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from llama_bench.passes import made


def convert(model: ir.Model, name: str, keep: Sequence[str], *, cache: bool = True) -> None:
    """Convert the graph of `model` in place to `name` (fp16 or bf16); see :func:`llama_bench.passes.precision.work`.

    With `cache` inputs and outputs that are keys and values by their names come along.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as common

    half = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[name]
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    try:
        _Conversion(model.graph, half, name, keep, cache).run()
    except WorkError as error:
        raise WorkError(f"precision {name}: {error}") from error


class _Conversion:
    """One graph on its way: the type that each value had, and its copies in the other type."""

    def __init__(self, graph: ir.Graph, half: ir.DataType, name: str, keep: Sequence[str], cache: bool) -> None:
        import onnx_ir as ir

        self.graph, self.half, self.full, self.name = graph, half, ir.DataType.FLOAT, name
        self.past: tuple[str, ...] = ("past.",) if cache else ()
        self.present: tuple[str, ...] = ("present.",) if cache else ()
        for node in graph:
            if any(
                attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
                for attribute in node.attributes.values()
            ):
                raise WorkError(f"node {node.name} ({node.op_type}) holds a graph of its own, which is not converted")
        opset = graph.opset_imports[""]
        self.slots: dict[ir.Node, Slots] = {node: slots_of(node, opset) for node in graph}
        self.types = infer(graph, self.slots)
        self.kept = in_fp32(graph, keep, self.was_float)
        self.copies: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def was_float(self, value: ir.Value | None) -> bool:
        return value is not None and self.types.get(value) == self.full

    def run(self) -> None:
        import onnx_ir as ir

        for value in self.graph.inputs:
            if self.was_float(value) and (value.name or "").startswith(self.past):
                value.type = ir.TensorType(self.half)
        for node in list(self.graph):
            if node not in self.kept:
                self._make(node)
            for i, x in enumerate(node.inputs):
                if self.was_float(x):
                    assert x is not None
                    node.replace_input_with(i, self._as(x, self._wanted(node, i)))
        for i, value in enumerate(self.graph.outputs):
            if self.was_float(value):
                self.graph.outputs[i] = self._outside(value)

    def _make(self, node: ir.Node) -> None:
        """Let `node` compute in half precision what its schema allows."""
        import onnx_ir as ir

        slots = self.slots[node]
        for i, value in enumerate(node.outputs):
            if self.was_float(value) and slots.may_be(slots.output(i), self.half):
                value.type = ir.TensorType(self.half)
                if node.op_type == "Cast":
                    node.attributes["to"] = ir.AttrInt64("to", self.half)
                elif node.op_type == "ConstantOfShape":
                    held = node.attributes.get("value")
                    number = 0.0 if held is None else held.as_tensor().numpy()
                    tensor = ir.tensor(self._rounded(np.reshape(number, 1)))
                    node.attributes["value"] = ir.AttrTensor("value", tensor)

    def _wanted(self, node: ir.Node, place: int) -> ir.DataType:
        """Return the type in which `node` reads its input at `place`, which was fp32."""
        x = node.inputs[place]
        assert x is not None
        if node.op_type == "Cast" and node not in self.kept:
            return x.dtype or self.full  # it reads either
        slots = self.slots[node]
        return self.half if node not in self.kept and slots.may_be(slots.input(place), self.half) else self.full

    def _as(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return `value` in `dtype`: itself, or a copy that all readers share."""
        if value.dtype == dtype or (value.dtype is None and dtype == self.full):
            return value
        if (value, dtype) not in self.copies:
            tensor = value.const_value
            copy = self._constant(value) if tensor is not None else self._cast(value, dtype)
            self.copies[value, dtype] = copy
        return self.copies[value, dtype]

    def _constant(self, value: ir.Value) -> ir.Value:
        """Give the graph a copy of a constant in half precision, made when it is written."""
        import onnx_ir as ir

        from llama_bench.passes import made

        tensor = value.const_value
        assert tensor is not None

        @contextmanager
        def rounded() -> Iterator[made.Rows]:
            held = [tensor.numpy()]

            def some(target: np.ndarray, start: int, end: int) -> None:
                target[...] = self._rounded(held[0][start:end])

            yield some
            held.clear()
            made.release(tensor)

        name, dims = f"{value.name}.{self.name}", tuple(tensor.shape.numpy())
        shape = ir.Shape(dims)
        lazy: ir.TensorProtocol = (
            made.Made(rounded, self.half, shape, name) if dims else ir.tensor(self._rounded(tensor.numpy()), name=name)
        )
        copy = ir.Value(name=name, shape=shape, type=ir.TensorType(self.half), const_value=lazy)
        self.graph.register_initializer(copy)
        return copy

    def _rounded(self, array: np.ndarray) -> np.ndarray:
        """Return `array` in half precision; what is beyond its range becomes its largest number, not infinity."""
        largest = float(self.half.max)
        return np.clip(np.asarray(array, np.float32), -largest, largest).astype(self.half.numpy())

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        import onnx_ir as ir

        name = f"{value.name}_{self.name if dtype == self.half else 'fp32'}"
        node = ir.node("Cast", [value], {"to": dtype}, name=f"{name}_cast")
        result = node.outputs[0]
        result.name, result.type, result.shape = name, ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return result

    def _outside(self, value: ir.Value) -> ir.Value:
        """Return what the graph gives out for `value`, by its name: keys and values in half precision, others not."""
        name = value.name or ""
        result = self._as(value, self.half if name.startswith(self.present) else self.full)
        if result is not value:
            value.name = f"{name}_{'fp32' if result.dtype == self.half else self.name}"
            result.name = name
        return result
