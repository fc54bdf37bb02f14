"""What all parts of a sweep have in common: strictness, types of values, and errors that stand at a key."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

# Strict: YAML knows numbers and booleans, so "512" or true as a size is a slip of the pen and not a spelling.
Scalar: TypeAlias = bool | int | float | str
Flag: TypeAlias = Annotated[bool, Field(strict=True)]
Positive: TypeAlias = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)]


class Part(BaseModel):
    """Common settings of every part of a sweep: unchangeable, an unknown key is an error, and so is .nan or .inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def refuse(why: str, *at: str | int) -> PydanticCustomError:
    """Return an error that stands at the keys `at`, counted from the part that is checked."""
    return PydanticCustomError("refused", "{why}", {"why": why, "at": at})
