"""One row explained: from facts (:mod:`llama_bench.stats.explained`) to sections of sentences and tables."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from llama_bench.report.explanation.arm import accuracy, graph, limit, spread_of_times
from llama_bench.report.explanation.gpu import gpu
from llama_bench.report.explanation.machine import machine
from llama_bench.report.explanation.more import what_would_change_it
from llama_bench.report.explanation.replicates import order, restarts
from llama_bench.report.explanation.section import Section, interval, times
from llama_bench.report.explanation.why import why
from llama_bench.report.table import escape, markdown
from llama_bench.stats.explained import Explained

__all__ = ["Section", "as_json", "as_markdown", "sections", "title"]


def title(found: Explained) -> str:
    """Return which row it is, its verdict and its number."""
    name, tested = found.name, found.decision.tested
    number = f" {times(tested.speedup)} {interval(tested.low, tested.high)}" if tested else ""
    shown = f" ({number.strip()})" if name.verdict == "wrong" and number else number
    return f"{name.recipe} · target {name.target} · {name.model} · {name.workload}: {name.verdict}{shown}"


def sections(found: Explained) -> list[Section]:
    """Return everything that is said of the row, the verdict first."""
    parts = (
        why(found.decision, found.name.recipe),
        what_would_change_it(found.decision),
        graph(found),
        accuracy(found),
        restarts(found),
        order(found),
        machine(found),
        limit(found),
        gpu(found),
        spread_of_times(found),
    )
    return [part for part in parts if part is not None]


def as_markdown(found: Explained) -> str:
    """Return the explanation as Markdown."""
    parts = [f"# {escape(title(found))}"]
    for part in sections(found):
        parts += [f"## {part.heading}", "\n".join(f"* {escape(sentence)}" for sentence in part.sentences)]
        parts += [markdown(table).rstrip() for table in part.tables]
    return "\n\n".join(parts) + "\n"


def as_json(found: Explained) -> dict[str, Any]:
    """Return the facts and what is said of them, JSON-able: a number that is not finite becomes null."""
    said = [dataclasses.asdict(part) for part in sections(found)]
    return {"title": title(found), "facts": _plain(dataclasses.asdict(found)), "sections": said}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
