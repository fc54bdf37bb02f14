"""What is said of a node beside its operator: attributes, the weight that it reads and its sizes, small constants."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TensorProto

SHOWN_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "Transpose": ("perm",),
    "Gemm": ("transA", "transB"),
    "Concat": ("axis",),
    "Cast": ("to",),
    "GroupQueryAttention": ("num_heads", "kv_num_heads"),
    "MultiHeadAttention": ("num_heads",),
    "MatMulNBits": ("bits", "block_size"),
}
"""Operator → attributes that a reader wants to see beside its name."""

LARGEST = 2**63 - 1  # the end of a Slice that goes to the end
SLICE_BOUNDS = 4  # constants of a Slice whose bounds are all known: starts, ends, axes, steps

VALUES_SHOWN = 6  # of a constant of whole numbers, such as a shape


def layer(proto: NodeProto) -> int | None:
    """Return the number of the layer that a node's names give, as `layers.3` or `layers_3`."""
    scopes = [entry.value for entry in proto.metadata_props if "scope" in entry.key or "namespace" in entry.key]
    for name in (proto.name, *scopes, *proto.output):
        if found := re.search(r"layers?[._/](\d+)", name):
            return int(found[1])
    return None


def text(proto: NodeProto, inputs: Iterable[str], known: Mapping[str, TensorProto]) -> str:
    """Return what is worth reading beside the operator: attributes, the weight's name and sizes, small constants."""
    if proto.op_type == "Constant":
        return constant(known[proto.output[0]])
    words = [
        said
        for attribute in proto.attribute
        if attribute.name in SHOWN_ATTRIBUTES.get(proto.op_type, ()) and (said := _attribute(attribute))
    ]
    constants = [name for name in inputs if name in known]
    if proto.op_type == "Slice" and len(constants) >= SLICE_BOUNDS:
        return _bounds([constant(known[name]) for name in constants])
    for name in constants:
        tensor = known[name]
        weight = len(tensor.dims) > 1 or (len(tensor.dims) == 1 and tensor.dims[0] > VALUES_SHOWN)
        if weight and len(tensor.dims) == 1 and any(len(known[other].dims) > 1 for other in constants):
            words.append("bias" if "bias" in name else _dims(tensor))
        else:
            words.append(f"{_short_name(proto, name)} {_dims(tensor)}".strip() if weight else constant(tensor))
    for attribute in proto.attribute:
        bodies = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        words += [f"{attribute.name}: {len(body.node)} nodes inside" for body in bodies]
    return ", ".join(words)


def _bounds(constants: list[str]) -> str:
    """A Slice's bounds as Python writes them; its end is often the largest number that there is."""
    start, end = constants[:2]
    return f"{start}:{'' if end == str(LARGEST) else end}"


def _attribute(attribute: AttributeProto) -> str:
    """An attribute in words; nothing for a flag that is not set."""
    import onnx

    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name.startswith("trans"):
        return attribute.name if value else ""
    if attribute.name == "to":
        return str(onnx.TensorProto.DataType.Name(value)).lower()
    shown = " ".join(map(str, value)) if isinstance(value, list) else value
    return f"{attribute.name} {shown}"


def _short_name(proto: NodeProto, name: str) -> str:
    """A weight's name without its path, or the name of the layer that its node is in."""
    scopes = [re.sub(r"[^\w.].*", "", part) for part in proto.name.split("/")]
    candidates = [name, *(reversed(scopes[:-1]) if len(scopes) > 1 else [])]
    for candidate in candidates:
        if "::" in candidate or re.search(r"(^val|^_?\d+$|_\d+$|Constant|_output)", candidate):
            continue
        parts = [part for part in re.split(r"[./]", candidate) if part and part not in ("weight", "model", "T")]
        if parts and not parts[-1].isdigit():
            return parts[-1]
    return ""


def _dims(tensor: TensorProto) -> str:
    return "×".join(map(str, tensor.dims)) or "scalar"


def sizes(tensor: TensorProto) -> str:
    """Return type and sizes of a tensor."""
    import onnx

    return f"{onnx.TensorProto.DataType.Name(tensor.data_type).lower()} {_dims(tensor)}"


def constant(tensor: TensorProto) -> str:
    """Return a constant in words: the values of a small one, else its sizes."""
    import onnx

    from llama_bench.graph import is_external

    count = 1
    for size in tensor.dims:
        count *= size
    whole = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    numbers = whole or tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
    if not numbers or is_external(tensor) or count > (VALUES_SHOWN if whole else 1):
        return _dims(tensor)
    values = onnx.numpy_helper.to_array(tensor).ravel()
    words = [str(int(value)) if whole else f"{float(value):.4g}" for value in values]
    return f"[{' '.join(words)}]" if tensor.dims and count != 1 else (words[0] if words else "[]")
