"""Sweep files: YAML with includes and defaults in, a checked :class:`Sweep` out; errors say where and what instead."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from llama_bench.errors import InputError, nearest
from llama_bench.sweep import (
    AccuracyBounds,
    AnyModel,
    Choice,
    Measure,
    Model,
    OwnInput,
    OwnModel,
    Recipe,
    RopeScaling,
    Session,
    Sweep,
    Target,
    Text,
    Workload,
)
from llama_bench.sweep_own import NEEDS_LLAMA, TAGS
from llama_bench.sweep_schema import PARTS, Catalogue, json_schema
from llama_bench.sweep_tree import grids_unrolled, models_spelled_out, text_found, want
from llama_bench.yaml_lines import Tree, kind, merge, read

__all__ = ["Catalogue", "json_schema", "load", "select"]


def load(path: Path, catalogue: Catalogue) -> Sweep:
    """Read the sweep file at `path` with all that it includes.

    Raises :class:`InputError`, one line of file, line, key and the nearest valid word, for the first thing wrong.
    """
    tree = models_spelled_out(_with_includes(path, ()), catalogue.describe, catalogue.describe_own)
    tree = text_found(grids_unrolled(tree))
    try:
        sweep = Sweep.model_validate(tree.plain())
    except ValidationError as error:
        _raise_first(error, tree)
    _check_words(sweep, tree, catalogue)
    return _with_costs(sweep, tree, catalogue)


# ── includes and defaults ────────────────────────────────────────────────────────────────────────────────────────────


def _with_includes(path: Path, including: tuple[str, ...]) -> Tree:
    """Read `path` and merge its includes below it; `including` are the files that are being read, for cycles."""
    tree = read(path)
    here = (*including, os.path.realpath(path))
    below: dict[str, Tree] = {}
    include = tree.value.get("include")
    for entry in _include_entries(include) if include else []:
        below = merge(below, _included(entry, path, here))
    own = {key: value for key, value in tree.value.items() if key != "include"}
    return Tree(merge(below, own), tree.file, tree.line, "")


def _include_entries(include: Tree) -> list[Tree]:
    return include.value if isinstance(include.value, list) else [include]


def _included(entry: Tree, path: Path, here: tuple[str, ...]) -> dict[str, Tree]:
    """Return the parts that one entry of `include` brings."""
    keys = entry.value if isinstance(entry.value, dict) else {"file": entry}
    for key, value in keys.items():
        if key not in ("file", "parts"):
            raise value.error(f"unknown key {key!r}{nearest(key, ('file', 'parts'))}", path=entry.path)
    file = keys.get("file")
    if file is None or not isinstance(file.value, str) or not file.value.isprintable() or not file.value:
        raise entry.error("an include is a file name, or {file: …, parts: […]}")
    target = path.parent / file.value
    real = os.path.realpath(target)
    if real in here:
        names = " → ".join(Path(name).name for name in [*here[here.index(real) :], real])
        raise file.error(f"the include goes round in a circle: {names}")
    try:
        found = _with_includes(target, here).value
    except InputError as error:
        if str(error).startswith(f"{target}: "):  # the file itself cannot be read: the line to mend is here
            raise file.error(f"cannot include {error}") from None
        raise
    if "parts" not in keys:
        return {key: value for key, value in found.items() if key != "name"}
    parts = keys["parts"]
    wanted = parts.value if isinstance(parts.value, list) else [parts]
    for part in wanted:
        want(part, str, "the name of a part")
        if part.value not in PARTS:
            raise part.error(f"unknown part {part.value!r}{nearest(part.value, PARTS)}")
        if part.value not in found:
            raise part.error(f"{target} has no {part.value}{nearest(str(part.value), set(PARTS) & set(found))}")
    return {part.value: found[part.value] for part in wanted}


# ── errors in words ──────────────────────────────────────────────────────────────────────────────────────────────────

_Context = Mapping[str, Any]

# pydantic's error type → what is said of (the value, pydantic's context); types that are not here keep pydantic's words
_WORDS: dict[str, Callable[[Any, _Context], str]] = {
    "value_error": lambda value, ctx: str(ctx["error"]),
    "refused": lambda value, ctx: str(ctx["why"]),
    "literal_error": lambda value, ctx: f"unknown value {value!r}{nearest(str(value), _quoted(ctx['expected']))}",
    "greater_than": lambda value, ctx: f"must be greater than {ctx['gt']}, not {value}",
    "greater_than_equal": lambda value, ctx: f"must be at least {ctx['ge']}, not {value}",
    "less_than": lambda value, ctx: f"must be less than {ctx['lt']}, not {value}",
    "less_than_equal": lambda value, ctx: f"must be at most {ctx['le']}, not {value}",
    "finite_number": lambda value, ctx: f"must be a finite number, not {value}",
    "too_short": lambda value, ctx: "empty; a sweep needs at least one",
    "string_too_long": lambda value, ctx: f"longer than {ctx['max_length']} characters",
    "string_pattern_mismatch": lambda value, ctx: (
        f"the name {value!r} must begin with a letter or digit and hold only letters, digits and . _ + -"
    ),
    "int_type": lambda value, ctx: f"must be a whole number, not {_shown(value)}",
    "float_type": lambda value, ctx: f"must be a number, not {_shown(value)}",
    "float_parsing": lambda value, ctx: f"must be a number, not {_shown(value)}",
    "bool_type": lambda value, ctx: f"must be true or false, not {_shown(value)}",
    "string_type": lambda value, ctx: f"must be a text, not {_shown(value)}",
    "dict_type": lambda value, ctx: f"must be a mapping, not {_shown(value)}; {{}} is the empty one",
    "model_type": lambda value, ctx: f"must be a mapping, not {_shown(value)}; {{}} is the empty one",
    "tuple_type": lambda value, ctx: f"must be a list, not {_shown(value)}",
}

# What follows from another error is only said when nothing else is wrong.
_LATE = ("missing",)


def _raise_first(error: ValidationError, tree: Tree) -> NoReturn:
    """Turn pydantic's first error, unknown keys before all others, into one line that says where and what instead."""
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda p: (p["type"] in _LATE, p["type"] != "extra_forbidden"))
    context: _Context = first.get("ctx", {})
    loc = _keys(*first["loc"], *context.get("at", ()))
    if first["type"] in ("extra_forbidden", "missing"):
        *parents, key = loc
        if first["type"] == "missing":
            raise tree.find(parents).error(f"missing key {key!r}")
        wrong = tree.find(loc)  # its path may lead into models.defaults, where `parents` say models.sizes
        owner = wrong.path.removesuffix(str(key)).removesuffix(".")
        raise wrong.error(f"unknown key {key!r}{nearest(str(key), _keys_at(parents))}", path=owner)
    where, rest = tree.follow(loc)
    if "provider_options" in loc:
        raise where.error(f"must be a text, a number, true or false, not {_shown(first['input'])}")
    words = _WORDS.get(first["type"])
    unwritten = [str(key) for key in rest if key != "[key]"]  # a default that does not fit is named all the same
    path = ".".join(filter(None, [where.path, *unwritten]))
    raise where.error(words(first["input"], context) if words else first["msg"], path=path)


