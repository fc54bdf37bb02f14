"""Evidence besides timings: arms that change nothing that is executed, wrong answers, and why an arm has no number."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_bench.bench.text import TEXT
from llama_bench.plan import TORCH

Row = Mapping[str, Any]

IDENTITY = ("executed_sha256", "placement_sha256", "settings_sha256", "engine")
"""What must equal the baseline's for a no-op; environment variables are part of the settings."""


def no_op(arm: Row | None, baseline: Row | None, baseline_name: str) -> str | None:
    """Return the sentence that proves an arm a no-op, None where it is none or was not examined.

    `arm` and `baseline` are rows of the dataset `variants`. The same graph alone is no proof: sessions that differ
    only in threads, TF32 or CUDA graphs execute the same graph (the definition is the design's). An engine that
    executes no graph has none to show, and is never a no-op.
    """
    if arm is None or baseline is None:
        return None
    if any(arm[key] is None or arm[key] != baseline[key] for key in IDENTITY):
        return None
    graph = f"executed graph {arm['executed_sha256'][:8]}…"
    changed = arm["nodes_changed"] or 0
    if not changed:
        return f"changed 0 nodes; {graph} and settings equal {baseline_name}'s"
    removed = (arm["nodes_before"] or 0) - (arm["nodes_after"] or 0)
    kinds = _kinds(arm["histogram_difference"])
    if removed > 0 and all(count < 0 for count in kinds.values()):
        listed = ", ".join(f"{-count} {op}" for op, count in sorted(kinds.items()))
        what = f"removes {removed} node{'s' if removed > 1 else ''}" + (f" ({listed})" if listed else "")
        return f"{what} that ONNX Runtime removes itself: {graph} equals {baseline_name}'s, as do the settings"
    return (
        f"changes {changed} nodes, and ONNX Runtime's own optimisation makes the same graph of both: "
        f"{graph} equals {baseline_name}'s, as do the settings"
    )


def wrong(rows: Sequence[Row], reference: str = TORCH) -> str | None:
    """Return the sentence about the worst answer outside its bound in any restart, None when every one is inside.

    `rows` are the arm's rows of the dataset `accuracy`; a row without a bound says nothing. `reference` is what they
    are checked against, in words.
    """
    outside = [row for row in rows if row["within_bound"] is False]
    if not outside:
        return None
    worst = max(outside, key=_badness)
    if worst["output"] == TEXT:  # asked once an arm
        return f"its predictions on text are outside their bounds against {reference}: {_violation(worst)}"
    restarts = len({row["restart"] for row in outside})
    return (
        f"output {worst['output']} is outside its accuracy bound against {reference}: {_violation(worst)}, "
        f"in {restarts} restart{'s' if restarts > 1 else ''}"
    )


def _violation(row: Row) -> str:
    """What is wrong with an answer; rows of schema version 1 have no words of their own for it."""
    if violated := row.get("violated"):
        return str(violated)
    spoiled = row["nonfinite"] or 0
    size = f"{spoiled} values that are not finite" if spoiled else f"relative difference {_number(row['max_rel'])}"
    return f"{size} (bound {_number(row['bound'])})"


def without_number(
    cell: Row, arm: str, variant: str | None, failures: Iterable[Row], unserved: str | None
) -> tuple[str, str]:
    """Return verdict and reason for an arm without timings: unserved, failed, or skipped.

    `cell` is its entry in run.json. A failure concerns the arm when none of its filled columns (cell, model,
    workload, target, recipe) contradicts, or when it is the failure of the arm's own artifact. The last one that names
    the arm or its artifact counts, else the last one of its cell.
    """
    if unserved is not None:
        return "unserved", unserved
    concerning = [row for row in failures if _concerns(row, cell, arm, variant)]
    named = [row for row in concerning if row["recipe"] is not None or row["artifact"] is not None]
    reason = next(reversed(named or concerning), None)
    if reason is None:
        return "skipped", "not timed: the run ended before it or left it out"
    message = " ".join(str(reason["message"] or reason["kind"] or "no message").split())
    if reason["kind"] == "skipped":
        return "skipped", message
    stage = f"{reason['stage']}: " if reason["stage"] else ""
    return "failed", f"{stage}{message}"


