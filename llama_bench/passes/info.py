"""What the table of passes says of each pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["exact", "approximate"]
"""Class of a pass: an exact rewrite differs by rounding only; an approximation changes the numbers on purpose."""


@dataclass(frozen=True, slots=True)
class PassInfo:
    """One line of the table: what the pass does, whether it keeps the arithmetic, and why it is refused, if it is.

    An `approximate` pass may change the numbers on purpose, an `exact` one by rounding only.
    """

    summary: str
    kind: Kind = "exact"
    refused: str | None = None
