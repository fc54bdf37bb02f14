"""What differs between two runs besides their times: versions, code, machines, settings, and the sweep itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.stats.alike import agree, hardware, same_hardware
from llama_bench.stats.ratios import name_arms
from llama_bench.sweep import Model
from llama_bench.sweep_recipe import Pass

Row = Mapping[str, Any]

NOTHING = "–"

ONLY = " in one run only: "
"""End of `what` where names that only one of the runs has are listed."""

NAMED = 4
"""Arms that a line names; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same: `what` of which `part` of the environment, in run A and in run B, in words."""

    part: str
    what: str
    a: str
    b: str


def differences(
    a: tuple[Row, Mapping[str, pl.LazyFrame]], b: tuple[Row, Mapping[str, pl.LazyFrame]]
) -> list[Difference]:
    """Return everything that differs between two runs, each given as its run.json and its datasets; no times."""
    (run_a, frames_a), (run_b, frames_b) = a, b
    return [
        *_plain("library", run_a.get("versions") or {}, run_b.get("versions") or {}),
        *_code(run_a, run_b),
        *_machines(hardware(frames_a["machines"]), hardware(frames_b["machines"])),
        *_threads(frames_a["machines"], frames_b["machines"]),
        *_sweep(run_a["sweep"], run_b["sweep"]),
        *_settings(frames_a["variants"], frames_b["variants"]),
    ]


def _plain(part: str, a: Row, b: Row) -> Iterator[Difference]:
    """Each key whose value differs; of nested mappings each inner key."""
    flat_a, flat_b = _flat(a), _flat(b)
    for key in sorted(flat_a.keys() | flat_b.keys()):
        if flat_a.get(key) != flat_b.get(key):
            yield Difference(part, key, _words(flat_a.get(key)), _words(flat_b.get(key)))


def _flat(value: Row, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) and inner else {f"{prefix}{key}": inner}
    return found


def _words(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _code(a: Row, b: Row) -> Iterator[Difference]:
    if a.get("code") != b.get("code"):
        yield Difference("llama_bench", "code that measures", _short(a.get("code")), _short(b.get("code")))


def _short(digest: object) -> str:
    return str(digest)[:8] if digest else NOTHING


def _machines(a: Mapping[str, Sequence[Row]], b: Mapping[str, Sequence[Row]]) -> Iterator[Difference]:
    """Facts of each target's machine; of several machines what they are, and only where they are not the same."""
    for target in [name for name in a if name in b]:
        part = f"machine of target {target}"
        if len(a[target]) == len(b[target]) == 1:
            [one], [other] = a[target], b[target]
            common = one.keys() & other.keys() - {"hardware"}
            differ = sorted(key for key in common if not agree(one[key], other[key]))
            yield from _plain(part, {key: one[key] for key in differ}, {key: other[key] for key in differ})
        elif not same_hardware(a[target], b[target]):
            yield Difference(part, "machines", *("; ".join(map(_machine, those[target])) for those in (a, b)))


def _machine(facts: Row) -> str:
    gpus = ", ".join(str(gpu.get("name", gpu)) for gpu in facts.get("gpus") or []) or facts.get("gpu")
    words = (facts.get("hostname"), facts.get("cpu"), gpus)
    return ", ".join(str(word) for word in words if word) or "unknown"


def _threads(a: pl.LazyFrame, b: pl.LazyFrame) -> Iterator[Difference]:
    """The threads that the arms of a target had, and the provider that ran them."""
    said_a, said_b = _run_with(a), _run_with(b)
    for target in [name for name in said_a if name in said_b]:
        yield from _plain(f"arms on target {target}", said_a[target], said_b[target])


def _run_with(machines: pl.LazyFrame) -> dict[str, dict[str, str]]:
    rows = machines.group_by("target", maintain_order=True).agg(
        pl.col("threads", "provider").drop_nulls().unique().sort()
    )
    return {
        row["target"]: {key: ", ".join(map(str, row[key])) for key in ("threads", "provider")}
        for row in rows.collect().to_dicts()
    }


def _sweep(a: Row, b: Row) -> Iterator[Difference]:
    """What the sweeps ask for: measure keys, and the parts of one name that are not spelled alike."""
    if a["name"] != b["name"]:
        yield Difference("sweep", "name", a["name"], b["name"])
    yield from _plain("measure", a["measure"], b["measure"])
    for key, one in (("models", "model"), ("recipes", "recipe"), ("workloads", "workload"), ("targets", "target")):
        in_a, in_b = _named(a[key]), _named(b[key])
        yield from _only(key, in_a, in_b)
        for name in [name for name in in_a if name in in_b]:
            yield from _plain(f"{one} {name}", in_a[name], in_b[name])


def _named(parts: Any) -> dict[str, Row]:
    """Parts of a sweep by their name, of models by their label; passes as YAML writes them."""
    if not isinstance(parts, Mapping):
        return {Model.model_validate(one).label: one for one in parts}
    return {
        name: {**one, "passes": ", ".join(Pass.model_validate(step).label for step in one["passes"])}
        if "passes" in one
        else one
        for name, one in parts.items()
    }


def _only(key: str, a: Mapping[str, Row], b: Mapping[str, Row]) -> Iterator[Difference]:
    left, right = [name for name in a if name not in b], [name for name in b if name not in a]
    if left or right:
        yield Difference("sweep", f"{key}{ONLY}", ", ".join(left) or NOTHING, ", ".join(right) or NOTHING)


def _settings(a: pl.LazyFrame, b: pl.LazyFrame) -> Iterator[Difference]:
    """Session and provider options of arms of one name; the same change of several arms is one line."""
    said_a, said_b = _of_arms(a), _of_arms(b)
    arms: dict[tuple[str, str, str, str], list[str]] = {}
    for target, recipe in [key for key in said_a if key in said_b]:
        for one in _plain("", said_a[target, recipe], said_b[target, recipe]):
            arms.setdefault((target, one.what, one.a, one.b), []).append(recipe)
    for (target, what, before, now), names in arms.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        yield Difference(f"settings on target {target}", f"{what} ({', '.join(names[:NAMED])}{more})", before, now)


def _of_arms(variants: pl.LazyFrame) -> dict[tuple[str, str], Row]:
    rows = name_arms(variants).select("target", "recipe", "settings").drop_nulls().unique(maintain_order=True).collect()
    return {(target, recipe): json.loads(settings) for target, recipe, settings in rows.iter_rows()}
