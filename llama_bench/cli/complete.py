"""What a shell offers when Tab is pressed: sweep files, runs, and the words of the sweep that is on the line.

A shell waits for this, so it reads file names and plain YAML and imports nothing else. It never fails: what cannot be
read has no words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import typer

ONLY = ("model", "recipe", "workload", "target")
"""The keys of `--only`."""

MOST_INCLUDES = 4  # files on the way from a sweep to the last that it includes; those in a circle end here


def sweep_files(incomplete: str) -> list[str]:
    """Return the YAML files with a sweep's `name:` in the folder that `incomplete` begins, and in `sweeps`."""
    folder = incomplete.rpartition("/")[0]
    places = [Path(folder)] if folder else [Path(), Path("sweeps")]
    files = [file for place in places for pattern in ("*.yaml", "*.yml") for file in sorted(place.glob(pattern))]
    return [str(file) for file in files if str(file).startswith(incomplete) and _is_a_sweep(file)]


def runs(incomplete: str) -> list[str]:
    """Return the sweeps of the stores in the folder that `incomplete` begins, and the runs of a sweep that it names."""
    place = Path(incomplete.rpartition("/")[0])
    patterns = ("run.json", "*/run.json", "*/*/run.json", "*/*/*/run.json")
    found = [file.parent for pattern in patterns for file in place.glob(pattern)]
    sweeps = [str(run.parent) for run in found]
    named = [str(run) for run in found if incomplete.startswith(f"{run.parent}/")]
    return [path for path in sorted({*sweeps, *named}) if path.startswith(incomplete)]


def only(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return what `--only` may go on with: a key, or a name of the sweep after `key=`."""
    before, comma, last = incomplete.rpartition(",")
    key, equals, value = last.partition("=")
    if not equals:
        return [f"{before}{comma}{word}=" for word in ONLY if word.startswith(key)]
    earlier, bar, begun = value.rpartition("|")
    words = _words(_sweep(ctx), f"{key}s")
    return [f"{before}{comma}{key}={earlier}{bar}{word}" for word in words if word.startswith(begun)]


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the recipes of the sweep on the line."""
    return [word for word in _words(_sweep(ctx), "recipes") if word.startswith(incomplete)]


def workloads(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the workloads of the sweep on the line; of a grid its name and a `*`."""
    return [word for word in _words(_sweep(ctx), "workloads") if word.startswith(incomplete)]


def _sweep(ctx: typer.Context) -> str | None:
    """Return the sweep on the line; of a line that ends in an option without its value, words are all that is known."""
    given = ctx.params.get("sweep")
    return str(given) if given else next((word for word in ctx.args if word.endswith((".yaml", ".yml"))), None)


def _is_a_sweep(file: Path) -> bool:
    with suppress(OSError, ValueError):
        return any(line.startswith("name:") for line in file.read_text(encoding="utf-8").splitlines())
    return False


def _words(file: str | None, part: str) -> list[str]:
    """Return the names in one part of a sweep file, those of the files that it includes among them."""
    if file is None:
        return []
    from ruamel.yaml.error import YAMLError

    with suppress(OSError, ValueError, TypeError, AttributeError, YAMLError):
        return list(dict.fromkeys(_named(Path(file), part, MOST_INCLUDES)))
    return []


def _named(file: Path, part: str, depth: int) -> Iterable[str]:
    from ruamel.yaml import YAML

    tree = YAML(typ="safe").load(file.read_text(encoding="utf-8"))
    includes = tree.get("include") or []
    for entry in (includes if isinstance(includes, list) else [includes]) if depth else []:
        keys = entry if isinstance(entry, Mapping) else {"file": entry}
        if part in keys.get("parts", [part]):
            yield from _named(file.parent / keys["file"], part, depth - 1)
    if isinstance(tree.get(part), Mapping) and part != "models":
        for name, value in tree[part].items():
            grid = isinstance(value, Mapping) and any(isinstance(one, list) for one in value.values())
            yield f"{name}*" if grid and part == "workloads" else name
