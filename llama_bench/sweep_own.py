"""A model of a sweep that is somebody's own ONNX file: where it lies, what goes into it, what it costs. Pure data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, TypeAdapter, model_validator

from llama_bench.sweep_model import Model
from llama_bench.sweep_part import Name, Part, Positive, Seed, refuse

Size: TypeAlias = Annotated[int, Field(ge=0, lt=2**31, strict=True)] | Literal["batch", "sequence", "tokens"]
"""One dimension of an input: a number, or the workload's; `tokens` is batch · sequence."""

WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
"""numpy's words for the types of whole numbers."""


class OwnInput(Part):
    """What goes into one input of an own model; what is left out is inferred from the file."""

    shape: tuple[Size, ...] | None = Field(
        None, description="Its dimensions: numbers, or `batch`, `sequence`, `tokens` of the workload."
    )
    value: Annotated[bool, Field(strict=True)] | int | float | Literal["positions"] | None = Field(
        None, description="One value everywhere, or `positions`: 0, 1, 2 … along the last dimension."
    )
    high: Positive | None = Field(None, description="Whole numbers are drawn from 0 up to, and without, this one.")
    dtype: str | None = Field(None, description="numpy's word for its type; filled in when the sweep is read.")

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.value is not None and self.value != "positions" and self.high is not None:
            raise refuse("high is for numbers that are drawn, and value says which number it is", "high")
        if self.high is not None and self.dtype is not None and self.dtype not in WHOLE:
            raise refuse(f"high is for whole numbers, and this input is {self.dtype}", "high")
        return self

    def numbers(self, batch: int, sequence: int) -> tuple[int, ...]:
        """Return the shape for a workload's batch and sequence."""
        words = {"batch": batch, "sequence": sequence, "tokens": batch * sequence}
        return tuple(words[size] if isinstance(size, str) else size for size in self.shape or ())


class OwnCost(Part):
    """What one run at one batch and sequence takes, counted in the graph (:mod:`llama_bench.own.count`).

    `operations` are those of matrix products and convolutions, `least_operations` those of them that no engine can
    do without, `live_bytes` the most bytes of results that are alive at once. `uncounted` says which product's shapes
    are not known, when some are not: the numbers are then too small.
    """

    batch: Positive
    sequence: Positive
    operations: int = Field(ge=0)
    least_operations: int = Field(ge=0)
    input_bytes: int = Field(ge=0)
    output_bytes: int = Field(ge=0)
    live_bytes: int = Field(ge=0)
    uncounted: str | None = None

    @property
    def unbounded(self) -> str | None:
        """Why nothing can be said of the fastest possible run, None where something can."""
        if self.uncounted is not None:
            return self.uncounted
        # a share of a part of the work would say nothing of all of it
        part = 2 * self.least_operations < self.operations
        return (
            "most of the work may be done in fewer operations than are written (convolutions, attention)" * part or None
        )


class OwnModel(Part):
    """Somebody's own ONNX file as a model: it is taken as it is, and answers for itself at no optimisation."""

    name: Name | None = Field(None, description="Name in tables; the file's when left out.")
    onnx: str = Field(min_length=1, description="An ONNX file, relative to this file; its external data lies beside.")
    onnx_sha256: str | None = Field(None, description="Hash of the file and its data; filled in when it is read.")
    inputs: dict[str, OwnInput] = Field({}, description="What goes into which input, where it is not inferred.")
    seed: Seed = Field(0, description="Seed of the inputs: the same on every machine.")
    opset: int | None = Field(None, description="ONNX opset of the file; filled in.")
    weight_bytes: int = Field(0, ge=0, description="Bytes of all weights; filled in.")
    product_bytes: int = Field(0, ge=0, description="Bytes of the weights that every run multiplies by; filled in.")
    reduced: bool = Field(False, description="Whether numbers are kept in less than fp32; filled in.")
    costs: tuple[OwnCost, ...] = Field((), description="What a run of each workload takes; filled in.")

    @property
    def label(self) -> str:
        """Name in tables and paths."""
        return self.name or Path(self.onnx).stem

    def cost(self, batch: int, sequence: int) -> OwnCost:
        """Return what a run takes; where it was not counted, the least that can be said."""
        found = next((one for one in self.costs if (one.batch, one.sequence) == (batch, sequence)), None)
        if found is not None:
            return found
        sizes = {"operations": 0, "least_operations": 0, "input_bytes": 0, "output_bytes": 0, "live_bytes": 0}
        return OwnCost(batch=batch, sequence=sequence, uncounted="nothing was counted", **sizes)

    def floats(self, batch: int, sequence: int) -> float:
        """Return a guess at a run's operations: those counted, or 2 for each weight and token where some are not."""
        cost = self.cost(batch, sequence)
        guess = 0.0 if cost.uncounted is None else 2.0 * (self.product_bytes / 4) * batch * sequence
        return max(float(cost.operations), guess)


OWN_KEYS = ("name", "onnx", "onnx_sha256", "inputs", "seed")
"""The keys of an own model that a sweep file may hold; the others are filled in."""

DERIVED = ("opset", "weight_bytes", "product_bytes", "reduced", "costs")
"""Keys that follow from the file and the workloads, so that no id needs them."""

NEEDS_LLAMA = "it needs a Llama made here, and this model is an ONNX file of its own"
"""Why a pass or an engine that knows a Llama's structure is not for an own model."""


TAGS = ("llama", "own")
"""Kinds of models; pydantic puts them into the places of its errors."""


def _kind(model: Any) -> str:
    own = isinstance(model, OwnModel) or (isinstance(model, dict) and "onnx" in model)
    return TAGS[own]


AnyModel: TypeAlias = Annotated[Annotated[Model, Tag("llama")] | Annotated[OwnModel, Tag("own")], Discriminator(_kind)]
"""A model of a sweep: a Llama that is made here, or an ONNX file of its own."""


def model_of(spec: Any) -> Model | OwnModel:
    """Return the model that was kept as `spec` (`model_dump`)."""
    found: Model | OwnModel = TypeAdapter(AnyModel).validate_python(spec)
    return found
