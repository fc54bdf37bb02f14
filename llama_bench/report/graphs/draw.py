"""A placed scene as SVG: presentation attributes alone, text as text, no ids, nothing from elsewhere."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from llama_bench.report.drawing import FAINT, FONT, GREY, INK, PAPER
from llama_bench.report.graphs import layout
from llama_bench.report.graphs.kinds import CARD, KINDS, MARKS
from llama_bench.report.graphs.layout import CHIP, FONT_SIZE, ROW, ROW_ROOM, SIDES, SMALL, Placed, Rect, text_width

if TYPE_CHECKING:
    from llama_bench.report.graphs.scene import Box, Row, Scene

DARK_TEXT, SOFT_TEXT = "#15181c", "#4a525b"
"""Text on boxes, which stay light on dark paper too: the page lightens INK and GREY there, not these."""

EDGE = "#8b939c"  # frames of boxes, on light and on dark paper
MARGIN, GAP, TITLE = 14.0, 36.0, 20.0
ARROW = 7.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the pictures that stand side by side: what is above it, what is drawn and where."""

    title: str
    scene: Scene
    placed: Placed


def svg(title: str, panels: Sequence[Panel]) -> str:
    """Return `panels` side by side under `title`, a legend of what occurs below them, as SVG text."""
    named = any(panel.title for panel in panels)
    top = MARGIN + TITLE + (TITLE if named else 8.0)
    width = max(
        sum(max(panel.placed.width, text_width(panel.title)) for panel in panels) + GAP * (len(panels) - 1),
        text_width(title, 15.0, bold=True),
        340.0,
    )
    tall = max(panel.placed.height for panel in panels)
    parts = [_text(MARGIN, MARGIN + 11, title, INK, size=15.0, bold=True)]
    x = MARGIN
    for i, panel in enumerate(panels):
        wide = max(panel.placed.width, text_width(panel.title))
        if named:
            parts.append(_text(x, MARGIN + TITLE + 12, panel.title, INK))
        parts.append(f'<g transform="translate({_n(x)},{_n(top)})">{"".join(_panel(panel))}</g>')
        x += wide + GAP
        if i < len(panels) - 1:
            middle = _n(x - GAP / 2)
            parts.append(f'<path d="M{middle},{_n(top)}V{_n(top + tall)}" stroke="{FAINT}" fill="none"/>')
    legend, used = _legend(panels, MARGIN, top + tall + 18, width)
    parts.append(legend)
    whole = (width + 2 * MARGIN, top + tall + 18 + used + MARGIN - 6)
    size = f'width="{math.ceil(whole[0])}" height="{math.ceil(whole[1])}"'
    box = f'viewBox="0 0 {math.ceil(whole[0])} {math.ceil(whole[1])}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img" font-family="{FONT}" '
        f'font-size="{_n(FONT_SIZE)}"><title>{_escaped(title)}</title>'
        f'<rect width="100%" height="100%" fill="{PAPER}"/>{"".join(parts)}</svg>'
    )


def _panel(panel: Panel) -> Iterator[str]:
    """Frames first, then arrows, then boxes above them."""
    for number, rect in panel.placed.frames.items():
        yield _rect(rect, f'fill="none" stroke="{GREY}" stroke-dasharray="5 4" rx="6"')
        yield _text(rect.x + 8, rect.y + 13, panel.scene.frames[number], GREY, size=SMALL)
    arrows = [_arrow(points) for points in panel.placed.arrows.values()]
    if arrows:
        lines, tips = ("".join(part) for part in zip(*arrows, strict=True))
        yield f'<path d="{lines}" fill="none" stroke="{GREY}"/><path d="{tips}" fill="{GREY}"/>'
    for key, box in panel.scene.boxes.items():
        yield from _box(box, panel.placed.boxes[key])


def _box(box: Box, rect: Rect) -> Iterator[str]:
    if not box.rows:
        if box.end:
            yield _rect(rect, f'fill="#f6f8fa" stroke="{EDGE}" rx="{_n(rect.height / 2)}"')
        else:  # two sheets behind it say that it stands for several
            for shift in (6, 3):
                yield _rect(
                    Rect(rect.x + shift, rect.y + shift, rect.width - 6, rect.height - 6),
                    f'fill="#f6f8fa" stroke="{EDGE}" rx="4"',
                )
            rect = Rect(rect.x, rect.y, rect.width - 6, rect.height - 6)
            yield _rect(rect, f'fill="#f6f8fa" stroke="{EDGE}" rx="4"')
        for i, text in enumerate(box.words):
            y = rect.y + rect.height / 2 + (i - (len(box.words) - 1) / 2) * 15 + 4
            yield _text(rect.x + rect.width / 2, y, text, DARK_TEXT, bold=i == 0 and not box.end, middle=True)
        return
    yield _rect(rect, f'fill="{CARD}" stroke="{EDGE}" rx="4"')
    i = 0
    for mark, rows in _runs(box.rows):
        place = Rect(rect.x, rect.y + ROW_ROOM + i * ROW, rect.width, ROW)
        if mark:
            yield _marked(rows[0], Rect(place.x + 3, place.y + 1, place.width - 6, ROW * len(rows) - 2))
        for j, row in enumerate(rows):
            below = Rect(place.x, place.y + j * ROW, place.width, ROW)
            yield from _row(row, below, first=j == 0)
        i += len(rows)


