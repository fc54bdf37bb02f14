"""What goes into an own model's inputs where a sweep does not say: sizes from names and places, numbers from types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_bench.errors import InputError, nearest
from llama_bench.sweep_own import WHOLE, OwnModel
from llama_bench.yaml_lines import kind

DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
"""Number of a type in onnx.TensorProto → numpy's word, where numpy has that type."""

HIGH = 2
"""Whole numbers are below this where no table says how many rows it has: right for flags, types and small choices."""

PLACES = ("batch", "sequence")
"""What a dimension without a telling name is, by its place."""


WORDS = (*PLACES, "tokens")
"""What a dimension may be besides a number."""


class Unclear(InputError):
    """An input that cannot be inferred, or a given one that does not fit; `at` are the keys to mend in the model."""

    def __init__(self, why: str, *at: str | int) -> None:
        super().__init__(why)
        self.at = at


def numpy_word(elem_type: int) -> str | None:
    """Return numpy's word for a type of onnx.TensorProto, None where numpy has none."""
    return DTYPES.get(elem_type)


def onnx_word(elem_type: int) -> str:
    """Return ONNX's word for a type."""
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(elem_type)).lower()


def inputs(path: Path, found: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every input's shape, dtype and numbers: `given` by the sweep where it says, inferred where not.

    `found` are the file's inputs (name, dtype, shape, rows of the table that it looks up). Symbols mean one size
    wherever they are: first what a given shape says, then by name (`…batch…`, `…past…` is an empty cache, `…seq…`),
    then by place (first `batch`, second `sequence`). Raises Unclear.
    """
    names = [entry["name"] for entry in found]
    for name in given:
        if name not in names:
            raise Unclear(f"{path.name} has no input {name!r}{nearest(name, names)}", "inputs", name)
    sizes: dict[str, Any] = {}
    given = {name: {key: value for key, value in own.items() if value is not None} for name, own in given.items()}
    for entry in found:
        _bind(path, entry, given.get(entry["name"], {}), sizes)
    for entry in found:
        for symbol in entry["shape"] or ():
            if isinstance(symbol, str) and (size := _by_name(symbol)) is not None:
                sizes.setdefault(symbol, size)
    made = {}
    for entry in found:
        own = dict(given.get(entry["name"], {}))
        shape = own.pop("shape") if "shape" in own else _shape(path, entry, sizes)
        own.pop("dtype", None)
        numbers = own if own else _numbers(entry)
        made[entry["name"]] = {"shape": shape, "dtype": entry["dtype"], **numbers}
    return made


def check(model: OwnModel, batch: int, sequence: int) -> None:
    """Raise InputError when a workload's batch and sequence are not sizes of this model's inputs.

    Tokens a second would be wrong where a graph of one fixed size is asked for another.
    """
    shapes = {name: given.shape or () for name, given in model.inputs.items()}
    words = {size for shape in shapes.values() for size in shape}
    for place, (word, number) in enumerate(zip(PLACES, (batch, sequence), strict=True)):
        fixed = {shape[place] for shape in shapes.values() if len(shape) > place}
        if not words & {word, "tokens"} and number != 1 and number not in fixed:
            sizes = "; ".join(f"{name} {_words(shape)}" for name, shape in shapes.items()) or "it has no inputs"
            raise InputError(f"model {model.label}: no input takes {word} {number} ({sizes}); say {word}: 1")
    for name, given in model.inputs.items():
        numbers = given.numbers(batch, sequence)
        if given.value == "positions" and given.high is not None and numbers and numbers[-1] > given.high:
            raise InputError(
                f"model {model.label}: positions up to {numbers[-1]} in {name!r}, whose table has {given.high} rows"
            )


def _bind(path: Path, entry: Mapping[str, Any], given: Mapping[str, Any], sizes: dict[str, Any]) -> None:
    """Take the meaning of symbols from a given shape, and refuse one that is not this input's."""
    name, own, shape = entry["name"], given.get("shape"), entry["shape"]
    what = f"input {name!r} of {path.name} is {entry['dtype']}"
    if given.get("dtype", entry["dtype"]) != entry["dtype"]:
        raise Unclear(f"{given['dtype']!r} here, but {what}", "inputs", name, "dtype")
    if "high" in given and entry["dtype"] not in WHOLE:
        raise Unclear(f"high is for whole numbers, and {what}", "inputs", name, "high")
    value = given.get("value", 0)
    if not (isinstance(value, bool | int | float) or value == "positions"):
        why = "must be one number, true or false, or positions (0, 1, 2 …)"
        raise Unclear(f"{why}, not {_shown(value)}", "inputs", name, "value")
    if isinstance(value, float) and not value.is_integer() and entry["dtype"] in WHOLE:
        raise Unclear(f"{value:g} is no whole number, and {what}", "inputs", name, "value")
    for i, size in enumerate(own if isinstance(own, list) else ()):
        if isinstance(size, bool) or not (size in WORDS or (isinstance(size, int) and size >= 0)):
            why = f"must be a whole number or a word of the workload, not {_shown(size)}"
            raise Unclear(f"{why}{nearest(str(size), WORDS)}", "inputs", name, "shape", i)
    if not isinstance(own, list) or shape is None:
        return
    if len(own) != len(shape):
        why = f"{_words(own)} has {len(own)} dimensions, but input {name!r} of {path.name} has {len(shape)}"
        raise Unclear(f"{why}: {_words(shape)}", "inputs", name, "shape")
    for i, (mine, theirs) in enumerate(zip(own, shape, strict=True)):
        if isinstance(theirs, int) and isinstance(mine, int) and mine != theirs:
            why = f"{mine} here, but dimension {i} of input {name!r} is {theirs} in {path.name}"
            raise Unclear(why, "inputs", name, "shape", i)
        if isinstance(theirs, str):
            sizes.setdefault(theirs, mine)


def _by_name(symbol: str) -> Any:
    """Return what a symbol's name says that it is, None where it says nothing."""
    name = symbol.lower()
    if "batch" in name:
        return "batch"
    if "past" in name and not ("+" in name or "total" in name):
        return 0
    return "sequence" if "seq" in name or "past" in name or "total_len" in name else None


def _shape(path: Path, entry: Mapping[str, Any], sizes: dict[str, Any]) -> list[Any]:
    name, shape = entry["name"], entry["shape"]
    if shape is None:
        raise Unclear(
            f"{path}: input {name!r} does not say its shape; add to this model "
            f"inputs: {{{name}: {{shape: [batch, sequence]}}}} with the dimensions that it has"
        )
    found: list[Any] = []
    for place, size in enumerate(shape):
        if isinstance(size, int):
            found.append(size)
        elif size in sizes:
            found.append(sizes[size])
        elif place < len(PLACES):
            found.append(PLACES[place])
            if size is not None:
                sizes[size] = PLACES[place]
        else:
            written = [*found, *(s if isinstance(s, int) or s else "N" for s in shape[place:])]
            which = f"dimension {place}" + (f" ({size})" if size else "")
            raise Unclear(
                f"{path}: nothing says how long {which} of input {name!r} is; add to this model "
                f"inputs: {{{name}: {{shape: {_words(written)}}}}} with a number for {size or 'N'}"
            )
    return found


def _numbers(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return `value` or `high` of an input by its name, its table and its type; a float is drawn from N(0, 1)."""
    name, dtype = entry["name"].lower(), entry["dtype"]
    if dtype == "bool":
        return {"value": True}
    if "mask" in name:
        return {"value": 1}
    if dtype not in WHOLE:
        return {}
    if "position" in name:
        return {"value": "positions", **({"high": entry["rows"]} if entry["rows"] else {})}
    return {"high": entry["rows"] or HIGH}


def _shown(value: Any) -> str:
    return kind(value) if isinstance(value, dict | list) or value is None else repr(value)


def _words(shape: Sequence[Any]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
