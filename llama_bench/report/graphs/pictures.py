"""The pictures: one layer of a graph, a pass before and after, one rewrite and its neighbours, operators counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_bench.report.drawing import BLUE, GREY, INK, Chart, themed
from llama_bench.report.graphs.draw import Panel, panel, svg
from llama_bench.report.graphs.fold import Folded, fold
from llama_bench.report.graphs.scene import Marked, scene
from llama_bench.report.table import plural

if TYPE_CHECKING:
    from llama_bench.report.graphs.difference import Difference, Rewrite
    from llama_bench.report.graphs.read import Graph

HOPS = 1
"""How far around a rewrite its neighbours are drawn."""

MOST_REWRITES = 3
"""Kinds of rewrites of one pass that get a picture, the most frequent ones."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture ready to be shown: the name of its file, what it shows in words, and its SVG."""

    name: str
    caption: str
    svg: str


def layer(graph: Graph, title: str, name: str = "layer") -> Picture:
    """Return the graph with its repeated layers folded, operators coloured and lettered by kind."""
    shown = [node.index for node in graph.nodes if not node.shape]
    folded = fold(graph, shown)
    drawn = panel("", scene(graph, folded))
    caption = f"{title}: {_size(graph)}. {_folding(folded)}{_left_out(graph, shown)}{_cut([drawn])}"
    return Picture(name, caption.strip(), svg(title, [drawn]))


def before_and_after(difference: Difference, title: str, name: str) -> Picture | None:
    """Return both graphs side by side with what was removed, added and fused; None where only constants moved."""
    changed = [
        *difference.removed,
        *difference.added,
        *(difference.before.nodes[index] for index in difference.resized),
    ]
    if all(node.op == "Constant" for node in changed):
        return None
    visible = not all(node.shape for node in changed)
    panels, left_out = [], []
    for words, graph, marked in _sides(difference):
        shown = [
            node.index
            for node in graph.nodes
            if not node.shape or (not visible and node.index in marked.marks and node.op != "Constant")
        ]
        keys = {index: f"{mark} {marked.numbers.get(index, 0)}" for index, mark in marked.marks.items()}
        drawn = scene(graph, fold(graph, shown, keys), marked, brief=True)
        panels.append(panel(f"{words}: {plural(len(graph.nodes), 'node')}", drawn))
        left_out.append(len(graph.nodes) - len(shown))
    hidden = (
        f" {left_out[0]} constants and shape nodes are left out before, {left_out[1]} after." if any(left_out) else ""
    )
    caption = f"{title}, before and after: {summary(difference)} Equal layers are folded.{hidden}{_cut(panels)}"
    return Picture(name, caption, svg(title, panels))


def rewrites(
    difference: Difference, title: str, name: str, hops: int = HOPS, most: int = MOST_REWRITES
) -> list[Picture]:
    """Return a picture for each of the `most` frequent kinds of rewrites: the place that changed, its neighbours."""
    numbered = [
        (number, kind) for number, kind in enumerate(difference.kinds, 1) if not difference.only_constants(kind[0])
    ]
    return [
        _rewrite(difference, kind, f"{title}: rewrite {number}", f"{name}-rewrite-{number}", hops)
        for number, kind in numbered[:most]
    ]


def _rewrite(difference: Difference, kind: Sequence[Rewrite], title: str, name: str, hops: int) -> Picture:
    one = kind[0]
    olds, news = around(difference, one, hops)
    panels = []
    for (words, graph, marked), found in zip(_sides(difference), (olds, news), strict=True):
        changed = set(one.removed if graph is difference.before else one.added)
        shown = [
            index
            for index in sorted(found)
            if graph.nodes[index].op != "Constant" or (index in changed and len(changed) == 1)
        ]
        # neighbours may belong to other rewrites: here only this one is marked
        own = Marked(
            {i: mark if i in changed or mark == "resized" else "elsewhere" for i, mark in marked.marks.items()},
            {i: number for i, number in marked.numbers.items() if i in changed},
        )
        if shown:
            panels.append(panel(words, scene(graph, Folded(tuple(shown), ()), own)))
    times = "once" if len(kind) == 1 else f"{len(kind)} times"
    what = " → ".join(
        _counted(graph.nodes[index].op for index in indexes) or "nothing"
        for graph, indexes in ((difference.before, one.removed), (difference.after, one.added))
    )
    near = "its neighbours" if hops == 1 else f"what is at most {hops} arrows away"
    return Picture(
        name, f"{title}, done {times}: {what}. Shown is the first, with {near}.", svg(f"{title}, {times}", panels)
    )


def around(difference: Difference, rewrite: Rewrite, hops: int) -> tuple[set[int], set[int]]:
    """Return the nodes of both graphs at most `hops` arrows from the rewrite; what stayed is in both or none."""
    olds = _near(difference.before, rewrite.removed, hops)
    news = _near(difference.after, rewrite.added, hops)
    back = {new: old for old, new in difference.same.items()}
    kept = {old for old in olds if old in difference.same} | {back[new] for new in news if new in back}
    if not rewrite.added:  # what is left where something was taken away
        kept |= {old for old in _near(difference.before, rewrite.removed, hops) if old in difference.same}
    return (olds | kept), (news | {difference.same[old] for old in kept})