def _runs(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows with one mark and number, one below the other, share a frame; without marks each row stands alone."""
    for (mark, _), found in groupby(rows, lambda row: (row.mark, row.number)):
        together = list(found)
        yield from [(mark, together)] if mark else [("", [row]) for row in together]


def _marked(row: Row, rect: Rect) -> str:
    mark = MARKS[row.mark]
    if row.mark == "same":
        return _rect(rect, f'fill="{mark.tint}" rx="2"')
    line = 'stroke-width="1.4" stroke-dasharray="4 3"' if mark.dashed else 'stroke-width="2.2"'
    return _rect(rect, f'fill="{mark.tint}" stroke="{mark.colour}" {line} rx="2"')


def _row(row: Row, rect: Rect, *, first: bool) -> Iterator[str]:
    """One operator; the sign of a mark stands in the first of the rows that share it."""
    kind, mark = KINDS[row.kind], MARKS.get(row.mark)
    inner = Rect(rect.x + 3, rect.y + 1, rect.width - 6, rect.height - 2)
    if mark is None:
        yield _rect(inner, f'fill="{kind.colour}" fill-opacity="0.22" rx="2"')
    chip = Rect(inner.x + 2, inner.y + 2, 14, inner.height - 4)
    yield _rect(chip, f'fill="{kind.colour if mark is None else "#c4cad1"}" rx="2"')
    base = rect.y + rect.height / 2 + 4
    yield _text(chip.x + 7, base - 0.3, kind.letter, DARK_TEXT, size=10.5, bold=True, middle=True)
    more = ""
    if row.text:
        more = f'<tspan dx="5" font-weight="normal" font-size="{_n(SMALL)}" fill="{SOFT_TEXT}">'
        more += f"{_escaped(row.text)}</tspan>"
    yield _text(rect.x + CHIP + 2, base, row.op, DARK_TEXT, bold=True, more=more)
    if mark is not None and mark.sign and first:
        sign = mark.sign.replace("n", str(row.number) if row.number else "")
        yield _text(rect.x + rect.width - SIDES, base, sign, mark.colour, bold=True, end=True)


def _legend(panels: Sequence[Panel], x: float, y: float, width: float) -> tuple[str, float]:
    """The marks and kinds that occur, in lines; return it and its height."""
    rows = [row for panel in panels for box in panel.scene.boxes.values() for row in box.rows]
    entries: list[tuple[str, str, str]] = []
    for name, mark in MARKS.items():
        if any(row.mark == name for row in rows):
            style = f'fill="{mark.tint}" stroke="{mark.colour}"' + (' stroke-dasharray="4 3"' if mark.dashed else "")
            entries.append((mark.sign, style, mark.words))
    marked = bool(entries)
    for name, kind in KINDS.items():
        if any(row.kind == name for row in rows):
            entries.append((kind.letter, f'fill="{"#c4cad1" if marked else kind.colour}" stroke="{EDGE}"', kind.words))
    parts, left, line = [], x, 0.0
    for sign, style, words in entries:
        wide = 26 + text_width(words, SMALL) + 14
        if left + wide > x + width and left > x:
            left, line = x, line + 19.0
        parts.append(_rect(Rect(left, y + line, 20, 14), f'{style} rx="2"'))
        parts.append(_text(left + 10, y + line + 11, sign, DARK_TEXT, size=10.5, bold=True, middle=True))
        parts.append(_text(left + 26, y + line + 11, words, INK, size=SMALL))
        left += wide
    return "".join(parts), line + 19.0


def _arrow(points: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """The paths of a B-spline's line and of a tip at its end; the line stops inside the tip."""
    (x, y), (near_x, near_y) = points[-1], points[-2]
    length = math.hypot(x - near_x, y - near_y) or 1.0
    dx, dy = (x - near_x) / length, (y - near_y) / length
    back_x, back_y = x - dx * ARROW, y - dy * ARROW
    curves = [*points[1:-1], (x - dx * ARROW / 2, y - dy * ARROW / 2)]
    line = f"M{_p(points[0])}C{' '.join(map(_p, curves))}"
    half = ARROW * 0.4
    left, right = (back_x - dy * half, back_y + dx * half), (back_x + dy * half, back_y - dx * half)
    return line, f"M{_p((x, y))}L{_p(left)} {_p(right)}Z"


def _rect(rect: Rect, style: str) -> str:
    where = f'x="{_n(rect.x)}" y="{_n(rect.y)}" width="{_n(rect.width)}" height="{_n(rect.height)}"'
    return f"<rect {where} {style}/>"


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    *,
    size: float = FONT_SIZE,
    bold: bool = False,
    middle: bool = False,
    end: bool = False,
    more: str = "",
) -> str:
    anchor = ' text-anchor="middle"' if middle else ' text-anchor="end"' if end else ""
    weight = ' font-weight="bold"' if bold else ""
    sized = f' font-size="{_n(size)}"' if size != FONT_SIZE else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" fill="{colour}"{sized}{weight}{anchor}>{_escaped(text)}{more}</text>'


def _escaped(text: str) -> str:
    """Text of a model in XML: what XML forbids (control characters, halves of surrogates) is left out."""
    return html.escape(re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text))


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _p(point: tuple[float, float]) -> str:
    return f"{_n(point[0])},{_n(point[1])}"


def panel(title: str, scene: Scene) -> Panel:
    """Return `scene`, placed."""
    return Panel(title, scene, layout.place(scene))
