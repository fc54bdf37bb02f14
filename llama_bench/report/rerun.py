"""How a run is made again: its sweep as a file, and the commands."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from llama_bench.report.document import Block, Code
from llama_bench.sweep import Sweep
from llama_bench.sweep_own import OWN_KEYS

Row = Mapping[str, Any]

OWN = ("hidden_size", "name")
"""Keys that each size says for itself."""

HASHES = ("source_sha256", "file_sha256", "onnx_sha256", "dtype")
"""Keys that are found out when a sweep file is read, and cannot be written in one."""


def blocks(run: Row) -> list[Block]:
    """Return the commands and the sweep file."""
    name = run["sweep"]["name"]
    versions = run.get("versions") or {}
    library = f" {versions['llama_bench']}" if "llama_bench" in versions else ""
    commands = (
        f"python -m llama_bench plan sweeps/{name}.yaml\n"
        f"python -m llama_bench run sweeps/{name}.yaml\n"
        f"python -m llama_bench report results/{name}"
    )
    return [
        Code(f"With llama_bench{library}, on a node that carries the tags of the targets:", commands),
        Code(f"The sweep, as sweeps/{name}.yaml (what includes brought is in it):", sweep_file(run["sweep"])),
    ]


def sweep_file(sweep: Row) -> str:
    """Return a sweep of run.json as the text of a sweep file, what is at its default left out."""
    from ruamel.yaml import YAML

    full = Sweep.model_validate(sweep).model_dump(mode="json", exclude_defaults=True)
    models = [_model(model) for model in full["models"]]
    shared = {key: value for key, value in models[0].items() if all(model.get(key) == value for model in models)}
    shared = {} if len(models) == 1 else {key: value for key, value in shared.items() if key not in OWN}
    sizes = [{key: value for key, value in model.items() if key not in shared} for model in models]
    written = {
        "name": full["name"],
        "models": {**({"defaults": shared} if shared else {}), "sizes": sizes},
        "recipes": {name: _recipe(recipe) for name, recipe in full["recipes"].items()},
        **{key: _without_hashes(full[key]) for key in ("workloads", "targets", "measure", "cells") if full.get(key)},
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # the order of the sweep
    yaml.default_flow_style = None  # what holds no collection goes on one line
    yaml.width = 1000  # a model on one line
    buffer = io.StringIO()
    yaml.dump(written, buffer)
    return buffer.getvalue()


def _model(model: Row) -> dict[str, Any]:
    """A model without what is filled in when a sweep is read."""
    kept = {key: value for key, value in model.items() if "onnx" not in model or key in OWN_KEYS}
    return {key: _without_hashes(value) for key, value in kept.items() if key not in HASHES}


def _recipe(recipe: Row) -> dict[str, Any]:
    """A recipe with its passes as a sweep file has them: one key each, and the name alone without options."""
    passes = []
    for one in recipe.get("passes", ()):
        named = {"name": one["name"]} if one.get("name") else {}
        passes.append({one["family"]: {**named, **one["options"]} if one.get("options") else one["name"]})
    return {**recipe, **({"passes": passes} if passes else {})}


def _without_hashes(part: Any) -> Any:
    if not isinstance(part, dict):
        return part
    return {key: _without_hashes(value) for key, value in part.items() if key not in HASHES}
