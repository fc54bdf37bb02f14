"""Where the time of an arm goes on the GPU: its kernels by class, each class beside its own floor. Pure.

What a class takes at least follows from the machine's ceilings, as the bound of a whole run does
(:mod:`llama_bench.stats.bound`), split into the products with weights and the attention. All other classes can be fused
into these, and the time in which no kernel runs need not be: their floor is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from llama_bench.counts import flops
from llama_bench.stats.bound import Rates, best, least_s, limits, parts
from llama_bench.stats.executed import placed
from llama_bench.stats.judged import Judged
from llama_bench.stats.least import computed_in, hidden, keeps_last_token, moved, read_cache, resized, unread
from llama_bench.stats.ratios import name_arms
from llama_bench.sweep import CONTROL, Model, OwnModel, Workload

Row = Mapping[str, Any]
Key = tuple[str, str]
"""(cell id, arm)"""

PRODUCTS, ATTENTION, IDLE = "matmul", "attention", "idle"
"""Classes of kernels that have a floor, and what the time is called in which no kernel runs."""

SOFTMAX = "softmax"
"""What the kernels of an attention that is written out have in their names: its products are among all others."""

SCHEMA: dict[str, Any] = {
    "cell": pl.String,
    "model": pl.String,
    "workload": pl.String,
    "target": pl.String,
    "recipe": pl.String,
    "control": pl.Boolean,
    "verdict": pl.String,
    "class": pl.String,
    "launches": pl.Float64,
    "seconds": pl.Float64,
    "share": pl.Float64,
    "floor_s": pl.Float64,
    "time_s": pl.Float64,
}
"""Columns of the view. `seconds` are those of the class in a run, `share` their share of `time_s`, the run as it was
timed. The class `idle` is the time of a run beyond that in which a kernel or copy ran."""


@dataclass(frozen=True, slots=True)
class GpuTime:
    """Where the time of one arm goes: its classes (rows as the view has them), its kernels, and what it leaves out.

    `busy_s` is the time of a run in which a kernel or copy ran, `span_s` from the first one's start to the last one's
    end, both as they were profiled. `cpu_nodes` and `memcpy_nodes` are None of an engine that executes no graph.
    """

    classes: tuple[Row, ...]
    kernels: tuple[Row, ...]
    launches: float | None
    busy_s: float | None
    span_s: float | None
    time_s: float
    cpu_nodes: int | None
    memcpy_nodes: int | None


def table(judged: Judged, datasets: Mapping[str, pl.LazyFrame]) -> pl.DataFrame:
    """Return the view: a row a class of every arm with a profile, in the tables' order, the longest class first."""
    by_arm: dict[Key, list[Row]] = {}
    for row in name_arms(datasets["kernels"]).collect().to_dicts():
        by_arm.setdefault((row["cell"], row["recipe"]), []).append(row)
    if not by_arm:
        return pl.DataFrame(schema=SCHEMA)
    rates = _rates(judged, datasets)
    rows = []
    for cell in judged.known.cells:
        for name, verdict in judged.verdicts[cell["id"]].items():
            seen = by_arm.get((cell["id"], name), [])
            mine = {
                **{key: cell[key] for key in ("model", "workload", "target")},
                **{"cell": cell["id"], "recipe": name, "control": name == CONTROL, "verdict": verdict.word},
            }
            rows += [{**mine, **one} for one in _classes(judged, cell, name, seen, rates.get(cell["id"]))]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def of_arm(judged: Judged, datasets: Mapping[str, pl.LazyFrame], cell: Row, name: str) -> GpuTime | None:
    """Return where the time of an arm goes, None where its kernels were not seen."""
    mine = name_arms(datasets["kernels"].filter(pl.col("cell") == cell["id"])).filter(pl.col("recipe") == name)
    seen = mine.sort("seconds", descending=True).collect().to_dicts()
    found = _classes(judged, cell, name, seen, _rates(judged, datasets).get(cell["id"]))
    if not found:
        return None
    variant = judged.known.variants[cell["id"], name]
    return GpuTime(
        classes=tuple(found),
        kernels=tuple({key: row[key] for key in ("kernel", "class", "count", "seconds")} for row in seen),
        launches=variant["kernel_launches"],
        busy_s=variant["kernel_busy_s"],
        span_s=variant["kernel_span_s"],
        time_s=found[0]["time_s"],
        **placed(variant, judged.known.sweep.targets[cell["target"]].needs_gpu),
    )


