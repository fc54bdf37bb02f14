"""What a row's arm is and does: its graph, answers, limit and times, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from llama_bench.report.explanation.section import Section, change, share
from llama_bench.report.table import DASH, Table, duration, plural
from llama_bench.report.tradeoffs import megabytes
from llama_bench.stats.answers import Answer, Answers
from llama_bench.stats.evidence import IDENTITY
from llama_bench.stats.executed import Change
from llama_bench.stats.explained import Explained
from llama_bench.stats.shape import First, Shape

PARTS = dict(zip(IDENTITY, ("executed graph", "placement", "settings", "engine"), strict=True))
"""Columns that a no-op must share with its baseline → what they are called."""

OPS = 20
"""Operators of a table; of more the largest differences are shown."""


def graph(found: Explained) -> Section:
    """Return the section about what the arm executes."""
    one, base = found.change, found.name.baseline
    if one is None:
        return Section("Graph", ("What it executes was not examined in this cell.",))
    is_base = found.name.recipe == base
    sentences = [*_passes(one), *_executed(one, base, is_base), *_stored(one, base, is_base)]
    tables = []
    if one.by_passes or one.executed:
        ops = sorted(
            {*one.by_passes, *one.executed},
            key=lambda op: (-max(abs(one.executed.get(op, 0)), abs(one.by_passes.get(op, 0))), op),
        )
        rows = tuple((op, _count(one.by_passes, op), _count(one.executed, op)) for op in ops[:OPS])
        notes = (f"{len(ops) - OPS} more operators differ by less.",) if len(ops) > OPS else ()
        columns = ("Operator", "Stored graph, by the passes", f"Executed, against {base}")
        tables.append(Table("Nodes more (+) or fewer (−)", columns, rows, notes))
    if one.settings and not is_base:
        rows = tuple((row.name, row.baseline, row.arm) for row in one.settings)
        tables.append(Table("Settings that differ", ("Setting", base, found.name.recipe), rows, text=True))
    return Section("Graph", tuple(sentences), tuple(tables))


def _count(counts: Mapping[str, int], op: str) -> str:
    return f"{counts[op]:+d}".replace("-", "−") if op in counts else DASH


def _passes(one: Change) -> Iterator[str]:
    if not one.passes:
        yield f"It has no passes: the stored graph is the export as it is ({_nodes(one.nodes_after)})."
        return
    yield f"Its passes, in order: {', '.join(one.passes)}."
    yield (
        f"Together they change {_nodes(one.nodes_changed)} (each counted once a pass) of {one.nodes_before}; "
        f"{_nodes(one.nodes_after)} are left."
    )


def _nodes(count: int | None) -> str:
    return "an unknown number of nodes" if count is None else plural(count, "node")


def _executed(one: Change, base: str, is_base: bool) -> Iterator[str]:
    if one.executed_sha256 is None:
        yield f"The engine {one.engine} executes no graph that could be saved, so nothing proves it a no-op."
    elif is_base:
        yield f"What {one.engine} executes: {_hashed(one.executed_nodes, one.executed_sha256)}."
    else:
        mine = _hashed(one.executed_nodes, one.executed_sha256)
        yield (
            f"What {one.engine} executes: {mine}; of {base} "
            f"{_hashed(one.baseline_executed_nodes, one.baseline_executed_sha256)}."
        )
    if is_base:
        return
    same = [PARTS[key] for key, equal in one.same.items() if equal]
    other = [PARTS[key] for key, equal in one.same.items() if equal is False]
    unknown = [PARTS[key] for key, equal in one.same.items() if equal is None]
    told = [
        f"equal {base}'s: {', '.join(same)}" if same else "",
        f"differ: {', '.join(other)}" if other else "",
        f"not known: {', '.join(unknown)}" if unknown else "",
    ]
    yield f"Of the four that make a no-op, {'; '.join(filter(None, told))}."
    if len(one.moved) > 1:
        yield f"Nodes placed elsewhere: {'; '.join(_moved(provider, ops) for provider, ops in one.moved.items())}."


def _hashed(nodes: int | None, sha256: str | None) -> str:
    return f"{_nodes(nodes)} (hash {sha256[:8]})" if sha256 else "it is not known"


def _moved(provider: str, ops: Mapping[str, int]) -> str:
    return f"{provider} {sum(ops.values()):+d}"


def _stored(one: Change, base: str, is_base: bool) -> Iterator[str]:
    if one.graph_bytes is None or one.weight_bytes is None:
        return
    mine = one.graph_bytes + one.weight_bytes
    beside = ""
    if not is_base and one.baseline_graph_bytes is not None and one.baseline_weight_bytes is not None:
        beside = f"; {base} takes {megabytes(one.baseline_graph_bytes + one.baseline_weight_bytes)} MB"
    yield f"Graph and weights take {megabytes(mine)} MB on disk{beside}."


def accuracy(found: Explained) -> Section:
    """Return the section about its answers."""
    one = found.answers
    if one is None:
        return Section("Accuracy", ("Its answers were never compared with torch's.",))
    kind = {"exact": "It claims to be exact. ", "approximate": "It is an approximation. "}.get(one.kind or "", "")
    sentences = [f"{kind}The timed session's outputs against torch's in fp32, at their worst over all restarts:"]
    sentences.append(_verdict(one))
    if one.nonfinite:
        sentences.append(f"{plural(one.nonfinite, 'value')} of its answers are not finite.")
    if one.text:
        made = f"{plural(one.text.sequences, 'text')}: {one.text.agreed} of {plural(one.text.tokens, 'token')}"
        sentences.append(f"It generated {made} agree with torch's from the first one on.")
    rows = tuple(_answer(answer) for answer in one.found)
    columns = ("Output", "Metric", "Worst", "Bound", "Room", "Restarts")
    return Section("Accuracy", tuple(sentences), (Table("", columns, rows, text=True),) if rows else ())


def _verdict(one: Answers) -> str:
    """Whether its bounds are kept; rows of schema version 1 have no words for what is outside."""
    margins = [(answer.margin, answer) for answer in one.found if answer.margin is not None]
    if one.within is None:
        return "No bound applies to it: what was found is recorded, and not judged."
    if not one.within:
        outside = "; ".join(one.violated) or ", ".join(f"{a.metric} of {a.output}" for room, a in margins if room < 1)
        return f"Outside its bounds: {outside or 'an output that cannot be compared'}."
    if not margins:
        return "Every bound is kept."
    room, least = min(margins, key=lambda found: found[0])
    told = "nothing is lost" if room == math.inf else f"{room:.3g} times as far off would still do"
    return f"Every bound is kept; the nearest is {least.output}, {least.metric}: {told}."


def _answer(one: Answer) -> tuple[str, ...]:
    bound = DASH if one.bound is None else f"{'≥' if one.least else '≤'} {one.bound:g}"
    return one.output, one.metric, f"{one.worst:.6g}", bound, _margin(one), f"{one.restarts}"


def _margin(one: Answer) -> str:
    if one.margin is None:
        return DASH
    return "all" if one.margin == math.inf else f"{one.margin:.3g}×"


def limit(found: Explained) -> Section:
    """Return the section about the speed of light."""
    one = found.bound
    if one is None:
        why = (
            "Which share of its machine's speed it reaches is not known: this run has ceilings, but what its recipe "
            "does with operations and bytes cannot be counted, or it has no time."
            if found.ceilings
            else "Which share of its machine's speed it reaches is not known: no ceilings were measured in this run."
        )
        return Section("Speed of light", (why,))
    took = f" The arm took {duration(found.time_s, 'ms')} ms (geometric mean)." if found.time_s else ""
    least = duration(one.seconds, "ms")
    sentences = [
        f"A run takes at least {least} ms here, by the machine's own ceilings; {_by(one.by)} sets that.{took}",
        f"It reaches {share(one.share)} of that speed." if one.fault is None else f"That is {one.fault}.",
    ]
    return Section("Speed of light", tuple(sentences))


def _by(by: str) -> str:
    return {"compute": "computing its products", "memory": "moving its bytes"}[by]


def spread_of_times(found: Explained) -> Section | None:
    """Return the section about the times of single runs; None where nothing usable was timed."""
    one, base = found.times, found.baseline_times
    if one is None:
        return None
    slowest = max(one.mean_s, base.mean_s if base else 0.0)
    unit = "s" if slowest >= 1 else "ms"
    sentences = [*_warm_up(one), *_first(one, base, found.name.baseline)]
    columns = ("", "Runs", *(f"{c} ({unit})" for c in ("Least", "Median", "Mean", "p90", "Most")), "Spread in a slot")
    rows = [_times(found.name.recipe, one, unit)]
    rows += [_times(found.name.baseline, base, unit)] if base else []
    return Section("Single runs", tuple(sentences), (Table("", columns, tuple(rows)),))


def _times(name: str, one: Shape, unit: str) -> tuple[str, ...]:
    seconds = (one.least_s, one.median_s, one.mean_s, one.p90_s, one.most_s)
    spread = DASH if one.deviation is None else share(one.deviation)
    return name, f"{one.runs}", *(duration(value, unit) for value in seconds), spread


def _warm_up(one: Shape) -> Iterator[str]:
    if one.warmup_runs is None:
        yield "How long it warmed up was not recorded."
        return
    least, median, most = (f"{value:g}" for value in one.warmup_runs)
    runs = f"{median} runs" if least == most else f"{median} runs (median; from {least} to {most})"
    steady = (
        f"in {one.steady} of {plural(one.restarts, 'restart')} its last three agreed within 2 %"
        if one.restarts
        else "whether it became steady was not recorded"
    )
    yield f"Warm-up took {runs}; {steady}."


def _first(one: Shape, base: Shape | None, baseline: str) -> Iterator[str]:
    if one.first is None:
        yield "A slot is one run here: nothing tells its first from later ones."
        return
    yield f"A slot's first timed run against its later ones: {_more(one.first)}."
    if base is not None and base.first is not None:
        yield f"The same of {baseline}: {_more(base.first)}."


def _more(one: First) -> str:
    if one.low is None or one.high is None:
        return f"{change(one.mean)}, from one restart"
    clear = "" if one.low <= 0 <= one.high else ", so they differ"
    return f"{change(one.mean)} [{change(one.low)}, {change(one.high)}]{clear}"
