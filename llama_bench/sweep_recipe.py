"""A recipe of a sweep: passes one after another, what its session is told, and the engine. Pure data."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from llama_bench.sweep_part import Flag, Part, Scalar


class Pass(Part):
    """One transformation, written in YAML as one key: `{fuse: all}`, `{quantize: {bits: 4, method: hqq}}`.

    The value is the pass's name, or a mapping of its options, in which `name` may choose one that is not the family's
    default. Which names and options there are is the table of passes' to say.
    """

    family: str = Field(description="The tool that transforms.")
    name: str = Field("", description="What it is told to do; empty: the family's default.")
    options: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict, description="How it is to do it.")

    @model_validator(mode="before")
    @classmethod
    def _from_one_key(cls, value: Any) -> Any:
        if isinstance(value, dict) and "family" in value and set(value) <= {"family", "name", "options"}:
            return value
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError("a pass is one key and its value, such as {onnxoptimizer: eliminate_identity}")
        [(family, said)] = value.items()
        if isinstance(said, str):
            return {"family": family, "name": said}
        if not isinstance(said, dict) or not said or not isinstance(said.get("name", ""), str):
            raise ValueError(f"the value of {family} is a pass name or options, such as {{quantize: {{bits: 4}}}}")
        return {
            "family": family,
            "name": said.get("name", ""),
            "options": {k: v for k, v in said.items() if k != "name"},
        }

    @property
    def label(self) -> str:
        """The pass as it is written in YAML, without its outer braces."""
        if not self.options:
            return f"{self.family}: {self.name}"
        said = ({"name": self.name} if self.name else {}) | self.options
        return f"{self.family}: {{{', '.join(f'{key}: {_yaml(value)}' for key, value in said.items())}}}"


def _yaml(value: Scalar | tuple[Scalar, ...]) -> str:
    """Return a value as YAML writes it in a flow."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _of_a_library(name: str) -> str:
    if re.fullmatch(r"(ORT|CUBLAS|CUBLASLT|CUDNN|NVIDIA)_[A-Z0-9_]+", name) is None:
        raise ValueError(
            f"{name!r} is no variable of ONNX Runtime, cuBLAS or cuDNN: ORT_…, CUBLAS_…, CUDNN_…, NVIDIA_…"
        )
    return name


Variable: TypeAlias = Annotated[str, AfterValidator(_of_a_library)]
"""An environment variable that ONNX Runtime or a library of CUDA reads: nothing else is a sweep's to set."""


class Session(Part):
    """Session and provider options that are part of a recipe's idea; what is left out is the same in all arms."""

    optimization_level: Literal["disable", "basic", "extended", "layout", "all"] = Field(
        "all", description="ONNX Runtime's own graph optimisation; `disable` is its level 0."
    )
    io: Literal["device", "host"] = Field(
        "device", description="Inputs and outputs bound on the device, or numpy in and out in every run."
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="What an engine that converts models itself computes in (torch-*, openvino, tensorrt)."
    )
    disabled_optimizers: tuple[str, ...] = Field((), description="ONNX Runtime's own optimisers that are left out.")
    tf32: Flag = Field(True, description="CUDA: fp32 matrix products in TF32 (ONNX Runtime's default).")
    cuda_graph: Flag = Field(False, description="CUDA: replay the run as one captured graph.")
    slowdown: float = Field(
        0.0, ge=0, le=10, description="A busy loop in every run, of this share of the arm's own median: a known truth."
    )
    provider_options: dict[str, Scalar] = Field(default_factory=dict, description="Further options of the provider.")
    config: dict[str, str] = Field(default_factory=dict, description="Session configuration entries, by their key.")
    environment: dict[Variable, str] = Field(
        default_factory=dict, description="Variables of the arm's process for ONNX Runtime and CUDA: ORT_ENABLE_XQA, …"
    )


class Recipe(Part):
    """Ordered passes, the session options that belong to the idea, and the engine. `{}` is *original*."""

    passes: tuple[Pass, ...] = Field((), description="Applied one after another to the exported model.")
    session: Session = Field(Session(), description="Session and provider options that belong to the idea.")
    engine: str = Field("onnxruntime", description="What executes the model.")
