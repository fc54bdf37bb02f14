"""Which types an operator may read and make, by ONNX's schemas and those of ONNX Runtime's own operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llama_bench.errors import WorkError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Slots:
    """The type of each input and output, as a variable (`T`) or as itself (`tensor(float)`), and what each may be."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]

    def input(self, place: int) -> str:
        """Return the type of an input; the last one stands for all that follow it."""
        return self.inputs[min(place, len(self.inputs) - 1)]

    def output(self, place: int) -> str:
        """Return the type of an output; the last one stands for all that follow it."""
        return self.outputs[min(place, len(self.outputs) - 1)]

    def may_be(self, slot: str, dtype: ir.DataType) -> bool:
        """Whether what has the type `slot` may be of `dtype`."""
        return tensor_type(dtype) in self.allowed.get(slot, {slot})


def tensor_type(dtype: ir.DataType) -> str:
    """Return the schemas' word for a tensor of `dtype`."""
    return f"tensor({dtype.name.lower()})"


def slots_of(node: ir.Node, opset: int) -> Slots:
    """Return the slots of `node` in the ONNX opset `opset`. Raises WorkError for an operator that nobody knows."""
    import onnx

    schema: Any
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        schema = _own_schemas().get((node.domain, node.op_type))
    if schema is None:
        where = f"{node.domain}." if node.domain else ""
        raise WorkError(f"node {node.name}: nobody knows the types of its operator {where}{node.op_type}")
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    return Slots(_types(schema.inputs), _types(schema.outputs), allowed)


def _types(parameters: Sequence[Any]) -> tuple[str, ...]:
    """Return the types of formal parameters; onnx and ONNX Runtime spell the attribute each in its own way."""
    return tuple(p.type_str if hasattr(p, "type_str") else p.typeStr for p in parameters)


@lru_cache(maxsize=1)
def _own_schemas() -> dict[tuple[str, str], Any]:
    """Return ONNX Runtime's schemas by domain and operator, those of ONNX's own domain that ONNX lacks among them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as runtime

    return {(schema.domain, schema.name): schema for schema in runtime.get_all_operator_schema()}


def infer(graph: ir.Graph, slots: Mapping[ir.Node, Slots]) -> dict[ir.Value, ir.DataType | None]:
    """Return the type of every value: what the graph says, else what its node's schema and inputs say."""
    types = {value: value.dtype for value in (*graph.inputs, *graph.initializers.values())}
    for node in graph:
        bound = {slots[node].input(i): types.get(x) for i, x in enumerate(node.inputs) if x is not None}
        for i, value in enumerate(node.outputs):
            types[value] = value.dtype or _made(node, slots[node].output(i), bound)
    return types


def _made(node: ir.Node, slot: str, bound: Mapping[str, ir.DataType | None]) -> ir.DataType | None:
    """Return the type of an output of `node` from its schema; attributes say it of those that make a type."""
    import onnx_ir as ir

    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "ConstantOfShape":
        value = node.attributes.get("value")
        return ir.DataType.FLOAT if value is None else value.as_tensor().dtype
    if slot in bound:
        return bound[slot]
    named = {tensor_type(dtype): dtype for dtype in ir.DataType}
    return named.get(slot)
