"""What a run looks like while it goes: a live view on a terminal, otherwise one plain line a finished piece."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llama_bench.cli.common import duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from llama_bench.cluster.events import Event

BAR = 24  # characters

STYLES = {"failure": "red", "unserved": "yellow", "doubt": "yellow"}
"""Kind of event → colour of its line; what is not named here has none."""


@dataclass
class Progress:
    """How far a run is, from its events; `cells_total` and `cells_a_target` are what the sweep asks for."""

    builds_done: int = 0
    builds_total: int = 0
    cells: dict[str, tuple[int, int]] = field(default_factory=dict)  # label → restarts done, total
    cells_done: int = 0
    cells_total: int = 0
    cells_a_target: int = 0
    building: list[str] = field(default_factory=list)
    slot: tuple[str, str] = ("", "")  # the cell and the slot being timed
    failures: int = 0

    def update(self, event: Event) -> None:
        """Take one event in."""
        if event.kind == "builds":
            self.builds_done, self.builds_total = event.done, event.total
        elif event.kind == "build":
            self._build(event)
        elif event.kind == "cell":
            self._cell(event)
        elif event.kind == "restart":
            done, total = self.cells.get(event.label, (0, 0))
            self.cells[event.label] = (event.done or done + 1, event.total or total)
        elif event.kind == "slot":
            self.slot = (event.label, event.detail)
        elif event.kind == "unserved":
            self.cells_total -= self.cells_a_target
        elif event.kind == "failure":
            self.failures += 1

    def _build(self, event: Event) -> None:
        if event.state == "started":
            self.building.append(event.label)
            return
        if event.label in self.building:
            self.building.remove(event.label)
        self.builds_done = event.done or self.builds_done + 1
        self.builds_total = max(event.total, self.builds_total, self.builds_done)
        self.failures += event.state == "failed"

    def _cell(self, event: Event) -> None:
        if event.state == "started":
            self.cells[event.label] = (event.done, event.total)
            return
        self.cells.pop(event.label, None)
        self.cells_done += 1
        if self.slot[0] == event.label:
            self.slot = ("", "")

    def lines(self) -> list[str]:
        """Return the live view as plain text, one line a row."""
        rows = [f"builds    {bar(self.builds_done, self.builds_total)}"] if self.builds_total else []
        rows += [f"building  {label}" for label in self.building[:4]]
        if self.cells_total:
            rows.append(f"cells     {bar(self.cells_done, self.cells_total)}")
        rows += [f"restarts  {bar(done, total)}  {label}" for label, (done, total) in list(self.cells.items())[:4]]
        if self.slot[1]:
            rows.append(f"timing    {self.slot[0]}  {self.slot[1]}")
        if self.failures:
            rows.append(f"failures  {self.failures}")
        return rows


def bar(done: int, total: int) -> str:
    """Return a bar and its numbers: `━━━━──── 4/8`."""
    full = BAR * min(done, total) // max(total, 1)
    return f"{'━' * full}{'─' * (BAR - full)} {done}/{total}"


def plain_line(event: Event) -> str | None:
    """Return the line for `event`, or None for what is only of interest while it lasts (slots, starts)."""
    took = f" in {duration(event.seconds)}" if event.seconds else ""
    detail = f": {event.detail}" if event.detail else ""
    count = f" {event.done}/{event.total}" if event.total else ""
    if event.kind in ("slot", "builds", "fold") or event.state == "started":
        return None
    if event.kind in ("build", "cell", "restart"):
        state = event.state or "finished"
        return f"{event.kind}{count} {state}: {event.label}{took}{f' ({event.detail})' if event.detail else ''}"
    if event.kind == "note":
        return f"{event.label}{detail}"
    words = {"failure": "failed: ", "unserved": "no node serves target ", "doubt": "doubtful here: "}[event.kind]
    return f"{words}{event.label}{detail}"


@contextmanager
def watching(console: Console, cells: int = 0, targets: int = 1) -> Iterator[Callable[[Event], None]]:
    """Give the function that takes a run's events, and show them on `console` until the block ends.

    `cells` and `targets` count what the sweep asks for; the cells of a target without a node are taken off.

    Nothing is redrawn by a clock: a redraw in the middle of a timed run would take time from it. The view changes
    only when an event arrives, between slots.
    """
    begin = time.monotonic()
    if console.quiet:
        yield lambda event: None
        return
    if not console.is_terminal:
        yield lambda event: _print(console, event, begin)
        return
    from rich.live import Live

    progress = Progress(cells_total=cells, cells_a_target=cells // targets)
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(event: Event) -> None:
            progress.update(event)
            if event.kind not in ("build", "restart"):
                _print(live.console, event, begin)
            live.update(_view(progress, time.monotonic() - begin), refresh=True)

        yield show


def _print(console: Console, event: Event, begin: float) -> None:
    line = plain_line(event)
    if line is not None:
        text = f"[{time.monotonic() - begin:7.1f} s] {line}"
        console.print(text, style=STYLES.get(event.kind), markup=False, soft_wrap=True)


def _view(progress: Progress, elapsed: float) -> RenderableType:
    from rich.text import Text

    rows = [*progress.lines(), f"elapsed   {duration(elapsed)}"]
    return Text("\n".join(rows), no_wrap=True, overflow="ellipsis")
