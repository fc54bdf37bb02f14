"""Distillation: a pruned model learns from the original's logits what it lost."""

from __future__ import annotations

import json

from pydantic import Field

from llama_bench.errors import WorkError
from llama_bench.passes import checkpoint
from llama_bench.passes.info import PassInfo, Work
from llama_bench.sweep import Model
from llama_bench.sweep_part import Positive, Seed

RECORD = "distill.json"
"""What training did, beside the model that it left."""


class Distill(checkpoint.OnText):
    """Options of `logits`."""

    steps: Positive = Field(200, description="Steps of AdamW.")
    batch: Positive = Field(4, description="Windows of text a step.")
    sequence: Positive | None = Field(None, description="Tokens a window; 128 at most when left out.")
    learning_rate: float = Field(1e-4, gt=0, description="At its peak: a warm-up, then half a cosine down to 0.")
    temperature: float = Field(1.0, gt=0, description="Both distributions are softened by it.")
    checkpoint_steps: Positive = Field(25, description="Steps after which a lost task can go on.")
    seed: Seed = Field(0, description="Seed of the order of the windows.")


def sequence_of(options: Distill, model: Model) -> int:
    """Return the tokens of a training window."""
    return options.sequence or min(128, model.max_position_embeddings)


def _fits(options: Distill, model: Model) -> str | None:
    if model.head == "none":
        return "it learns from logits, and the model has head: none"
    return checkpoint.window_misfit(model, sequence_of(options, model))


PASSES: dict[str, PassInfo] = {
    "logits": PassInfo(
        "Trains a pruned model for a set number of steps against the original's logits.",
        kind="approximate",
        options=Distill,
        level="checkpoint",
        fits=_fits,
    ),
}


def work(given: Work) -> None:
    """Train the source's checkpoint, write the new one, what happened in `distill.json`, and export it.

    While it trains, memory holds the teacher once and the student three times (weights and AdamW's two moments),
    beside the activations of one batch. A killed task goes on from its last checkpoint in `given.state`. Raises
    WorkError when there is no pruned checkpoint to train, when the text is too short, or when training diverges.
    """
    from llama_bench.passes.distill import training

    before = checkpoint.read(given.source, given.model)
    if before.path is None:
        raise WorkError("distill: the source is the original model, its own teacher: put a prune before it")
    try:
        tensors, record = training.train(given, before)
    except WorkError as error:
        raise WorkError(f"distill: {error}") from None
    checkpoint.save(given.destination, before.model, tensors)
    del tensors
    (given.destination / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    checkpoint.export(given)