def _near(graph: Graph, middle: Iterable[int], hops: int) -> set[int]:
    found = set(middle)
    for _ in range(hops):
        found |= {
            other
            for index in found
            for other in (*graph.before(index), *graph.after(index))
            if not graph.nodes[other].shape
        }
    return found


def operators(difference: Difference, title: str, name: str) -> Picture | None:
    """Return a chart of how many nodes of each operator there are before and after; None where no count differs."""
    import altair as alt
    import polars as pl

    counts = {op: pair for op, pair in difference.histogram().items() if pair[0] != pair[1]}
    if not counts:
        return None
    order = sorted(counts, key=lambda op: (counts[op][1] - counts[op][0], op))
    rows: list[dict[str, Any]] = [
        {
            "op": op,
            "when": when,
            "nodes": nodes,
            "text": f"{nodes}" + (f" ({signed(pair[1] - pair[0])})" if when == "after" else ""),
        }
        for op, pair in counts.items()
        for when, nodes in zip(("before", "after"), pair, strict=True)
    ]
    when = ["before", "after"]
    y = alt.Y("op:N", sort=order, title=None, axis=alt.Axis(labelLimit=320))
    offset = alt.YOffset("when:N", sort=when)
    most = max(max(pair) for pair in counts.values())
    scale = alt.Scale(domain=[0, most * 1.12], nice=False)  # room for the number beside the longest bar
    x = alt.X("nodes:Q", title="Nodes", scale=scale, axis=alt.Axis(tickMinStep=1, format="d"))
    color = alt.Color("when:N", scale=alt.Scale(domain=when, range=[GREY, BLUE]), title=None, sort=when)
    base = alt.Chart(pl.DataFrame(rows)).encode(y=y, yOffset=offset)
    bars = base.mark_bar(height={"band": 0.9}).encode(x=x, color=color)
    texts = base.mark_text(align="left", dx=4, fontSize=10, color=INK).encode(x=x, text="text:N")
    unchanged = len(difference.histogram()) - len(counts)
    old, new = len(difference.before.nodes), len(difference.after.nodes)
    subtitle = f"{old} nodes before, {new} after; {plural(unchanged, 'operator')} with equal counts left out"
    chart = alt.layer(bars, texts).properties(
        width=460, height=alt.Step(11, **{"for": "offset"}), title=alt.TitleParams(title, subtitle=subtitle)
    )
    said = ", ".join(f"{op} {counts[op][0]} → {counts[op][1]}" for op in order)
    drawn = Chart(name, f"{title}: nodes of each operator before and after. {said}.", themed(chart))
    return Picture(name, drawn.caption, drawn.svg())


def summary(difference: Difference) -> str:
    """Return what was done in a sentence or two: `28 of 289 nodes removed, 14 added, 14 of them stand for 28.`"""
    removed, added = difference.removed, difference.added
    total = len(difference.before.nodes)
    if not difference.changed:
        return f"changed nothing (0 of {total} nodes)."
    words = [f"{len(removed)} of {total} nodes removed, {len(added)} added"]
    if difference.resized:
        words.append(f"{len(difference.resized)} that stayed read constants of other sizes or types")
    if fused := [rewrite for rewrite in difference.rewrites if rewrite.fused]:
        old, new = sum(len(one.removed) for one in fused), sum(len(one.added) for one in fused)
        words.append(f"{new} of the added {'stand' if new > 1 else 'stands'} for {old} of the removed")
    if constants := sum(node.op == "Constant" for node in removed):
        words.append(f"{constants} of the removed are Constants")
    return "; ".join(words) + "."


def signed(number: int) -> str:
    """Return `+2` or `−2`, with a real minus."""
    return f"{number:+d}".replace("-", "−")


def _sides(difference: Difference) -> tuple[tuple[str, Graph, Marked], tuple[str, Graph, Marked]]:
    old, new = difference.marks()
    return ("before", difference.before, old), ("after", difference.after, new)


def _counted(ops: Iterable[str]) -> str:
    return ", ".join(op if count == 1 else f"{count} {op}" for op, count in Counter(ops).items())


def _size(graph: Graph) -> str:
    return f"{plural(len(graph.nodes), 'node')} of {plural(len(graph.histogram()), 'operator')}"


def _folding(folded: Folded) -> str:
    if not folded.stretches:
        return "No layers repeat."
    said = [f"{stretch.times} equal layers of {stretch.period} nodes" for stretch in folded.stretches]
    return f"{' and '.join(said)}: the first is drawn."


def _left_out(graph: Graph, shown: Sequence[int]) -> str:
    constants = sum(node.op == "Constant" for node in graph.nodes)
    shapes = len(graph.nodes) - len(shown) - constants
    if not constants and not shapes:
        return ""
    return f" Left out: {plural(constants, 'constant')} and {plural(shapes, 'node')} that only compute shapes."


def _cut(panels: Sequence[Panel]) -> str:
    cut = sum(one.scene.cut for one in panels)
    return f" {plural(cut, 'box', 'boxes')} at the end did not fit in." if cut else ""
