"""By which names a recipe's options speak of a graph's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

HEAD = "lm_head"
"""The product that makes the logits answers to this name in every graph, whatever an exporter or a fusion called it."""


def names_of(node: ir.Node) -> list[str]:
    """Return the names of `node`: its own, its module's where the exporter kept it, those of the weights it reads.

    dynamo names nodes by their operator (`node_linear_3`) and keeps the module in the metadata, the TorchScript
    exporter puts the module into the name (`/model/layers.0/mlp/up_proj/MatMul`); here both have dots.
    """
    modules = node.metadata_props.get("namespace", "").split("/")[:-1]
    module = modules[-1].split(":")[0].strip() if modules else ""
    weights = [value.name for value in node.inputs if value is not None and value.is_initializer()]
    head = HEAD if any(_makes_logits(value) for value in node.outputs) else None
    return [name.replace("/", ".") for name in (node.name, module, *weights, head) if name]


def matches(node: ir.Node, patterns: Iterable[str]) -> bool:
    """Whether a name of `node` holds one of `patterns`, in which `*` and `?` stand for any characters."""
    names = names_of(node)
    return any(fnmatchcase(name, f"*{pattern}*") for name in names for pattern in patterns)


def unmatched(nodes: Sequence[ir.Node], patterns: Iterable[str]) -> str | None:
    """Return the first of `patterns` that no node has, None when all are of use."""
    return next((pattern for pattern in patterns if not any(matches(node, [pattern]) for node in nodes)), None)


def _makes_logits(value: ir.Value) -> bool:
    """Whether `value` is the graph's output `logits`, or nothing but a change of its shape or type away from it."""
    while not (value.is_graph_output() and value.name == "logits"):
        users = {use.node for use in value.uses()}
        if len(users) != 1 or (user := users.pop()).op_type not in ("Cast", "Reshape", "Squeeze", "Add"):
            return False
        value = user.outputs[0]
    return True
