"""What half precision leaves in fp32: statistics of norms, angles of RoPE, whole numbers, what a recipe names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from llama_bench.errors import WorkError
from llama_bench.passes.names import matches

if TYPE_CHECKING:
    import onnx_ir as ir

ANGLES = ("Cos", "Sin")
"""Their inputs are positions times frequencies: fp16 knows no odd numbers above 2,048, bf16 none above 256."""

MEANS = ("ReduceMean", "ReduceSumSquare", "ReduceL2")
"""Operators that sum a norm's squares; those of fp16 end at 65,504."""

ALONG = ("Add", "Sqrt", "Reciprocal", "Div", "Mul", "Pow", "Max", "Clip")
"""Operators between the mean of the squares and the product with what is normalised."""


def in_fp32(graph: ir.Graph, keep: Sequence[str], is_float: Callable[[ir.Value | None], bool]) -> set[ir.Node]:
    """Return the nodes that stay in fp32; `is_float` says of which values that is a question.

    Raises WorkError when nothing in the graph is called by a name in `keep`.
    """
    found: set[ir.Node] = set()
    for word in keep:
        named = [node for node in graph if node.op_type == word or matches(node, [word])]
        if not named:
            raise WorkError(f"keep {word!r} is no operator and in no name of the graph")
        found.update(named)
    for node in graph:
        if node.op_type in ANGLES or _makes_whole_numbers(node, is_float):
            found |= _with_all_before(node, is_float)
        elif node.op_type in MEANS:
            found |= _statistics(node)
    return found


def _makes_whole_numbers(node: ir.Node, is_float: Callable[[ir.Value | None], bool]) -> bool:
    """Whether `node` turns numbers, which may be positions, into whole ones."""
    return node.op_type == "Cast" and is_float(node.inputs[0]) and not is_float(node.outputs[0])


def _with_all_before(node: ir.Node, is_float: Callable[[ir.Value | None], bool]) -> set[ir.Node]:
    """Return `node` and the nodes that its input is computed by, as far as it is in floating point."""
    found, open_nodes = {node}, [node]
    while open_nodes:
        before = (x.producer() for x in open_nodes.pop().inputs if x is not None and is_float(x))
        new = {other for other in before if other is not None} - found
        found |= new
        open_nodes += new
    return found


def _statistics(mean: ir.Node) -> set[ir.Node]:
    """Return a norm's nodes from the square to the product that normalises, which is the last one in fp32.

    So it is in Hugging Face's models, and ONNX Runtime fuses it in that form.
    """
    found = {mean}
    squared = mean.inputs[0].producer() if mean.inputs[0] is not None else None
    if squared is not None and squared.op_type in ("Pow", "Mul"):
        found.add(squared)
    open_nodes = [mean]
    while open_nodes:
        for user in _users(open_nodes.pop()):
            if user.op_type in ALONG and user not in found:
                found.add(user)
                if all(_is_statistic(x, found) for x in user.inputs):
                    open_nodes.append(user)
    return found


def _users(node: ir.Node) -> Iterable[ir.Node]:
    return (use.node for value in node.outputs for use in value.uses())


def _is_statistic(value: ir.Value | None, found: set[ir.Node]) -> bool:
    """Whether `value` is a constant or one of the numbers that follow from the mean."""
    return value is None or value.const_value is not None or value.producer() in found
