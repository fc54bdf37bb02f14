"""YAML in which every value knows its file and line, so that an error can point at the place to mend.

Plain YAML only: a tag that would build a Python object is refused before anything is built, and so are duplicate keys
(naming both lines), aliases that hold themselves, and files that are not UTF-8 text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from llama_bench.errors import InputError, nearest

MAX_BYTES = 8 * 2**20  # a sweep of 10,000 models has 1 MB; what is larger is some other file
MAX_VALUES = 200_000  # aliases of aliases can make ten lines into more values than memory holds

_CORE = "tag:yaml.org,2002:"
_SCALARS = {f"{_CORE}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "merge")}
_COLLECTIONS = {f"{_CORE}map", f"{_CORE}seq"}


@dataclass(frozen=True, slots=True)
class Tree:
    """A value of a YAML file and where it stands.

    `value` is a dict of trees by key, a list of trees, or a scalar. `line` is that of the value's key (of the value
    itself in a list) and `path` how a reader finds it: `recipes.foo.passes[0]`.
    """

    value: Any
    file: Path
    line: int
    path: str

    def error(self, why: str, *, path: str | None = None) -> InputError:
        """Return the error `file:line: path: why`."""
        where = self.path if path is None else path
        return InputError(f"{self.file}:{self.line}: {where}{': ' if where else ''}{why}")

    def follow(self, keys: Sequence[str | int]) -> tuple[Tree, Sequence[str | int]]:
        """Follow `keys` as far as they lead; return the last value reached and the keys that are left."""
        here = self
        for i, key in enumerate(keys):
            try:
                here = here.value[key]
            except (KeyError, IndexError, TypeError):
                return here, keys[i:]
        return here, []

    def find(self, keys: Sequence[str | int]) -> Tree:
        """Return the value at `keys`, or the last one on the way there."""
        return self.follow(keys)[0]

    def plain(self) -> Any:
        """Return the value as ordinary dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


def kind(value: Any) -> str:
    """Say what a value is, in YAML's words."""
    if value is None:
        return "nothing"
    names = {
        bool: "true or false",
        dict: "a mapping",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)


def read(file: Path) -> Tree:
    """Read one YAML file whose top is a mapping; :class:`InputError` with file and line for anything else."""
    text = _text(file)
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False
    try:
        node = yaml.compose(text)
        if node is None:
            raise InputError(f"{file}:1: the file is empty")
        return _Builder(file, yaml).mapping_at_top(node)
    except RecursionError:
        raise InputError(f"{file}:1: not a sweep: values are nested too deeply") from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position or 0) + 1
        raise InputError(f"{file}:{line}: not YAML: {error.reason}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (
            f"{error.context}, {error.problem}" if error.context and "but" in str(error.problem) else error.problem
        )
        raise InputError(f"{file}:{mark.line + 1 if mark else 1}: not YAML: {problem}") from None
    except YAMLError as error:
        raise InputError(f"{file}:1: not YAML: {str(error).splitlines()[0]}") from None


def _text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = [path.name for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        raise InputError(f"{file}: no such file{nearest(file.name, siblings)}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{file}: larger than {MAX_BYTES // 2**20} MiB, so not a sweep")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}:{line}: not UTF-8 text (byte 0x{data[error.start]:02x})") from None


class _Builder:
    """Turns ruamel's nodes into trees; holds what is open (to see an alias inside itself) and how much was built."""

    def __init__(self, file: Path, yaml: YAML) -> None:
        self.file = file
        self.yaml = yaml
        self.open: set[int] = set()
        self.built = 0

    def mapping_at_top(self, node: Node) -> Tree:
        tree = self.tree(node, _line(node), "")
        if not isinstance(tree.value, dict):
            raise tree.error(f"a sweep is a mapping of keys to values, and this file holds {kind(tree.value)}")
        return tree

    def tree(self, node: Node, line: int, path: str) -> Tree:
        self.built += 1
        if self.built > MAX_VALUES:
            raise InputError(f"{self.file}:{line}: more than {MAX_VALUES} values")
        if id(node) in self.open:
            raise InputError(f"{self.file}:{line}: {path}: an alias that holds itself")
        self.open.add(id(node))
        try:
            return Tree(self._value(node, path), self.file, line, path)
        finally:
            self.open.remove(id(node))

    def _value(self, node: Node, path: str) -> Any:
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if str(node.tag) not in _COLLECTIONS:
            raise self._tag(node)
        if isinstance(node, SequenceNode):
            return [self.tree(child, _line(child), f"{path}[{i}]") for i, child in enumerate(node.value)]
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        raise TypeError(f"a YAML node of type {type(node).__name__}")

    def _mapping(self, node: MappingNode, path: str) -> dict[str, Tree]:
        merged: dict[str, Tree] = {}
        own: dict[str, Tree] = {}
        for key, child in node.value:
            line = _line(key)
            if not isinstance(key, ScalarNode):
                raise InputError(f"{self.file}:{line}: {path or 'the file'}: a key must be a word")
            if str(key.tag) == f"{_CORE}merge":
                for part in self._merged(child, line, path):
                    merged = part | merged  # of several, YAML lets the first win
                continue
            if str(key.tag) not in _SCALARS:
                raise self._tag(key)
            name = str(key.value)
            if name in own:
                where = f"{path}: " if path else ""
                raise InputError(f"{self.file}:{line}: {where}{name!r} is here twice; first on line {own[name].line}")
            own[name] = self.tree(child, line, f"{path}.{name}" if path else name)
        return merged | own

    def _merged(self, node: Node, line: int, path: str) -> Iterator[dict[str, Tree]]:
        for part in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.tree(part, line, path).value
            if not isinstance(value, dict):
                raise InputError(f"{self.file}:{line}: {path or 'the file'}: << takes a mapping, not {kind(value)}")
            yield value

    def _scalar(self, node: ScalarNode) -> Any:
        tag = str(node.tag)
        if tag not in _SCALARS:
            raise self._tag(node)
        if tag.endswith((":timestamp", ":merge")):
            return str(node.value)  # a name that looks like a date stays a name
        try:
            return self.yaml.constructor.construct_object(node)
        except (ValueError, ArithmeticError):  # such as more digits than Python reads
            raise InputError(f"{self.file}:{_line(node)}: {str(node.value)[:20]!r}… is not a usable number") from None

    def _tag(self, node: Node) -> InputError:
        tag = str(node.tag).replace(_CORE, "!!")
        return InputError(f"{self.file}:{_line(node)}: the tag {tag} is not allowed: a sweep is plain YAML")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def merge(base: Mapping[str, Tree], over: Mapping[str, Tree]) -> dict[str, Tree]:
    """Merge two mappings key by key, `over` winning; what is not a mapping on both sides is replaced as a whole."""
    merged = dict(base)
    for key, tree in over.items():
        below = base.get(key)
        if below is not None and isinstance(below.value, dict) and isinstance(tree.value, dict):
            merged[key] = Tree(merge(below.value, tree.value), tree.file, tree.line, tree.path)
        else:
            merged[key] = tree
    return merged
