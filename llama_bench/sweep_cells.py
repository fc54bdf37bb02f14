"""Which cells a sweep has, in which order, and with which arms: entries of its key `cells`. Pure data."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from pydantic import Field

from llama_bench.sweep_part import Name, Part, Positive


class Choice(Part):
    """Some of the cells: those whose model, workload and target match, and the recipes that are their arms.

    Patterns are those of `--only` (`*`, `?`, `[…]`). A cell that several entries match belongs to the first.
    """

    model: str = Field("*", description="Models, by a pattern of their labels.")
    workload: str = Field("*", description="Workloads, by a pattern of their names.")
    target: str = Field("*", description="Targets, by a pattern of their names.")
    recipes: tuple[str, ...] = Field(("*",), min_length=1, description="Recipes, by patterns of their names.")
    baseline: Name | None = Field(None, description="What these cells' arms are compared with; measure's unless said.")
    blocks: Positive | None = Field(None, description="Blocks a restart of these cells; measure's unless said.")
    runs: Positive | None = Field(None, description="Timed runs of an arm in a block there; measure's unless said.")


def matching(names: Iterable[str], *patterns: str) -> list[str]:
    """Return those of `names` that match one of `patterns`, in their own order."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
