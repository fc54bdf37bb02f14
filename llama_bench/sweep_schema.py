"""The words of a sweep file: which names it may use, and its JSON Schema, from which editors complete and check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llama_bench.sweep import AnyModel, OwnModel, Pass, Recipe, Sweep, Target
from llama_bench.sweep_own import DERIVED, OwnCost
from llama_bench.sweep_tree import GRID, Describe, DescribeOwn

PARTS = ("models", "recipes", "workloads", "targets", "measure", "cells")
"""The keys of a sweep that an include may bring; `name` is each file's own."""


@dataclass(frozen=True)
class Catalogue:
    """The words that a sweep may use besides its keys, handed in so that reading a file loads no heavy library.

    `passes` maps a family to its passes: name → None, or the reason why it is refused; `options` a family to the keys
    of all its passes' options and their schemas. `misfit` says which of a recipe's passes cannot be applied to a
    model, and why; `unfit` why a recipe's session options are not for its engine on a target; both None where all is
    well. `describe` says what a checkpoint is; without it no model may have a source. `describe_own` and `cost_own` say
    what an ONNX file is, and what a run of it at a batch and a sequence takes; `networks` are the engines that run a
    Llama built anew and no graph.
    """

    passes: Mapping[str, Mapping[str, str | None]]
    providers: tuple[str, ...]
    engines: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    misfit: Callable[[Sequence[Pass], AnyModel], tuple[int, str] | None] = lambda steps, model: None
    unfit: Callable[[Recipe, Target], str | None] = lambda recipe, target: None
    describe: Describe | None = None
    describe_own: DescribeOwn | None = None
    cost_own: Callable[[OwnModel, int, int], OwnCost] | None = None
    networks: tuple[str, ...] = ()


def json_schema(catalogue: Catalogue | None = None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a sweep file as it is written: includes, defaults, one-key passes.

    With a `catalogue` the names of passes, providers and engines are listed. In a file that includes others no key
    is required but `name`, since the rest may come from there.
    """
    schema = Sweep.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema["$defs"]
    keys: dict[str, Any] = schema["properties"]
    required = {name: definitions[name].pop("required", []) for name in ("Model", "Workload", "Target")}
    for key in DERIVED:
        del definitions["OwnModel"]["properties"][key]
    del definitions["OwnCost"]
    for key in GRID:
        definitions["Workload"]["properties"][key] = _one_or_more(definitions["Workload"]["properties"][key])
    definitions["Pass"] = _pass_schema(definitions["Pass"]["description"], catalogue)
    if catalogue is not None:
        definitions["Target"]["properties"]["provider"]["enum"] = list(catalogue.providers)
        definitions["Recipe"]["properties"]["engine"]["enum"] = list(catalogue.engines)
    for key in ("recipes", "workloads", "targets"):
        del keys[key]["minProperties"]
        keys[key]["additionalProperties"] = False  # names that break the pattern
    whole = {
        "models": {"required": ["sizes"]},
        "recipes": {"minProperties": 1},
        "workloads": {"minProperties": 1, "additionalProperties": {"required": required["Workload"]}},
        "targets": {"minProperties": 1, "additionalProperties": {"required": required["Target"]}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llama_bench sweep",
        "description": "models × recipes × workloads × targets, and how to measure",
        "type": "object",
        "additionalProperties": False,
        "properties": {**keys, "include": _include_schema(), "models": _models_schema(keys["models"]["description"])},
        "required": ["name"],
        "if": {"not": {"required": ["include"]}},
        "then": {"required": list(whole), "properties": whole},
        "$defs": definitions,
    }


def _pass_schema(description: str, catalogue: Catalogue | None) -> dict[str, Any]:
    one_key = {"type": "object", "description": description, "minProperties": 1, "maxProperties": 1}
    if catalogue is None:
        return {**one_key, "additionalProperties": {"type": ["string", "object"]}}
    families = {
        family: _value_schema([name for name, refused in passes.items() if refused is None], catalogue.options[family])
        for family, passes in catalogue.passes.items()
    }
    return {**one_key, "properties": families, "additionalProperties": False}


def _value_schema(names: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the value of a pass family may be: a pass's name, or options, of which one is the name."""
    by_name: dict[str, Any] = {"enum": names}
    if not options:
        return by_name
    keys = {"name": {**by_name, "description": f"Which pass; {names[0]} when left out."}, **options}
    return {
        "anyOf": [by_name, {"type": "object", "minProperties": 1, "additionalProperties": False, "properties": keys}]
    }


def _one_or_more(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a key's schema that also takes a list: a grid of workloads in one line."""
    one = {key: value for key, value in schema.items() if key not in ("default", "description", "title")}
    grid = {"type": "array", "minItems": 1, "items": one}
    return {**{k: v for k, v in schema.items() if k in ("default", "description", "title")}, "anyOf": [one, grid]}


def _models_schema(description: str) -> dict[str, Any]:
    model = {"$ref": "#/$defs/Model"}
    either = {"if": {"required": ["onnx"]}, "then": {"$ref": "#/$defs/OwnModel"}, "else": model}
    return {
        "type": "object",
        "description": description,
        "additionalProperties": False,
        "properties": {
            "defaults": {**model, "description": "Keys that every model has unless its size says otherwise."},
            "sizes": {"type": "array", "minItems": 1, "items": either, "description": "One entry a model."},
        },
    }


def _include_schema() -> dict[str, Any]:
    file = {"type": "string", "minLength": 1, "description": "File name, relative to this file."}
    part = {"enum": list(PARTS)}
    parts = {"anyOf": [part, {"type": "array", "items": part}], "description": "Which of its parts; all when left out."}
    mapping = {
        "type": "object",
        "additionalProperties": False,
        "required": ["file"],
        "properties": {"file": file, "parts": parts},
    }
    entry = {"anyOf": [file, mapping]}
    return {
        "description": "Files whose parts are merged below this file's own: mappings key by key, lists as a whole.",
        "anyOf": [file, mapping, {"type": "array", "items": entry}],
    }
