"""What the table of passes says of each pass, and what a pass is given to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llama_bench.errors import WorkError
from llama_bench.sweep import AnyModel, Model, Workload
from llama_bench.sweep_part import Part

Kind: TypeAlias = Literal["exact", "approximate"]
"""Class of a pass: an exact rewrite differs by rounding only; an approximation changes the numbers on purpose."""

State: TypeAlias = Literal["optimised", "fused", "attention", "half", "quantised"]
"""What a pass may leave behind that matters to later ones: ONNX Runtime's own fused operators (by its provider), our
fusions, GroupQueryAttention, fp16 or bf16 numbers, quantised weights."""


class NoOptions(Part):
    """A pass without options."""


@dataclass(frozen=True, slots=True)
class PassInfo:
    """One line of the table: what the pass does, whether it keeps the arithmetic, and why it is refused, if it is.

    An `approximate` pass may change the numbers on purpose, an `exact` one by rounding only. `options` are the keys
    that a recipe may give it. A pass of level `checkpoint` changes weights and sizes and exports again, so it comes
    before all of level `graph`. `leaves` says what state the model is in afterwards, `not_after` in which states it
    cannot be applied, `needs` in which it must be, `fits` why it does not fit a Llama (None where it does), `llama`
    what it needs a Llama for (None: it takes any graph; one of level `checkpoint` does not): all that is known before
    building.
    """

    summary: str
    kind: Kind = "exact"
    refused: str | None = None
    options: type[Part] = NoOptions
    level: Literal["graph", "checkpoint"] = "graph"
    leaves: tuple[State, ...] = ()
    not_after: tuple[State, ...] = ()
    needs: tuple[State, ...] = ()
    fits: Callable[[Any, Model], str | None] = lambda options, model: None
    llama: Callable[[Any], str | None] = lambda options: None


@dataclass(frozen=True, slots=True)
class Work:
    """One pass to do: its name and checked options, the folder to read, the folder to fill.

    `of` is the sweep's model before any pass, `workload` one that its graph serves; `state` is a folder of this
    piece of work alone that outlives a lost process, so that long work can go on where it stopped.
    """

    name: str
    options: Any
    source: Path
    destination: Path
    of: AnyModel
    workload: Workload
    state: Path

    @property
    def model(self) -> Model:
        """The sweep's model, for passes that know a Llama's structure. Raises WorkError of any other graph."""
        if not isinstance(self.of, Model):
            raise WorkError(f"{self.name}: needs a Llama made here, and {self.of.label} is an ONNX file of its own")
        return self.of