def _rates(judged: Judged, datasets: Mapping[str, pl.LazyFrame]) -> dict[str, Rates]:
    """Cell → the ceilings of the machine that it was timed on, where both are known."""
    rates = best(datasets["ceilings"].collect().to_dicts())
    hardware = dict(datasets["machines"].select("cell", "hardware").unique().collect().iter_rows())
    found = {cell["id"]: rates.get((hardware.get(cell["id"]), cell["target"])) for cell in judged.known.cells}
    return {cell: one for cell, one in found.items() if one is not None}


def _classes(judged: Judged, cell: Row, name: str, seen: Sequence[Row], rates: Rates | None) -> list[dict[str, Any]]:
    variant = judged.known.variants.get((cell["id"], name))
    if not seen or variant is None:
        return []
    floor = None if rates is None else _floor(judged, cell, name, variant, rates, fused(seen))
    time_s = judged.known.times.get((cell["id"], name), {}).get("time_s") or variant["kernel_wall_s"]
    return classes(seen, variant["kernel_busy_s"], time_s, floor)


def classes(
    kernels: Sequence[Row], busy_s: float | None, time_s: float, floor: Mapping[str, float] | None
) -> list[dict[str, Any]]:
    """Return a row a class of an arm's `kernels`, the longest first and the idle time last.

    `busy_s` is the time of a run in which at least one of them ran; the rest of `time_s` is idle. `floor` has the least
    seconds of the classes that have some, None where they are not known.
    """
    seconds: dict[str, float] = dict.fromkeys(floor or (), 0.0)
    counts: dict[str, float] = dict.fromkeys(floor or (), 0.0)
    for one in kernels:
        seconds[one["class"]] = seconds.get(one["class"], 0.0) + one["seconds"]
        counts[one["class"]] = counts.get(one["class"], 0.0) + one["count"]
    order = sorted(seconds, key=lambda word: -seconds[word])
    busy = sum(seconds.values()) if busy_s is None else busy_s
    rows = [(word, counts[word], seconds[word]) for word in order]
    return [
        {
            "class": word,
            "launches": count,
            "seconds": took,
            "share": took / time_s,
            "floor_s": None if floor is None else floor.get(word, 0.0),
            "time_s": time_s,
        }
        for word, count, took in [*rows, (IDLE, None, max(0.0, time_s - busy))]
    ]


def fused(kernels: Iterable[Row]) -> bool:
    """Return whether attention runs in kernels of its own, and not as products with a softmax between."""
    return any(one["class"] == ATTENTION and SOFTMAX not in one["kernel"].lower() for one in kernels)


def _floor(
    judged: Judged, cell: Row, name: str, variant: Row, rates: Rates, own_attention: bool
) -> dict[str, float] | None:
    sweep = judged.known.sweep
    model = next((one for one in sweep.models if one.label == cell["model"]), None)
    workload, recipe = sweep.workloads.get(cell["workload"]), sweep.recipes.get(name)
    if model is None or workload is None or not variant["settings"]:
        return None
    if resized(recipe) or isinstance(model, OwnModel):
        whole = least_s(model, workload, variant, rates, resized=resized(recipe))
        return None if whole is None else {PRODUCTS: max(whole.values())}
    return floor_s(model, workload, variant, rates, last_token=keeps_last_token(recipe), own_attention=own_attention)


def floor_s(
    model: Model, workload: Workload, variant: Row, rates: Rates, *, last_token: bool, own_attention: bool
) -> dict[str, float] | None:
    """Return the least seconds of the products and of the attention in a run, None where a ceiling is not known.

    Products take as long as their operations at the matrix ceiling of the arm's precision, or as their weights and what
    else must move takes to be read, whichever is longer; attention as long as its operations or as the keys and values
    that a step reads. Where attention is written out (`own_attention` is False), its products are among the others, and
    so is its floor.
    """
    dtype = computed_in(variant, rates.per_second)
    found = {PRODUCTS: 0.0, ATTENTION: 0.0}
    for part, times in parts(workload):
        total = part.longest if part.kind == "decode" else part.given
        new = 1 if part.kind == "decode" else part.given
        width = model.num_attention_heads * model.head_size * model.num_hidden_layers
        attended = 4.0 * part.batch * new * total * width
        products = flops(model, part) - attended - unread(model, part, variant, last_token)
        for word, operations, size in (
            (PRODUCTS, products, moved(model, part, variant)),
            (ATTENTION, attended - hidden(model, part, variant), read_cache(model, part, variant)),
        ):
            least = limits(operations, size, dtype, rates.per_second, rates.cache_bytes)
            if least is None:
                return None
            found[word] += times * max(least.values())
    if own_attention:
        return found
    return {PRODUCTS: sum(found.values())}
