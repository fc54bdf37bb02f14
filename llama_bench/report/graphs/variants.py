"""Which graphs a variant went through: from the export, pass by pass, as a store keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from llama_bench.errors import InputError, WorkError, nearest

if TYPE_CHECKING:
    from llama_bench.store import Store


@dataclass(frozen=True, slots=True)
class Step:
    """What a pass made of which graph; `label` is the pass."""

    label: str
    before: Path
    after: Path


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant's graph, its name, and the steps from the export to it, in order; none for the export itself."""

    name: str
    path: Path
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """The variants of one model and workload of a run; without any, `reason` says why."""

    title: str
    baseline: str
    variants: tuple[Variant, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """One model and workload of a run: recipe → the id of its variant."""

    model: str
    workload: str
    baseline: str
    recipes: dict[str, str]


def variant(store: Store, name: str, artifact: str, scratch: Path) -> Variant:
    """Return the variant `artifact` of `store` and the steps to it. No weights are read.

    Graphs of an object store are copied into the folder `scratch`. Raises WorkError when the store lacks one.
    """
    chain: list[dict[str, Any]] = []
    step: str | None = artifact
    while step is not None:
        chain.append(store.manifest(step))
        step = chain[-1]["parent"]
    chain.reverse()
    files = [_graph(store, manifest, scratch) for manifest in chain]
    steps = [
        Step(manifest["label"].rpartition(" on ")[0] or manifest["label"], old, new)
        for manifest, old, new in zip(chain[1:], files[:-1], files[1:], strict=True)
    ]
    return Variant(name, files[-1], tuple(steps))


def _graph(store: Store, manifest: dict[str, Any], scratch: Path) -> Path:
    """Return the file of an artifact's graph, without its weights."""
    stored = next(entry["stored"] for entry in manifest["files"] if entry["name"] == "model.onnx")
    key = f"artifacts/{manifest['id']}/{stored}"
    if store.root is not None:
        return Path(store.url(key))
    file = scratch / str(manifest["id"]) / "model.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.get(key))
    return file


def places(path: str) -> tuple[Store, list[Place]]:
    """Return the store and the places of the run at `path`, in the order of its cells. Raises InputError."""
    import polars as pl

    from llama_bench import results

    store, run = results.locate(path)
    rows = results.scan(path)["variants"].filter(~pl.col("control")).collect()
    found: dict[tuple[str, str], Place] = {}
    for cell in results.read_run(store, run)["cells"]:
        key = cell["model"], cell["workload"]
        mine = rows.filter((pl.col("model") == key[0]) & (pl.col("workload") == key[1])).to_dicts()
        known = {row["recipe"]: row["variant"] for row in mine}
        if known and key not in found:
            ordered = {arm: known[arm] for arm in cell["arms"] if arm in known}
            found[key] = Place(*key, cell["baseline"], ordered)
    return store, list(found.values())


def choose(places: Sequence[Place], where: str, model: str | None, workload: str | None) -> Place:
    """Return the first place of the named model and workload; either may be left out. Raises InputError."""
    for option, word, words in (
        ("model", model, [place.model for place in places]),
        ("workload", workload, [place.workload for place in places]),
    ):
        if word is not None and word not in words:
            raise InputError(f"--{option} {word}: not in {where}{nearest(word, words)}")
    left = [place for place in places if model in (None, place.model) and workload in (None, place.workload)]
    if not left:
        raise InputError(f"{where}: no variants of that model and workload in it")
    return left[0]


@contextmanager
def of_run(path: str, model: str | None = None, workload: str | None = None) -> Iterator[Found]:
    """Yield the variants of the run at `path`, of its first model and workload unless others are named.

    What a run built may be gone: its rows are kept for years, its graphs as long as the store is not cleaned. Then
    there are no variants and a reason. Raises InputError for what is no run or an unknown name.
    """
    store, there = places(path)
    if not there:
        yield Found("", "", reason="nothing was built in this run")
        return
    place = choose(there, path, model, workload)
    title = f"{place.model} {place.workload}"
    with TemporaryDirectory(prefix="llama-bench-") as scratch:
        try:
            variants = tuple(variant(store, name, found, Path(scratch)) for name, found in place.recipes.items())
        except WorkError:  # where the store lies is nobody's business who reads the page
            again = "`python -m llama_bench graph SWEEP --recipe RECIPE` builds and draws them again"
            yield Found(title, place.baseline, reason=f"the graphs of this run are no longer beside it; {again}")
            return
        yield Found(title, place.baseline, variants)
