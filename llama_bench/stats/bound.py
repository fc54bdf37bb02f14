"""The speed of light: the least seconds that a machine's own ceilings allow, and the share of it an arm reaches. Pure.

The roofline model of Williams, Waterman & Patterson (2009), "Roofline: An Insightful Visual Performance Model for
Multicore Architectures": a run takes at least as long as its operations take at the highest rate of its precision, and
as its bytes take at the highest rate of the memory, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from llama_bench.counts import flops, moved_bytes
from llama_bench.stats.least import computed_in, hidden, keeps_last_token, moved, read_cache, resized, unread
from llama_bench.sweep import AnyModel, OwnModel, Sweep, Workload

Row: TypeAlias = Mapping[str, Any]
Key: TypeAlias = tuple[str, str]
"""(cell id, arm)"""

By: TypeAlias = Literal["compute", "memory"]

TOLERANCE = 0.02
"""A ceiling is the fastest of many runs, and yet a per cent or two low now and then: as little above it is 100 %."""

SAME_WITHOUT_UNITS = {"tf32": "fp32"}
"""What a GPU without units for a precision computes in when it is asked for that one."""


@dataclass(frozen=True, slots=True)
class Bound:
    """The least seconds of an arm's run, what sets them, and which share of that speed it reached (1.0 is 100 %).

    `share` is exactly 1 within TOLERANCE above it. Beyond, `fault` says so: no arm is faster than its machine.
    """

    seconds: float
    by: By
    share: float
    fault: str | None = None


@dataclass(slots=True)
class Rates:
    """The ceilings of one machine and target: (what, dtype) → per second, and its last-level cache where known."""

    per_second: dict[tuple[str, str], float] = field(default_factory=dict)
    cache_bytes: int | None = None


def bound_s(
    flops: float, moved_bytes: float, dtype: str, ceilings: Mapping[tuple[str, str], float], cache_bytes: int | None
) -> float | None:
    """Return the least seconds of a run, None where a ceiling that it needs is not known.

    `ceilings` are operations or bytes a second by (what, dtype), `moved_bytes` what :func:`moved_bytes` counts. What
    the last-level cache keeps from one run to the next need not move again, so bytes count beyond `cache_bytes` only;
    where the cache is not known, nothing says that any byte must move, and the operations alone bound.
    """
    found = limits(flops, moved_bytes, dtype, ceilings, cache_bytes)
    return None if found is None else max(found.values())


def limits(
    flops: float, moved_bytes: float, dtype: str, ceilings: Mapping[tuple[str, str], float], cache_bytes: int | None
) -> dict[By, float] | None:
    """Return the least seconds by what sets them, as :func:`bound_s` counts them.

    The read ceiling stands for the memory, or the copy where it is higher. An arm that may compute in less than fp32
    may compute in fp32 as well, and what is faster bounds it.
    """
    product = ceilings.get(("matmul", dtype), ceilings.get(("matmul", SAME_WITHOUT_UNITS.get(dtype, dtype))))
    memory = max(ceilings.get(("read", ""), 0.0), ceilings.get(("copy", ""), 0.0))
    if not product or not memory:
        return None
    product = max(product, ceilings.get(("matmul", "fp32"), 0.0))
    beyond = 0.0 if cache_bytes is None else max(moved_bytes - cache_bytes, 0.0)
    return {"compute": flops / product, "memory": beyond / memory}


def bound(seconds: float, least: Mapping[By, float]) -> Bound:
    """Return what a run of `seconds` reaches of the speed that `least` allows."""
    by = max(least, key=least.__getitem__)
    share = least[by] / seconds
    if share > 1 + TOLERANCE:
        fault = f"{share:.0%} of the machine's own ceiling: the measurement or the ceiling is at fault"
        return Bound(least[by], by, share, fault)
    return Bound(least[by], by, min(share, 1.0))


def fractions(
    sweep: Sweep,
    cells: Iterable[Row],
    times: Mapping[Key, Row],
    variants: Mapping[Key, Row],
    machines: Iterable[Row],
    ceilings: Iterable[Row],
) -> dict[Key, Bound]:
    """Return what each timed arm reaches of its machine's speed, where ceilings and settings are known.

    `cells` are those of run.json, `times` and `variants` by (cell, arm) with `time_s`; `settings`, `weight_bytes`,
    `class`, `engine` and `executed_histogram`; `machines` and `ceilings` are rows of those datasets. Of several
    measurements of a ceiling the best counts. See :func:`least_s` for what bounds which arm.
    """
    rates = best(ceilings)
    hardware = {row["cell"]: row["hardware"] for row in machines}
    models = {model.label: model for model in sweep.models}
    by_id = {cell["id"]: cell for cell in cells}
    found = {}
    for (cell_id, arm), variant in variants.items():
        cell, seconds = by_id.get(cell_id), times.get((cell_id, arm), {}).get("time_s")
        if cell is None or not seconds or not variant["settings"]:
            continue
        here = rates.get((hardware.get(cell_id), cell["target"]))
        model, workload = models.get(cell["model"]), sweep.workloads.get(cell["workload"])
        if here is None or model is None or workload is None:
            continue
        recipe = sweep.recipes.get(arm)
        about = {"resized": resized(recipe), "last_token": keeps_last_token(recipe)}
        if (least := least_s(model, workload, variant, here, **about)) is not None:
            found[cell_id, arm] = bound(seconds, least)
    return found


def least_s(
    model: AnyModel, workload: Workload, variant: Row, rates: Rates, *, resized: bool = False, last_token: bool = False
) -> dict[By, float] | None:
    """Return the least seconds of a run of `variant` by what sets them, None where that is not known.

    A `generate` takes as long as its prompt and all its steps, each of them bounded by operations or bytes for itself:
    it has one entry, their sum, under what sets the larger part of it. A step reads its KV cache. For the precision see
    :func:`llama_bench.stats.least.computed_in`. Of a model whose sizes a pass changed (`resized`) the
    operations are not known here: its stored weights alone bound it, and where several tokens share them nothing does.
    With `last_token` a pass took out of the last layer what only other tokens than the last need.

    An own model is bounded by its products with weights and by what it reads. Where not all of its products can be
    counted, or most are convolutions that may be computed in fewer operations, its bound is not known.
    """
    if isinstance(model, OwnModel):
        return _own_least_s(model, workload, variant, rates)
    if resized and workload.kind == "prefill":
        return None
    dtype = computed_in(variant, rates.per_second)
    total: dict[By, float] = {"compute": 0.0, "memory": 0.0}
    for part, times in parts(workload):
        spared = hidden(model, part, variant) + unread(model, part, variant, last_token)
        operations = 0.0 if resized else flops(model, part) - spared
        bytes_moved = moved(model, part, variant) + (0.0 if resized else read_cache(model, part, variant))
        least = limits(operations, bytes_moved, dtype, rates.per_second, rates.cache_bytes)
        if least is None:
            return None
        if workload.kind != "generate":
            return least
        by = max(least, key=least.__getitem__)
        total[by] += times * least[by]
    return {max(total, key=total.__getitem__): sum(total.values())}


def _own_least_s(model: OwnModel, workload: Workload, variant: Row, rates: Rates) -> dict[By, float] | None:
    cost = model.cost(workload.batch, workload.given)
    if cost.unbounded is not None:
        return None
    fastest = model.reduced or variant["class"] == "approximate"
    dtype = computed_in({**variant, "class": "approximate" if fastest else "exact"}, rates.per_second)
    read = moved_bytes(model, workload, variant["weight_bytes"] or 0)
    return limits(cost.least_operations, read, dtype, rates.per_second, rates.cache_bytes)


def parts(workload: Workload) -> list[tuple[Workload, int]]:
    """Return what a run consists of, and how often: a `generate` is the prefill of its prompt and its decode steps.

    Their bounds grow with the context in straight lines and the larger counts, so that the step in the middle, as
    often as there are steps, takes no longer than all steps do (Jensen 1906).
    """
    if workload.kind != "generate" or workload.prompt is None or workload.new_tokens is None:
        return [(workload, 1)]
    batch, steps = workload.batch, workload.new_tokens - 1
    prompt = Workload(kind="prefill", batch=batch, sequence=workload.prompt, outputs="last_logits", kv_out=False)
    middle = Workload(kind="decode", batch=batch, context=workload.prompt + max(steps - 1, 0) // 2)
    return [(prompt, 1), (middle, steps)] if steps else [(prompt, 1)]


def best(ceilings: Iterable[Row]) -> dict[tuple[str | None, str], Rates]:
    """Return the best of each ceiling by (hardware, target), from rows of the dataset `ceilings`."""
    found: dict[tuple[str | None, str], Rates] = {}
    for row in ceilings:
        rates = found.setdefault((row["hardware"], row["target"]), Rates())
        key = (row["what"], row["dtype"] or "")
        rates.per_second[key] = max(rates.per_second.get(key, 0.0), row["per_second"] or 0.0)
        if row["cache_bytes"] is not None:
            rates.cache_bytes = max(rates.cache_bytes or 0, row["cache_bytes"])
    return found
