"""A run's progress as metrics of Ray, which its dashboard's Prometheus reads: pieces by state, seconds by stage."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from llama_bench.cluster.events import Event, OnEvent

PIECES = "llama_bench_pieces"
SECONDS = "llama_bench_seconds"
WAITING = "llama_bench_pieces_waiting"

COUNTED = ("build", "cell", "restart")
"""Kinds of events that end a piece."""

ENDS = ("finished", "failed", "skipped", "known", "reused", "held")
"""States in which a piece is counted; a piece that has just started may still end in any."""


class Metrics:
    """Counts the events of one run; call it with each, as whoever watches is called."""

    def __init__(self, run: str, cells: int) -> None:
        self.tags = {"run": run}
        self.pieces = Counter(PIECES, "Pieces of work by kind and how they ended.", ("run", "kind", "state"))
        self.seconds = Counter(SECONDS, "Seconds that finished pieces took, by kind.", ("run", "kind"))
        self.waiting = Gauge(WAITING, "Pieces of work that have not ended, by kind.", ("run", "kind"))
        self.left = {"build": 0, "cell": cells}
        self._show()

    def __call__(self, event: Event) -> None:
        """Take in one event; those that end nothing change nothing."""
        if event.kind == "builds":
            self.left["build"] = event.total
        elif event.kind in COUNTED and event.state in ENDS:
            self.pieces.inc(1, self.tags | {"kind": event.kind, "state": event.state})
            if event.seconds > 0:
                self.seconds.inc(event.seconds, self.tags | {"kind": event.kind})
            if event.kind in self.left:
                self.left[event.kind] -= 1
        self._show()

    def _show(self) -> None:
        for kind, left in self.left.items():
            self.waiting.set(left, self.tags | {"kind": kind})


def counted(metrics: Metrics, on_event: OnEvent) -> OnEvent:
    """Return what tells each event to `metrics` and then to `on_event`."""

    def both(event: Event) -> None:
        metrics(event)
        on_event(event)

    return both
