"""What the driver tells whoever watches a run. The command line prints it; tests collect it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["note", "builds", "build", "cell", "slot", "restart", "failure", "unserved", "doubt", "fold"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: what it is about, its state, how far it is, and a detail for people."""

    kind: Kind
    label: str
    state: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    detail: str = ""
