"""What a recipe can say of each way to quantise, and what does not fit a model before anything is built."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llama_bench.passes.checkpoint import OnText, window_misfit
from llama_bench.sweep import Model
from llama_bench.sweep_part import Flag, Positive

Patterns = Annotated[tuple[str, ...], Field(description="Linear layers left as they are, by parts of their names.")]

WINDOW = 128
"""Tokens that a graph of any length sees at a time, where a recipe does not say."""


class Calibrated(OnText):
    """Options of a pass that looks at what goes through the graph."""

    calibration_tokens: Positive = Field(4096, description="Tokens of text that the model is run on.")
    window: Positive | None = Field(
        None, description=f"Tokens at a time: {WINDOW} at most of a cached model, all that another one takes."
    )


class Weights(Calibrated):
    """Options of `weights`."""

    bits: Literal[2, 4, 8] = Field(4, description="2, 4 or 8 bits a weight.")
    method: Literal["rtn", "hqq", "gptq", "k_quant", "offsets"] = Field(
        "rtn",
        description="Rounding, Half-Quadratic Quantization, GPTQ on text, llama.cpp's K-quant search, or rounding with "
        "an offset for each block in place of a zero point: a dequantised Q4_1 comes back as it was.",
    )
    block_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="Inputs that share a scale: 16, 32, 64, 128 or 256."
    )
    symmetric: Flag = Field(False, description="No zero points: smaller, less exact.")
    accuracy_level: Literal[0, 1, 2, 3, 4] = Field(
        4, description="MatMulNBits computes in int8 at 4 (fast on a CPU), in fp32 at 0 and 1."
    )
    head_bits: Literal[2, 4, 8] | None = Field(None, description="Bits of lm_head, where it has others.")
    embeddings: Flag = Field(False, description="The embedding table too, rounded.")
    exclude: Patterns = ()

    @model_validator(mode="after")
    def _keys_fit_method(self) -> Self:
        if self.method == "k_quant" and self.symmetric:
            raise ValueError("symmetric: k_quant always has zero points")
        if self.method == "offsets" and self.symmetric:
            raise ValueError("symmetric: offsets are in place of zero points, and make the numbers unsymmetric")
        said = self.model_fields_set & {*Calibrated.model_fields}
        if self.method != "gptq" and said:
            raise ValueError(f"{min(said)} is for gptq, which alone looks at text, not for {self.method}")
        return self


class Dynamic(Calibrated):
    """Options of `dynamic`."""

    weight_type: Literal["qint8", "quint8"] = Field(
        "qint8",
        description="Signed symmetric weights (what VNNI and AMX multiply), or unsigned ones with a zero point.",
    )
    per_channel: Flag = Field(True, description="A scale for each output, or one for the whole matrix.")
    activations: Literal["token", "tensor"] = Field(
        "token",
        description="What is multiplied has a scale for each token, or one for all of them: faster, less exact.",
    )
    smooth: float | None = Field(
        None, ge=0, le=1, description="SmoothQuant's strength (0.5 is theirs): text tells which channels are large."
    )
    reduce_range: Flag = Field(False, description="7 bits: without VNNI a CPU's 16-bit sums overflow.")
    exclude: Patterns = ()

    @model_validator(mode="after")
    def _text_is_for_smooth(self) -> Self:
        if self.smooth is None and (said := self.model_fields_set & {*Calibrated.model_fields}):
            raise ValueError(f"{min(said)} is for smooth, which alone looks at text")
        return self


class Static(Calibrated):
    """Options of `static`."""

    per_channel: Flag = Field(True, description="A scale for each output, or one for the whole matrix.")
    percentile: float = Field(
        100, gt=50, le=100, description="How much of what text shows on each side is covered; the rest is clipped."
    )
    symmetric: Flag = Field(False, description="What is multiplied is covered equally far on both sides of zero.")
    smooth: float | None = Field(
        None, ge=0, le=1, description="SmoothQuant's strength (0.5 is theirs): large channels go into the weights."
    )
    reduce_range: Flag = Field(False, description="7 bits: without VNNI a CPU's 16-bit sums overflow.")
    exclude: Patterns = ()


class Cache(Calibrated):
    """Options of `kv_cache`."""

    bits: Literal[4, 8] = Field(8, description="4 or 8 bits a number.")
    per_channel: Flag = Field(True, description="A scale for each channel of each KV head, or one for keys or values.")


def window_of(options: Calibrated, model: Model) -> int:
    """Return the tokens of a window of a cached model."""
    return options.window or min(WINDOW, model.max_position_embeddings)


def fits_weights(options: Weights, model: Model) -> str | None:
    """Return which width the block size does not divide, or why the model cannot be calibrated."""
    widths = {
        "hidden_size": model.hidden_size,
        "num_attention_heads · head_dim": model.num_attention_heads * model.head_size,
        "intermediate_size": model.intermediate_size,
    }
    for name, width in widths.items():
        if width % options.block_size:
            return f"block_size {options.block_size} does not divide {name} {width}"
    if options.head_bits is not None and model.head == "none":
        return "head_bits is for lm_head, and the model has head: none"
    return _calibration_misfit(options, model) if options.method == "gptq" else None


def fits_dynamic(options: Dynamic, model: Model) -> str | None:
    """Return why the model cannot be calibrated, None where it need not be."""
    return None if options.smooth is None else _calibration_misfit(options, model)


def fits_static(options: Static, model: Model) -> str | None:
    """Return why the model cannot be calibrated."""
    return _calibration_misfit(options, model)


def fits_cache(options: Cache, model: Model) -> str | None:
    """Return why the model has no cache to quantise, or cannot be calibrated."""
    return _calibration_misfit(options, model) if model.cache else "it has no KV cache: give it cache: true"


def llama_for_text(options: Calibrated) -> str:
    """Return why a pass that looks at text is for Llamas."""
    return "it looks at text, and nobody knows what this graph's inputs mean"


def llama_for_weights(options: Weights) -> str | None:
    """Return what quantised weights need a Llama for: text, or its lm_head."""
    if options.method == "gptq":
        return llama_for_text(options)
    return None if options.head_bits is None else "head_bits is for lm_head"


def llama_for_dynamic(options: Dynamic) -> str | None:
    """Return what int8 needs a Llama for: the text that SmoothQuant looks at."""
    return None if options.smooth is None else llama_for_text(options)


def _calibration_misfit(options: Calibrated, model: Model) -> str | None:
    window = window_of(options, model)
    if model.cache and options.calibration_tokens < window:
        return f"calibration_tokens {options.calibration_tokens} are fewer than a window of {window}"
    return window_misfit(model, window)
