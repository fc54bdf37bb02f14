"""What the driver tells whoever watches a run. The command line prints it; tests collect it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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


OnEvent = Callable[[Event], None]


@dataclass(slots=True)
class RunResult:
    """How a run ended: `<sweep>/<run id>`, seconds by stage, cells measured and found finished, what failed.

    `held` says of each cell that another driver measures which one that is.
    """

    run: str
    breakdown: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    reused: int = 0
    failures: list[str] = field(default_factory=list)
    unserved: dict[str, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
