"""What the table of passes says of each pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PassInfo:
    """One line of the table: what the pass does, whether it keeps the arithmetic, and why it is refused, if it is.

    An `exact` pass may differ from the original by rounding only; an `approximate` one changes the numbers on purpose.
    """

    summary: str
    kind: Literal["exact", "approximate"] = "exact"
    refused: str | None = None
