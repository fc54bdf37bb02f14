"""What is drawn: boxes of rows, arrows between them, frames around repeated layers. Not yet where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

from llama_bench.report.graphs.kinds import kinds_of_operators

if TYPE_CHECKING:
    from llama_bench.report.graphs.fold import Folded
    from llama_bench.report.graphs.read import Graph

MOST_BYTES, MOST_BYTES_MARKED = 140_000, 100_000
"""About how large the SVG of a scene may become, alone and beside another one: a larger graph is cut."""

BOX_BYTES, ROW_BYTES = 400, 350  # with the arrows of a box; measured

MOST_LETTERS = 34  # of what stands beside an operator


@dataclass(frozen=True, slots=True)
class Row:
    """One operator: its name, what is said beside it, its kind, its mark and the mark's number."""

    op: str
    text: str
    kind: str
    mark: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class Box:
    """Operators of which each feeds only the next, one below the other; or words alone (`rows` is empty)."""

    rows: tuple[Row, ...] = ()
    words: tuple[str, ...] = ()
    frame: int | None = None

    @property
    def end(self) -> bool:
        """Whether it is an input or an output of the model."""
        return not self.rows and len(self.words) == 1


@dataclass(slots=True)
class Scene:
    """Boxes by key, arrows between keys, and frames: number → what stands above it. `cut` boxes are left out."""

    boxes: dict[str, Box] = field(default_factory=dict)
    arrows: list[tuple[str, str]] = field(default_factory=list)
    frames: dict[int, str] = field(default_factory=dict)
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Marked:
    """The mark of each changed node of one graph, and its number; without marks a picture shows kinds alone."""

    marks: Mapping[int, str]
    numbers: Mapping[int, int]


def scene(graph: Graph, folded: Folded, marked: Marked | None = None, *, brief: bool = False) -> Scene:
    """Return the drawn nodes of `graph`: the first of equal layers in a frame, a box for the others.

    With `brief` nothing stands beside the operators that stayed the same, so that two such pictures fit side by side.
    """
    where, frames, repeats = _places(folded)
    drawn = Scene(frames={number: "one layer" for number in frames})
    links = _links(graph, where)
    chains = _chains(graph, folded, where, links, frames)
    kinds = kinds_of_operators()
    for chain in chains:
        rows = tuple(_row(graph, index, kinds, marked, brief) for index in chain)
        drawn.boxes[f"n{chain[0]}"] = Box(rows, frame=frames_of(chain[0], frames))
    for key, (number, stretch_times, period) in repeats.items():
        words = (f"× {stretch_times - 1} more", f"the same {period} nodes")
        drawn.boxes[key] = Box(words=words)
        drawn.frames[number] = f"one of {stretch_times} equal layers"
    head: dict[int | str, str] = {index: f"n{chain[0]}" for chain in chains for index in chain}
    arrows = [(head.get(a, str(a)), head.get(b, str(b))) for a, b in links]
    drawn.arrows = [(a, b) for a, b in dict.fromkeys(arrows) if a != b]
    _ends(graph, {index: head.get(place, str(place)) for index, place in where.items()}, drawn)
    return _cut(drawn, MOST_BYTES if marked is None else MOST_BYTES_MARKED)


def frames_of(index: int, frames: Mapping[int, frozenset[int]]) -> int | None:
    return next((number for number, inside in frames.items() if index in inside), None)


def _places(
    folded: Folded,
) -> tuple[dict[int, int | str], dict[int, frozenset[int]], dict[str, tuple[int, int, int]]]:
    """Return where each node is drawn (itself, or the box of repeats), the framed nodes, and the boxes of repeats."""
    where: dict[int, int | str] = {index: index for index in folded.order}
    frames: dict[int, frozenset[int]] = {}
    repeats: dict[str, tuple[int, int, int]] = {}
    for number, stretch in enumerate(folded.stretches):
        first = folded.order[stretch.start : stretch.start + stretch.period]
        frames[number] = frozenset(first)
        repeats[f"r{number}"] = (number, stretch.times, stretch.period)
        where |= dict.fromkeys(folded.order[stretch.start + stretch.period : stretch.stop], f"r{number}")
    return where, frames, repeats


