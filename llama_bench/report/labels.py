"""Names beside marks so that they can be read: where each has room, in pixels. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mark = tuple[float, float, float]
"""x, y, radius"""

RINGS = (3.0, 14.0, 28.0, 44.0, 64.0)
"""Distances from a mark at which a place for its name is looked for."""

NEAR = 2
"""Rings that a name may use that need not be there; others go further out, with a line to their marks."""

DIRECTIONS = 16
TURNS = (0, 8, 1, 15, 7, 9, 2, 14, 6, 10, 4, 12, 3, 13, 5, 11)
"""Directions of which a full turn has 16, in the order in which they are tried: right, left, and then around."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def meets(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )

    def covers(self, marks: npt.NDArray[np.float64]) -> int:
        """How many of the round marks (rows of x, y, radius) reach into the box."""
        x, y, radius = marks.T  # all at once: a chart of fifty arms asks a hundred thousand times
        across, down = x - x.clip(self.left, self.right), y - y.clip(self.top, self.bottom)
        return int((across**2 + down**2 < radius**2).sum())

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box that is nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


@dataclass(frozen=True, slots=True)
class Name:
    """A name that wants a place: its text, its mark, whether it must be there, and whether it is bold."""

    text: str
    mark: Mark
    needed: bool
    bold: bool


@dataclass(frozen=True, slots=True)
class Label:
    """A name with a place: its box, and whether it stands so far from its mark that it needs a line."""

    name: Name
    box: Box
    apart: bool

    @property
    def near(self) -> tuple[float, float]:
        """The end of the line from the mark to the name."""
        return self.box.nearest(*self.name.mark[:2])


def place(names: Sequence[Name], obstacles: Sequence[Mark], inside: Box, height: float, letter: float) -> list[Label]:
    """Return the names that find a place, in the order given; one that is needed always does.

    `obstacles` are what no name may cover, the marks among them; `height` and `letter` (the mean width of one) are
    those of the font. Each name takes the nearest free place round its mark, right of it first. One that finds none
    is left out, or if it is needed takes the place where it covers the least.
    """
    placed: list[Label] = []
    covered = np.asarray(obstacles, dtype=float).reshape(-1, 3)
    for name in names:
        width = letter * (1.08 if name.bold else 1.0) * len(name.text)
        rings = RINGS if name.needed else RINGS[:NEAR]
        candidates = [(box, apart) for box, apart in _around(name.mark, width, height, rings) if box.within(inside)]
        least, best = math.inf, None
        for box, apart in candidates:
            clashes = _clashes(box, placed, covered)
            if clashes < least:
                least, best = clashes, Label(name, box, apart)
            if not clashes:
                break
        if best is not None and (name.needed or not least):
            placed.append(best)
    return placed


def _around(mark: Mark, width: float, height: float, rings: Sequence[float]) -> Iterator[tuple[Box, bool]]:
    """Yield boxes round a mark, the nearest ring first, and whether they are so far off that they need a line."""
    x, y, radius = mark
    for ring in rings:
        for step in TURNS:
            angle = 2 * math.pi * step / DIRECTIONS
            across, down = math.cos(angle), math.sin(angle)
            middle_x = x + across * (radius + ring + width / 2)
            middle_y = y + down * (radius + ring + height / 2)
            box = Box(middle_x - width / 2, middle_y - height / 2, middle_x + width / 2, middle_y + height / 2)
            yield box, ring > RINGS[0]


def _clashes(box: Box, placed: Sequence[Label], obstacles: npt.NDArray[np.float64]) -> int:
    """How many names and marks a name at `box` would cover; a name counts more, since two on each other are lost."""
    return 3 * sum(box.meets(label.box) for label in placed) + box.covers(obstacles)
