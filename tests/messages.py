"""Every message that llama_bench can end with or warn of, found in its source.

A message is the text given to what :data:`SAYS` lists, assigned to a name of :data:`NAMES`, or returned by a function
of :data:`REASONS`; each value in it becomes an `…`. Where the text is a name or a call, it is followed to what the
function assigns to that name, or to what the called function of the same module returns.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "llama_bench"

SAYS: dict[str, int | str] = {
    "InputError": 0,
    "WorkError": 0,
    "StoreError": 0,
    "kind": 0,  # one of these errors, chosen before
    "refuse": 0,
    "error": 0,  # of a Tree: it adds file, line and key
    "warn": 0,
    "Lost": 3,
    "Fault": 1,
    "Built": "error",
    "write": "message",
    "waited": 0,
    "_say": 0,
    "explained": 1,
}
"""Function, method or class → which of its arguments is a message: its place or its keyword."""

VALUE_ERRORS = ("sweep_recipe", "passes/quantize/options", "bench/schedule", "bench/slot")
"""Modules whose ValueErrors reach people: through the reader of sweep files, or as the reason of a failure."""

NAMES = ("why", "need", "_WORDS", "MEANINGS")
"""What a reason is called before it is said."""

REASONS: dict[str, tuple[str, ...]] = {
    "bench/machine": ("_cpu_doubts", "_memory_doubts", "_gpu_doubts"),
    "cluster/connect": ("unserved",),
    "engines/cuda": ("why_not", "driver_fault"),
    "engines/openvino": ("missing",),
    "engines/tensorrt": ("missing",),
    "engines/torch_engine": ("missing", "missing_compiler"),
    "passes/__init__": ("misfit",),
    "passes/checkpoint": ("window_misfit",),
    "passes/distill/__init__": ("_fits",),
    "passes/prune/__init__": ("_misfit", "_fits_fours"),
    "passes/quantize/options": ("_calibration_misfit", "fits_cache", "fits_weights"),
    "stats/views": ("_explain",),
}
"""Functions that return or yield a reason, which others print."""


@dataclass(frozen=True)
class Message:
    """One message: where it is said, and its text with an `…` for each value."""

    where: str
    text: str


def messages() -> list[Message]:
    """Return every message of the package, in the order of its files."""
    return [message for path in sorted(PACKAGE.rglob("*.py")) for message in _of_module(path)]


def _of_module(path: Path) -> Iterator[Message]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    unknown = set(REASONS.get(name, ())) - set(functions)
    assert not unknown, f"{name}.py has no {unknown}, which tests/messages.py looks at"
    says = SAYS | ({"ValueError": 0} if name in VALUE_ERRORS else {})
    seen: set[str] = set()
    for scope in [tree, *functions.values()]:
        said = [value for node in _own(scope) for value in (*_argument(node, says), *_assigned(node, NAMES))]
        said += _given(scope) if getattr(scope, "name", "") in REASONS.get(name, ()) else []
        for value in said:
            for text in _texts(value, scope, functions):
                if text not in seen and re.search(r"[A-Za-z]{3}", text):
                    seen.add(text)
                    yield Message(f"{name}.py:{value.lineno}", text)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """Walk `scope` without the functions inside it."""
    for node in ast.iter_child_nodes(scope):
        if not isinstance(node, ast.FunctionDef):
            yield node
            yield from _own(node)


def _argument(node: ast.AST, says: dict[str, int | str]) -> list[ast.expr]:
    """Return the message that a call says, if it is one of `says`."""
    if not isinstance(node, ast.Call):
        return []
    place = says.get(node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
    if isinstance(place, int):
        return node.args[place : place + 1]
    return [keyword.value for keyword in node.keywords if place is not None and keyword.arg == place]


def _assigned(node: ast.AST, names: Collection[str]) -> list[ast.expr]:
    """Return what `node` assigns to one of `names`."""
    if not isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) or node.value is None:
        return []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [node.value] if any(getattr(target, "id", None) in names for target in targets) else []


def _given(scope: ast.AST) -> list[ast.expr]:
    """Return what a function returns, yields or collects."""
    found: list[ast.expr] = []
    for node in _own(scope):
        if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
            found.append(node.value.value if isinstance(node.value, ast.DictComp) else node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            found.append(node.args[0])
    return found


def _texts(value: ast.expr, scope: ast.AST, functions: dict[str, ast.FunctionDef], depth: int = 3) -> Iterator[str]:
    """Return the texts that `value` may be."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "…" for part in value.values]
        yield re.sub("…+", "…", "".join(str(part) for part in parts))
    elif isinstance(value, ast.IfExp):
        yield from _texts(value.body, scope, functions, depth)
        yield from _texts(value.orelse, scope, functions, depth)
    elif isinstance(value, ast.BoolOp | ast.Tuple):
        for one in value.values if isinstance(value, ast.BoolOp) else value.elts:
            yield from _texts(one, scope, functions, depth)
    elif isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        yield from (f"{text}…" for text in _texts(value.left, scope, functions, depth))
    elif isinstance(value, ast.Dict):
        for one in value.values:
            yield from _texts(one.body if isinstance(one, ast.Lambda) else one, scope, functions, depth)
    elif isinstance(value, ast.Name) and depth:
        for node in _own(scope):
            for assigned in _assigned(node, (value.id,)):
                yield from _texts(assigned, scope, functions, depth - 1)
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in functions and depth:
        called = functions[value.func.id]
        for returned in _given(called):
            yield from _texts(returned, called, functions, depth - 1)


SHARE = 0.3
"""An entry must hold this part of a message's letters, so that none explains what it knows little of."""


def covers(entry: str, text: str) -> bool:
    """Whether the documented `entry`, whose `…` stand for anything, is the message `text`."""
    pattern = ".*".join(re.escape(part) for part in entry.split("…"))
    enough = len(re.findall(r"\w", entry)) >= SHARE * len(re.findall(r"\w", text))
    return enough and re.fullmatch(pattern, text, flags=re.DOTALL) is not None