def _keys(*loc: str | int) -> tuple[str | int, ...]:
    """Return the keys of a place in the file: pydantic says there which kind of model it looked at, too."""
    return (*loc[:2], *loc[3:]) if len(loc) > 2 and loc[0] == "models" and loc[2] in TAGS else loc


def _keys_at(parents: Iterable[str | int]) -> list[str]:
    """Return the keys that are valid below `parents`."""
    words = list(parents)
    part: type[BaseModel]
    match words:
        case ["models", _, "inputs", _]:
            part = OwnInput
        case ["models", _, "rope_scaling"]:
            part = RopeScaling
        case ["models", *_]:
            part = Model
        case ["recipes", _, "session"]:
            part = Session
        case ["recipes", *_]:
            part = Recipe
        case ["workloads", *_]:
            part = Workload
        case ["targets", *_]:
            part = Target
        case ["measure", "accuracy"]:
            part = AccuracyBounds
        case ["measure", "text"]:
            part = Text
        case ["measure", *_]:
            part = Measure
        case ["cells", *_]:
            part = Choice
        case _:
            return [*Sweep.model_fields, "include"]
    return list(part.model_fields)


def _quoted(expected: str) -> list[str]:
    """Return the words of pydantic's "'a', 'b' or 'c'"."""
    return re.findall(r"'([^']*)'", expected)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list) or value is None:
        return kind(value)
    return repr(value) if isinstance(value, str) else str(value).lower()


