"""Which run goes on: a run is one execution of a sweep by one version of code and libraries on known machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from llama_bench import results
from llama_bench.ids import digest
from llama_bench.model import source
from llama_bench.own import describe
from llama_bench.plan import Plan
from llama_bench.store import Store
from llama_bench.sweep import AnyModel, OwnModel


@dataclass(frozen=True, slots=True)
class Identity:
    """All that must be equal for timings to belong to one run: the sweep, the measuring code, libraries, nodes."""

    sweep: Mapping[str, Any]
    code: str
    versions: Mapping[str, str]
    hardware: list[str]

    @property
    def fingerprint(self) -> str:
        return digest(asdict(self))


@dataclass(frozen=True, slots=True)
class Found:
    """The run (`<sweep>/<run id>`) that goes on or begins, and why."""

    run: str
    why: str


def find_or_start(
    store: Store, plan: Plan, identity: Identity, unserved: Mapping[str, str], facts: Mapping[str, Mapping[str, Any]]
) -> Found:
    """Return the run with this fingerprint, or write run.json of a new one and say what changed.

    Of two drivers that begin at once each may write one: both then go on with the older.
    """
    name = plan.sweep.name
    earlier = _runs(store, name)
    if (alike := _oldest(earlier, identity)) is not None:
        return Found(alike, "going on")
    why = "the first run of this sweep here"
    if earlier:
        why = f"a new run: {'; '.join(changes(earlier[0][1], asdict(identity)))}"
    now = datetime.now(UTC)
    info = {
        **asdict(identity),
        "fingerprint": identity.fingerprint,
        "created_at": now.isoformat(),
        "machines": list(facts.values()),
        "unserved": dict(unserved),
        "artifacts": list(plan.artifacts),
        "cells": [{**cell.entry, "source": _summary(cell.model)} for cell in plan.cells],
    }
    run = f"{name}/{now:%Y%m%d-%H%M%S}-{identity.fingerprint[:8]}"
    results.write_run(store, run, info)
    alike = _oldest(_runs(store, name), identity)
    if alike not in (None, run):
        store.delete([f"{run}/run.json"])
        return Found(str(alike), "going on with another driver's, which began at the same moment")
    return Found(run, why)


def _summary(model: AnyModel) -> str | None:
    return describe.summary(model) if isinstance(model, OwnModel) else source.summary(model)


def _runs(store: Store, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the runs of the sweep `name`, newest first, each with its run.json."""
    return [(f"{name}/{run}", results.read_run(store, f"{name}/{run}")) for run in results.runs(store, name)]


def _oldest(runs: list[tuple[str, dict[str, Any]]], identity: Identity) -> str | None:
    return next((run for run, info in reversed(runs) if info["fingerprint"] == identity.fingerprint), None)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in a few words each what differs between two identities (as run.json keeps them)."""
    said = []
    if before["sweep"] != now["sweep"]:
        keys = sorted(key for key in now["sweep"] if before["sweep"].get(key) != now["sweep"][key])
        said.append(f"the sweep's {', '.join(keys)} changed")
    if before["code"] != now["code"]:
        said.append("the measuring code changed")
    for library in sorted({*before["versions"], *now["versions"]}):
        old, new = before["versions"].get(library), now["versions"].get(library)
        if old != new:
            said.append(f"{library} {old or 'absent'} → {new or 'absent'}")
    if before["hardware"] != now["hardware"]:
        said.append("the machines that serve the targets changed")
    return said or ["an older run differs"]