GAVE_NOTHING_UP = ("lost", "skipped")
"""Kinds of failure that cost a restart, or that left an arm out without trying it."""


def died(
    cell: Row, arm: str, failures: Iterable[Row], *, restarts: int, last: int, needed: int, others: int
) -> str | None:
    """Return the sentence about an arm that was given up half-way, None for one that was not.

    `restarts` is how many have timed it, `last` the highest number of those, `needed` how many its interval asks for
    and `others` the most that any arm beside it has. A failure after `last` that gave the arm up says why; one before
    it was tried again since.
    """
    found = [
        row
        for row in failures
        if row["cell"] == cell["id"] and row["recipe"] == arm and row["stage"] != "build"
        if row["kind"] not in GAVE_NOTHING_UP and (row["restart"] is None or row["restart"] > last)
    ]
    counted = f"{restarts} restart{'s' if restarts > 1 else ''}"
    if found and restarts < needed:
        message = " ".join(str(found[-1]["message"] or found[-1]["kind"]).split())
        return f"given up after {counted}: {found[-1]['stage'] or 'measure'}: {message}"
    if restarts < min(others, needed):
        return f"timed in {counted} only, other arms beside it in {others}"
    return None


MACHINE = ("hostname", "cpu", "physical_cores", "gpu")
"""Columns of `machines` that tell one machine from another."""


def two_machines(rows: Sequence[Row]) -> str | None:
    """Return the sentence about a cell whose restarts ran on different machines, None where they ran on one.

    `rows` have the columns of `MACHINE`; what is null in one of them was not seen and tells nothing apart.
    """
    if all(len({row[key] for row in rows} - {None}) < 2 for key in MACHINE):
        return None
    names = sorted({_machine(row) for row in rows})
    return f"its restarts ran on different machines, and a ratio never crosses machines: {' and '.join(names)}"


def unserved_targets(run: Row) -> dict[str, str]:
    """Return target → why no node serves it, from run.json's `unserved` (a text, or anything JSON, a target)."""
    found = run.get("unserved") or {}
    if not isinstance(found, Mapping):
        found = dict.fromkeys(map(str, found), "no node serves it")
    return {
        target: why if isinstance(why, str) else json.dumps(why, ensure_ascii=False) for target, why in found.items()
    }


def _concerns(row: Row, cell: Row, arm: str, variant: str | None) -> bool:
    if variant is not None and row["artifact"] == variant:
        return True
    known = {"cell": cell["id"], **{key: cell[key] for key in ("model", "workload", "target")}, "recipe": arm}
    filled = {key: row[key] for key in known if row[key] is not None}
    return bool(filled) and all(known[key] == value for key, value in filled.items())


def _machine(row: Row) -> str:
    """One machine in words: `host-a (AMD EPYC, 8 cores, NVIDIA H200)`."""
    cores = f"{row['physical_cores']} cores" if row["physical_cores"] else None
    words = ", ".join(word for word in (row["cpu"], cores, row["gpu"]) if word)
    return f"{row['hostname'] or 'a host without name'} ({words or 'unknown hardware'})"


def _kinds(histogram_difference: str | None) -> dict[str, int]:
    """Op → nodes gained or lost, from its JSON text."""
    found = json.loads(histogram_difference) if histogram_difference else {}
    return {str(op): int(count) for op, count in found.items() if count}


def _badness(row: Row) -> tuple[int, float]:
    """Order of wrong answers: values that are not finite, then what says most to a reader, text, then the largest."""
    largest = row["max_rel"]
    if row["nonfinite"] or (largest is not None and largest != largest):
        return 2, 0.0
    return int(row["output"] == TEXT), float("inf") if largest is None else float(largest)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2g}"
