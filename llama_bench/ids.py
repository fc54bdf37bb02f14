"""What artifacts and cells are known by: hashes of what shapes them, each part written as JSON once. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from llama_bench.sweep_own import DERIVED

PLACES = ("source", "file")
"""Keys of a sweep that say where something lies; beside each stands the hash of what lies there."""


class Written(NamedTuple):
    """A part of the sweep as artifacts keep it, and the JSON of it that ids are made of.

    To write JSON is most of the work of a plan, so a part is written once for all the ids that it goes into.
    """

    spec: Any
    json: str


def written(spec: Any) -> Written:
    """Return `spec` as it is written, without the keys of :data:`PLACES`."""
    return Written(spec, as_json(_without_places(spec) if isinstance(spec, dict) else spec))


def own_written(spec: dict[str, Any]) -> Written:
    """Return an own model as it is written: its hash stands for the file and for all that follows from it.

    Its inputs may have any names, those of PLACES too.
    """
    return Written(spec, as_json({key: value for key, value in spec.items() if key not in ("onnx", *DERIVED)}))


def _without_places(spec: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_places(value) if isinstance(value, dict) else value
        for key, value in spec.items()
        if key not in PLACES
    }


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits that identify `parts` (what JSON can write, keys in any order; else TypeError)."""
    return hashed(as_json(parts))


def hashed(text: str) -> str:
    """Return 16 hexadecimal digits that identify `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


as_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
"""What digests are made of. Below are its arrays and objects from members that are already written."""


def json_array(*items: str) -> str:
    """Return an array of items that are JSON already."""
    return f"[{','.join(items)}]"


def json_object(members: Mapping[str, str]) -> str:
    """Return an object of members that are JSON already; nothing in its keys needs escaping."""
    return "{" + ",".join([f'"{key}":{members[key]}' for key in sorted(members)]) + "}"


def json_strings(*items: str) -> str:
    """Return an array of strings; nothing in them needs escaping."""
    return '["' + '","'.join(items) + '"]'
