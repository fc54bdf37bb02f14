"""Pruning, one-shot and before any graph: weights set to zero, or heads, channels and layers taken out.

Zeros alone change nothing in the graph, and ONNX Runtime multiplies by them as by any other number: `magnitude` and
`two_of_four` are there to be measured. What is taken out makes the graph smaller.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llama_bench.errors import WorkError
from llama_bench.passes import checkpoint
from llama_bench.passes.info import PassInfo, Work
from llama_bench.sweep import Model
from llama_bench.sweep_part import Part, Positive


class Sparse(Part):
    """Options of `magnitude`."""

    sparsity: float = Field(0.5, gt=0, lt=1, description="Share of each linear layer's weights that become zero.")


class Calibrated(checkpoint.OnText):
    """Options of a pass that takes out what matters least on text."""

    keep: float = Field(0.75, gt=0, lt=1, description="Share that stays, rounded to a whole number.")
    calibration_tokens: Positive = Field(4096, description="Tokens of text that importance is measured on.")
    window: Positive | None = Field(None, description="Tokens that the model sees at a time; 128 at most if left out.")


class Heads(Calibrated):
    """Options of `heads`."""

    unit: Literal["group", "head"] = Field(
        "group", description="`group`: KV heads with all their query heads; `head`: query heads within each group."
    )


class Channels(Calibrated):
    """Options of `channels`."""

    multiple_of: Positive = Field(32, description="The width that is left is a multiple of this, as block sizes want.")


def window_of(options: Calibrated, model: Model) -> int:
    """Return the tokens of a calibration window."""
    return options.window or min(128, model.max_position_embeddings)


def kept(keep: float, total: int, step: int = 1) -> int:
    """Return how many of `total` stay: the multiple of `step` nearest to `keep` · `total`, halves up."""
    return int(keep * total / step + 0.5) * step


def _misfit(options: Calibrated, model: Model, total: int, what: str, step: int = 1) -> str | None:
    """Return why none or nothing would be pruned, or why the model cannot be calibrated; None when all is well."""
    left = kept(options.keep, total, step)
    steps = f" in steps of {step}" if step > 1 else ""
    if left == 0:
        return f"keep {options.keep} of {total} {what}{steps} leaves none"
    if left >= total:
        return f"keep {options.keep} of {total} {what}{steps} leaves all, so nothing would be pruned"
    window = window_of(options, model)
    if options.calibration_tokens < window:
        return f"calibration_tokens {options.calibration_tokens} are fewer than a window of {window}"
    return checkpoint.window_misfit(model, window)


def _fits_heads(options: Heads, model: Model) -> str | None:
    if options.unit == "group":
        return _misfit(options, model, model.kv_heads, "KV heads")
    return _misfit(options, model, model.num_attention_heads // model.kv_heads, "query heads of each KV head")


def _fits_channels(options: Channels, model: Model) -> str | None:
    return _misfit(options, model, model.intermediate_size, "channels", options.multiple_of)


def _fits_layers(options: Calibrated, model: Model) -> str | None:
    return _misfit(options, model, model.num_hidden_layers, "layers")


def _fits_fours(options: Part, model: Model) -> str | None:
    """Return which width, seen as a linear layer's inputs, is not made of fours."""
    widths = {
        "hidden_size": model.hidden_size,
        "num_attention_heads · head_dim": model.num_attention_heads * model.head_size,
        "intermediate_size": model.intermediate_size,
    }
    odd = next((name for name, width in widths.items() if width % 4), None)
    return odd and f"2:4 takes weights in fours, and {odd} {widths[odd]} is not divisible by 4"


PASSES: dict[str, PassInfo] = {
    "magnitude": PassInfo(
        "Sets the smallest weights of each linear layer to zero; the graph stays as large.",
        kind="approximate",
        options=Sparse,
        level="checkpoint",
    ),
    "two_of_four": PassInfo(
        "Of every four weights along a linear layer's inputs keeps the two largest (2:4).",
        kind="approximate",
        level="checkpoint",
        fits=_fits_fours,
    ),
    "heads": PassInfo(
        "Takes out whole KV heads with their query heads, or query heads of each KV head.",
        kind="approximate",
        options=Heads,
        level="checkpoint",
        fits=_fits_heads,
    ),
    "channels": PassInfo(
        "Takes channels out of the feed-forward networks.",
        kind="approximate",
        options=Channels,
        level="checkpoint",
        fits=_fits_channels,
    ),
    "layers": PassInfo(
        "Takes out whole decoder layers.",
        kind="approximate",
        options=Calibrated,
        level="checkpoint",
        fits=_fits_layers,
    ),
}
"""Every way to prune; in the structured ones, importance on text says what goes."""


def work(given: Work) -> None:
    """Prune the source's checkpoint, write the new one and export it. At its peak holds the model twice.

    Raises WorkError when the sizes that an earlier pass left do not allow it, or when the text is too short.
    """
    from llama_bench.passes.prune import importance, masks, slices

    before, name, options = checkpoint.read(given.source, given.model), given.name, given.options
    if why := PASSES[name].fits(options, before.model):
        raise WorkError(f"prune {name}: {why}")
    if name == "magnitude":
        checkpoint.save(given.destination, before.model, masks.magnitude(before, options.sparsity))
    elif name == "two_of_four":
        checkpoint.save(given.destination, before.model, masks.two_of_four(before))
    else:
        window = window_of(options, before.model)
        try:
            windows = checkpoint.windows(given.model, options, window, options.calibration_tokens)
        except WorkError as error:
            raise WorkError(f"prune {name}: {error}") from None
        chosen = importance.choose(name, options, before, windows)
        checkpoint.save(given.destination, *slices.cut(before, chosen))
    checkpoint.export(given)
