"""From the tree that is written to the one that is meant: models spelled out, grids unrolled, other files looked up.

All before the keys are checked; every value keeps the file and the line at which it is to be mended.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from llama_bench.errors import InputError, LlamaBenchError, nearest
from llama_bench.sweep_model import Model
from llama_bench.sweep_own import DERIVED, OWN_KEYS
from llama_bench.yaml_lines import Tree, kind


@dataclass(frozen=True, slots=True)
class Described:
    """What a checkpoint says of itself.

    `source` is how the sweep keeps it: an absolute path, or a hub name with its commit. `path` is the folder or the
    GGUF file on this machine, `config` has its sizes by the keys of `Model` (what is left out has Model's default),
    `sha256` is over the content of its files, and `summary` says in a line what its numbers were stored as.
    """

    source: str
    path: Path
    name: str
    config: Mapping[str, Any]
    sha256: str
    summary: str


Describe: TypeAlias = Callable[[str, Path], Described]
"""A model's `source`, and the folder that relative paths start from → what lies there."""

DescribeOwn: TypeAlias = Callable[[str, Path, Mapping[str, Any]], Mapping[str, Any]]
"""A model's `onnx`, the folder that relative paths start from, its `inputs` → the keys of `OwnModel` that follow."""

ARCHITECTURE = (
    "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers", "intermediate_size",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias",
    "mlp_bias", "tie_word_embeddings",
)  # fmt: skip
"""The keys of a model that its checkpoint decides."""

GRID = {"batch": "b", "sequence": "s", "context": "c", "prompt": "p", "new_tokens": "n"}
"""The keys of a workload that may be lists, and what stands before their numbers in the names that are made."""

MOST = 10_000  # workloads of one grid; five lists of some hundred numbers would be more than memory holds


# ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def models_spelled_out(tree: Tree, describe: Describe | None, describe_own: DescribeOwn | None = None) -> Tree:
    """Replace `models: {defaults, sizes}` by a list of whole models; those with a `source` get its sizes.

    Those with an `onnx` get what their file says of itself.
    """
    models = tree.value.get("models")
    if models is None:
        return tree
    want(models, dict, "a mapping with defaults and sizes")
    for key, value in models.value.items():
        if key not in ("defaults", "sizes"):
            raise value.error(f"unknown key {key!r}{nearest(key, ('defaults', 'sizes'))}", path="models")
    sizes = models.value.get("sizes")
    if sizes is None:
        raise models.error("missing key 'sizes'")
    want(sizes, list, "a list of sizes")
    if not sizes.value:
        raise sizes.error("empty; a sweep needs at least one model")
    defaults = models.value.get("defaults")
    common: dict[str, Tree] = {}
    if defaults is not None:
        want(defaults, dict, "a mapping of model keys")
        common = defaults.value
    for size in sizes.value:
        want(size, dict, "a mapping of model keys")
    whole = []
    for size in sizes.value:
        keys = _own(common, size, describe_own) if "onnx" in size.value else _model(common, size.value, describe)
        whole.append(Tree(keys, size.file, size.line, size.path))
    return _with(tree, "models", Tree(whole, sizes.file, sizes.line, sizes.path))


def _model(common: Mapping[str, Tree], own: Mapping[str, Tree], describe: Describe | None) -> dict[str, Tree]:
    """Return all keys of one model: `own` ones before those `common` to all, and before these its checkpoint's."""
    whole = {**common, **own}
    source = whole.get("source")
    if source is None or not isinstance(source.value, str):
        return whole
    if describe is None:
        raise source.error("a checkpoint cannot be read here")
    try:
        found = describe(source.value, source.file.parent)
    except LlamaBenchError as error:
        raise source.error(str(error)) from None
    stated = {**found.config, "source_sha256": found.sha256}
    width = stated["hidden_size"] // stated["num_attention_heads"]
    for key in (*ARCHITECTURE, "source_sha256"):
        given, has = own.get(key), stated.get(key, width if key == "head_dim" else None)
        if given is not None and given.value is not None and not _agree(given.plain(), has):
            raise given.error(f"{_shown(given.plain())} here, but {_shown(has)} in {found.name}")
    kept = {key: value for key, value in whole.items() if key not in ARCHITECTURE}
    filled = {**stated, "source": found.source, **({} if "name" in whole else {"name": safe_name(found.name)})}
    return {**kept, **{key: _planted(value, source) for key, value in filled.items()}}


def _own(common: Mapping[str, Tree], size: Tree, describe: DescribeOwn | None) -> dict[str, Tree]:
    """Return all keys of a model that is an ONNX file; of those common to all models it has `seed`."""
    own, onnx = size.value, size.value["onnx"]
    for key, value in own.items():
        if key in (*Model.model_fields, *DERIVED) and key not in OWN_KEYS:
            raise value.error(f"{key} is not for a model with onnx, which is what its file says")
        if key not in OWN_KEYS:
            raise value.error(f"unknown key {key!r}{nearest(key, OWN_KEYS)}", path=size.path)
    if not isinstance(onnx.value, str) or not onnx.value:
        raise onnx.error(f"must be a text, the name of an ONNX file, not {kind(onnx.value)}")
    if describe is None:
        raise onnx.error("an ONNX file cannot be read here")
    inputs = own.get("inputs")
    for part in [] if inputs is None else [inputs, *(inputs.value.values() if isinstance(inputs.value, dict) else ())]:
        want(part, dict, "a mapping")
    try:
        found = describe(onnx.value, onnx.file.parent, inputs.plain() if inputs else {})
    except LlamaBenchError as error:
        at = getattr(error, "at", ())
        raise (size.find(at) if at else onnx).error(str(error)) from None
    given = own.get("onnx_sha256")
    if given is not None and given.value != found["onnx_sha256"]:
        raise given.error(f"{_shown(given.plain())} here, but {onnx.value} has {found['onnx_sha256']}")
    kept = {key: value for key, value in {**common, **own}.items() if key in OWN_KEYS}
    filled = {"name": safe_name(Path(found["onnx"]).stem), **found}
    made = {key: _planted(value, onnx) for key, value in filled.items() if key != "name" or "name" not in own}
    for name, part in inputs.value.items() if inputs else ():  # what was written keeps its line
        whole = {**made["inputs"].value[name].value, **part.value}
        made["inputs"].value[name] = Tree(whole, part.file, part.line, part.path)
    return {**kept, **made}


def _agree(given: Any, has: Any) -> bool:
    """Say whether the value in the sweep file is the checkpoint's; a number may be rounded as fp32 rounds it."""
    if isinstance(given, dict) and isinstance(has, Mapping):
        return all(_same(value, has.get(name)) for name, value in given.items())
    return _same(given, has)


def _same(given: Any, has: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (given, has))
    return math.isclose(given, has, rel_tol=1e-6) if numbers else bool(given == has)


def _planted(value: Any, at: Tree) -> Tree:
    """Return `value` as a tree that stands where `at` does."""
    if isinstance(value, Mapping):
        value = {key: _planted(child, at) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_planted(child, at) for child in value]
    return Tree(value, at.file, at.line, at.path)


def safe_name(words: str) -> str:
    """Return `words` as a name: letters, digits and . _ + - alone, a letter or digit first, 80 characters at most."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", words).strip("._+-")[:80] or "model"


# ── workloads ────────────────────────────────────────────────────────────────────────────────────────────────────────


def grids_unrolled(tree: Tree) -> Tree:
    """Replace every workload that has lists by one for each combination: `prefill-b1-s128`, `prefill-b1-s1024`, …"""
    workloads = tree.value.get("workloads")
    if workloads is None or not isinstance(workloads.value, dict):
        return tree
    found: dict[str, Tree] = {}
    for name, workload in workloads.value.items():
        for made, one in _unrolled(name, workload).items():
            if made in found or (made != name and made in workloads.value):
                raise workload.error(f"the workload {made!r} is here twice")
            found[made] = one
    return _with(tree, "workloads", Tree(found, workloads.file, workloads.line, workloads.path))


def _unrolled(name: str, workload: Tree) -> dict[str, Tree]:
    """Return the workloads that one stands for, by name."""
    keys = workload.value if isinstance(workload.value, dict) else {}
    lists = {key: keys[key] for key in GRID if key in keys and isinstance(keys[key].value, list)}
    if not lists:
        return {name: workload}
    for choice in lists.values():
        if not choice.value:
            raise choice.error("empty; a grid needs at least one number")
        for one in choice.value:
            if type(one.value) is not int:
                raise one.error(f"must be a whole number, not {_shown(one.plain())}")
        if len({one.value for one in choice.value}) < len(choice.value):
            raise choice.error("the same number is here twice")
    if (count := math.prod(len(choice.value) for choice in lists.values())) > MOST:
        raise workload.error(f"a grid of {count} workloads; {MOST} are the most")
    found = {}
    for combination in itertools.product(*(choice.value for choice in lists.values())):
        chosen = dict(zip(lists, combination, strict=True))
        words = "-".join(f"{GRID[key]}{one.value}" for key, one in chosen.items())
        found[f"{name}-{words}"] = Tree({**keys, **chosen}, workload.file, workload.line, workload.path)
    return found


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def text_found(tree: Tree) -> Tree:
    """Make every text's `file` absolute, and write the hash of its content beside it: `measure.text`, and in passes."""
    measure, recipes = tree.value.get("measure"), tree.value.get("recipes")
    text = measure.value.get("text") if measure is not None and isinstance(measure.value, dict) else None
    if measure is not None and text is not None:
        tree = _with(tree, "measure", _with(measure, "text", _placed(text)))
    if recipes is None or not isinstance(recipes.value, dict):
        return tree
    for name, recipe in recipes.value.items():
        passes = recipe.value.get("passes") if isinstance(recipe.value, dict) else None
        if passes is not None and isinstance(passes.value, list):
            steps = Tree([_step_placed(step) for step in passes.value], passes.file, passes.line, passes.path)
            recipes = _with(recipes, name, _with(recipe, "passes", steps))
    return _with(tree, "recipes", recipes)


def _step_placed(step: Tree) -> Tree:
    """Return a pass whose options' `file`, if they have one, is found."""
    if not isinstance(step.value, dict) or len(step.value) != 1:
        return step
    [(family, options)] = step.value.items()
    return _with(step, family, _placed(options))


def _placed(keys: Tree) -> Tree:
    """Return a mapping whose `file` is absolute, with its `file_sha256`; anything else as it is."""
    file = keys.value.get("file") if isinstance(keys.value, dict) else None
    if file is None or not isinstance(file.value, str):
        return keys
    path = file.file.parent.joinpath(Path(file.value).expanduser()).absolute()
    try:
        sha256 = text_sha256(path)
    except FileNotFoundError:
        siblings = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
        raise file.error(f"{path}: no such file{nearest(path.name, siblings)}") from None
    except (OSError, ValueError, InputError) as error:
        raise file.error(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    given = keys.value.get("file_sha256")
    if given is not None and given.value is not None and given.value != sha256:
        raise given.error(f"{_shown(given.plain())} here, but {path} has {sha256}")
    filled = {"file": _planted(str(path), file), "file_sha256": _planted(sha256, given or file)}
    return Tree({**keys.value, **filled}, keys.file, keys.line, keys.path)


def text_sha256(path: Path) -> str:
    """Return the SHA-256 of a text file's bytes; raises InputError when they are not UTF-8."""
    digest, decoder, read = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as stream:
        while True:
            part = stream.read(1 << 20)
            held = len(decoder.getstate()[0])  # bytes of a character that began in the part before
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                where = read - held + error.start
                raise InputError(f"not UTF-8 text (byte 0x{error.object[error.start]:02x} at {where})") from None
            if not part:
                return digest.hexdigest()
            digest.update(part)
            read += len(part)


# ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def want(tree: Tree, wanted: type, words: str) -> None:
    """Raise InputError at `tree` unless its value is of the type `wanted`, in `words`."""
    if not isinstance(tree.value, wanted):
        raise tree.error(f"must be {words}, not {kind(tree.value)}")


def _with(tree: Tree, key: str, child: Tree) -> Tree:
    return Tree({**tree.value, key: child}, tree.file, tree.line, tree.path)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {child}" for key, child in value.items()) + "}"
    return "nothing" if value is None else repr(value) if isinstance(value, str) else str(value).lower()
