"""Where the seconds of one call went, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import polars as pl

from llama_bench import results
from llama_bench.cluster.restart import STAGES
from llama_bench.store import Store


class Stages:
    """Seconds by stage of this call."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - begin)

    def add(self, stage: str, seconds: float) -> None:
        self.spent[stage] = self.spent.get(stage, 0.0) + seconds


def measuring(store: Store, run: str, began: datetime, wall_s: float) -> dict[str, float]:
    """Split this call's `wall_s` of measuring by stage, as its pieces say; what no piece claims is `other`.

    Nodes that measure side by side spend more seconds than pass: their stages are scaled to the wall.
    """
    mine = (pl.col("kind") != "build") & (pl.col("started_at") >= began)
    pieces = results.scan(store.url(run))["pieces"].filter(mine).collect()
    spent = {stage: float(pieces[f"{stage}_s"].sum() or 0.0) for stage in STAGES}
    scale = min(1.0, wall_s / max(float(pieces["wall_s"].sum() or 0.0), 1e-9))
    shares = {stage: seconds * scale for stage, seconds in spent.items()}
    return {**shares, "measuring, other": wall_s - sum(shares.values())}