def _check_words(sweep: Sweep, tree: Tree, catalogue: Catalogue) -> None:
    """Refuse what the catalogue lacks, or has with a reason not to use it: passes, engines, providers, options."""
    own = next((model for model in sweep.models if isinstance(model, OwnModel)), None)
    if own is not None and all(isinstance(model, OwnModel) for model in sweep.models):
        _refuse_text(tree, own)
    for name, recipe in sweep.recipes.items():
        if own is not None and recipe.engine in catalogue.networks:
            words = f"engine {recipe.engine!r} does not fit model {own.label}: {NEEDS_LLAMA}"
            raise tree.find(["recipes", name, "engine"]).error(words)
        for model in _models_of(sweep, name):
            if found := catalogue.misfit(recipe.passes, model):
                raise tree.find(["recipes", name, "passes", found[0]]).error(found[1])
        if recipe.engine not in catalogue.engines:
            where = tree.find(["recipes", name, "engine"])
            raise where.error(f"unknown engine {recipe.engine!r}{nearest(recipe.engine, catalogue.engines)}")
    for name, target in sweep.targets.items():
        if target.provider not in catalogue.providers:
            where = tree.find(["targets", name, "provider"])
            raise where.error(f"unknown provider {target.provider!r}{nearest(target.provider, catalogue.providers)}")
    for name, recipe in sweep.recipes.items():
        for target in sweep.targets.values():
            if why := catalogue.unfit(recipe, target):
                raise tree.find(["recipes", name, "session"]).error(why)


def _models_of(sweep: Sweep, recipe: str) -> list[AnyModel]:
    """Return the models that a recipe is applied to."""
    if not sweep.cells:
        return list(sweep.models)
    labels = {cell.model.label for cell in sweep.chosen() if recipe in cell.recipes}
    return [model for model in sweep.models if model.label in labels]


def _refuse_text(tree: Tree, own: OwnModel) -> None:
    """Refuse a text that a sweep asks for and whose models are all ONNX files: nobody knows what their tokens are."""
    text, rest = tree.follow(["measure", "text"])
    if not rest and text.value is not None:
        raise text.error(f"no text can be scored: {NEEDS_LLAMA} ({own.label})")


def _with_costs(sweep: Sweep, tree: Tree, catalogue: Catalogue) -> Sweep:
    """Return `sweep` with what a run of each own model takes with each workload; refuse sizes that do not fit it."""
    sizes = dict.fromkeys((workload.batch, workload.given) for workload in sweep.workloads.values())
    models: list[AnyModel] = []
    for i, model in enumerate(sweep.models):
        if isinstance(model, OwnModel) and catalogue.cost_own is not None:
            try:
                costs = tuple(catalogue.cost_own(model, *size) for size in sizes)
            except InputError as error:
                raise tree.find(["models", i]).error(str(error)) from None
            model = model.model_copy(update={"costs": costs})
        models.append(model)
    return sweep.model_copy(update={"models": tuple(models)})


# ── a part of a sweep ────────────────────────────────────────────────────────────────────────────────────────────────


def select(sweep: Sweep, only: str) -> Sweep:
    """Return the part of `sweep` that `only` names, such as `model=h512*,recipe=original|eliminate_*`.

    Keys: model, recipe, workload, target; values are patterns (`*`, `?`, `[…]`), several with `|`. The baseline is
    always kept. Raises :class:`InputError` for an unknown key or a pattern that nothing matches, with the valid words.
    """
    names: dict[str, list[str]] = {
        "model": [model.label for model in sweep.models],
        "recipe": list(sweep.recipes),
        "workload": list(sweep.workloads),
        "target": list(sweep.targets),
    }
    chosen: dict[str, set[str]] = {}
    for term in only.split(","):
        key, equals, patterns = (word.strip() for word in term.partition("="))
        if not equals:
            raise InputError(f"--only {only}: {term!r} is not of the form key=name, such as model={names['model'][0]}")
        if key not in names:
            raise InputError(f"--only {only}: unknown key {key!r}{nearest(key, names)}")
        if key in chosen:
            raise InputError(f"--only {only}: {key} is here twice; several names go as {key}=a|b")
        chosen[key] = set()
        for pattern in (word.strip() for word in patterns.split("|")):
            matches = [name for name in names[key] if fnmatchcase(name, pattern)]
            if not matches:
                raise InputError(f"--only {only}: no {key} matches {pattern!r}{nearest(pattern, names[key])}")
            chosen[key].update(matches)
    if "recipe" in chosen:
        chosen["recipe"] |= {sweep.measure.baseline, *sweep.baselines()}
    kept = {key: chosen.get(key, set(names[key])) for key in names}
    return sweep.model_copy(
        update={
            "models": tuple(model for model in sweep.models if model.label in kept["model"]),
            "recipes": {name: part for name, part in sweep.recipes.items() if name in kept["recipe"]},
            "workloads": {name: part for name, part in sweep.workloads.items() if name in kept["workload"]},
            "targets": {name: part for name, part in sweep.targets.items() if name in kept["target"]},
        }
    )