def _links(graph: Graph, where: Mapping[int, int | str]) -> list[tuple[int | str, int | str]]:
    """Return the arrows between places, each once, in order; what is hidden between two of them is not followed."""
    found: dict[tuple[int | str, int | str], None] = {}
    for index in where:
        for reader in graph.after(index):
            if reader in where and where[reader] != where[index]:
                found[where[index], where[reader]] = None
    return list(found)


def _chains(
    graph: Graph,
    folded: Folded,
    where: Mapping[int, int | str],
    links: Iterable[tuple[int | str, int | str]],
    frames: Mapping[int, frozenset[int]],
) -> list[list[int]]:
    """Join nodes that feed only the next one, which reads from nobody else, in the same frame."""
    after, before = defaultdict(set), defaultdict(set)
    for a, b in links:
        after[a].add(b)
        before[b].add(a)
    for index in where:
        if set(graph.nodes[index].inputs) & set(graph.inputs):
            before[where[index]].add("input")
        if set(graph.nodes[index].outputs) & set(graph.outputs):
            after[where[index]].add("output")
    chains: dict[int, list[int]] = {}
    for index in folded.order:
        if where[index] != index:
            continue
        sources = before[index]
        source = next(iter(sources)) if len(sources) == 1 else None
        joined = isinstance(source, int) and after[source] == {index} and source in chains
        if joined and isinstance(source, int) and frames_of(source, frames) == frames_of(index, frames):
            chain = chains[source]
            chain.append(index)
            chains[index] = chain
        else:
            chains[index] = [index]
    return list({id(chain): chain for chain in chains.values()}.values())


def _row(graph: Graph, index: int, kinds: Mapping[str, str], marked: Marked | None, brief: bool) -> Row:
    node = graph.nodes[index]
    mark = "" if marked is None else marked.marks.get(index, "same")
    number = 0 if marked is None else marked.numbers.get(index, 0)
    text = "" if brief and mark == "same" else shortened(node.text)
    return Row(shortened(node.op), text, kinds.get(node.op, "other"), mark, number)


def shortened(text: str, most: int = MOST_LETTERS) -> str:
    """Return `text` in one line, cut where it is too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def _ends(graph: Graph, places: Mapping[int, str], drawn: Scene) -> None:
    """Add the model's inputs and outputs; those of one place (all past keys and values, say) are one box."""
    inputs: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in graph.inputs:
        readers = {places[i] for i, _ in graph.read_by.get(name, ()) if i in places}
        if readers:
            inputs[tuple(sorted(readers))].append(name)
    outputs: dict[str, list[str]] = defaultdict(list)
    for name in graph.outputs:
        if (maker := graph.made_by.get(name)) in places and maker is not None:
            outputs[places[maker]].append(name)
    for number, (readers_of, names) in enumerate(inputs.items()):
        drawn.boxes[f"i{number}"] = Box(words=(_named(names, "inputs"),))
        drawn.arrows += [(f"i{number}", reader) for reader in readers_of]
    for number, (maker_of, names) in enumerate(outputs.items()):
        drawn.boxes[f"o{number}"] = Box(words=(_named(names, "outputs"),))
        drawn.arrows.append((maker_of, f"o{number}"))


def _named(names: Sequence[str], what: str) -> str:
    return shortened(names[0]) if len(names) == 1 else f"{what}: {shortened(names[0], 20)} and {len(names) - 1} more"


def _cut(drawn: Scene, most: int) -> Scene:
    """Leave out the boxes at the end that make the picture larger than `most` bytes."""
    costs = accumulate(BOX_BYTES + ROW_BYTES * len(box.rows) for box in drawn.boxes.values())
    kept = {key: box for (key, box), cost in zip(drawn.boxes.items(), costs, strict=True) if cost <= most}
    if len(kept) == len(drawn.boxes):
        return drawn
    arrows = [(a, b) for a, b in drawn.arrows if a in kept and b in kept]
    used = {box.frame for box in kept.values()}
    frames = {number: text for number, text in drawn.frames.items() if number in used}
    return Scene(kept, arrows, frames, len(drawn.boxes) - len(kept))
