"""A part of an explanation: sentences and tables under a heading, and the numbers in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llama_bench.report.table import Table


@dataclass(frozen=True, slots=True)
class Section:
    """Sentences, each of which stands for itself, and tables after them."""

    heading: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...] = ()


def change(y: float, digits: int = 1) -> str:
    """Return a difference of ln seconds as a change of time: 0.0198 is `+2.0 %`."""
    text = f"{round(math.expm1(y) * 100, digits) + 0.0:+.{digits}f} %"  # + 0.0: no minus before a zero
    return text.replace("-", "−")


def signed(value: float, digits: int) -> str:
    """Return a number with its sign: `+0.0321`, `−1.07`."""
    return f"{value:+.{digits}f}".replace("-", "−")


def share(value: float, digits: int = 1) -> str:
    """Return a share in percent: 0.0198 is `2.0 %`."""
    return f"{value * 100:.{digits}f} %"


def times(speedup: float) -> str:
    """Return a speedup: `1.029×`."""
    return f"{speedup:.3f}×"


def interval(low: float, high: float) -> str:
    """Return the ends of an interval of a speedup: `[1.012, 1.046]`."""
    return f"[{low:.3f}, {high:.3f}]"


def chance(p: float) -> str:
    """Return a p-value: `p = 0.0054`, `p < 1e-6`."""
    return "p < 1e-6" if p < 1e-6 else f"p = {p:.2g}"


def bare(p: float) -> str:
    """Return a p-value for a cell of a table."""
    return "< 1e-6" if p < 1e-6 else f"{p:.2g}"
