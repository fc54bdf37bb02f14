"""What each column of the views means: its unit, and when it is null. The names and types are those of each view."""
# ruff: noqa: E501 - one line a column, so that the table can be read from top to bottom

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_bench.columns import COMMON, Column, Words
from llama_bench.stats import accuracy, cells, efficiency, generation, kernels, pareto, sizes, speedups

SCHEMAS: dict[str, Mapping[str, Any]] = {
    "speedups": speedups.SCHEMA,
    "cells": cells.SCHEMA,
    "accuracy_by_arm": accuracy.SCHEMA,
    "sizes": sizes.SCHEMA,
    "pareto": pareto.SCHEMA,
    "generation": generation.SCHEMA,
    "efficiency": efficiency.SCHEMA,
    "gpu_time": kernels.SCHEMA,
}
"""View → its columns and their types."""

_S, _B, _SHARE, _X = "s", "bytes", "share", "×"
_NO_TIME = "nothing usable was timed"
_NO_RATIO = "there is no honest number"
_NO_PAIR = "the target has no A/A pair"
_NOT_FRESH = "no fresh restarts were made for it"
_NO_TEXT = "it was not asked about text"

# fmt: off
RECIPE = Column("", "The arm's recipe, `control` for the baseline's second run.")
LEVELS = "95 % interval of its mean over restarts"

VIEWS: dict[str, Words] = {
    "speedups": Words("an arm of a cell, with a number or without", {
        "hidden_size": Column("", "Hidden size of the model."),
        "recipe": RECIPE,
        "baseline": Column("", "True for the recipe that the others of its cell are compared with."),
        "restarts": Column("", "Restarts of the main phase that gave a ratio; of the baseline, all."),
        "runs": Column("", "Timed runs of blocks that were kept, in the main phase."),
        "mean_s": Column(_S, "Mean over all runs.", _NO_TIME),
        "median_s": Column(_S, "Median over all runs.", _NO_TIME),
        "p90_s": Column(_S, "90th percentile over all runs.", _NO_TIME),
        "time_s": Column(_S, "Geometric mean: e to the mean over restarts of the mean ln(seconds).", _NO_TIME),
        "time_low_s": Column(_S, f"Lower end of the {LEVELS}.", f"{_NO_TIME}, or one restart"),
        "time_high_s": Column(_S, f"Upper end of the {LEVELS}.", f"{_NO_TIME}, or one restart"),
        "tokens_per_s": Column("tokens / s", "Tokens of a run over `mean_s`.", _NO_TIME),
        "bound_s": Column(_S, "Least time that the machine's own ceilings allow a run (`docs/roofline.md`).", "ceilings, or what the recipe does, are not known"),
        "bound_by": Column("", "What sets it: `compute` or `memory`.", "as `bound_s`"),
        "of_bound": Column(_SHARE, "`bound_s` over `time_s`: the share of that speed the arm reaches.", "as `bound_s`"),
        "speedup": Column(_X, "Time of the baseline over time of the arm, e to the minus of mean y; 1 of the baseline.", _NO_RATIO),
        "low": Column(_X, "Lower end of its interval.", f"{_NO_RATIO}; the baseline"),
        "high": Column(_X, "Upper end of its interval.", f"{_NO_RATIO}; the baseline"),
        "level": Column(_SHARE, "Level of the interval: the one that agrees with the verdicts; 0.95 of control and no-ops.", f"{_NO_RATIO}; the baseline"),
        "saved": Column(_SHARE, "1 − arm / baseline.", _NO_RATIO),
        "saved_low": Column(_SHARE, "Lower end of its interval.", f"{_NO_RATIO}; the baseline"),
        "saved_high": Column(_SHARE, "Upper end of its interval.", f"{_NO_RATIO}; the baseline"),
        "verdict": Column("", "`baseline`, `control`, `faster`, `slower`, `equivalent`, `inconclusive`, `no-op`, `wrong`, `void`, `failed`, `skipped` or `unserved`."),
        "smallest_effect": Column(_SHARE, "Smallest effect that would have been seen with a chance of 80 %.", "the verdict is not `inconclusive`, or has no number"),
        "nodes_changed": Column("", "Nodes that its passes changed.", "it was not examined"),
        "cpu_nodes": Column("", "Nodes that a GPU's session runs on the CPU.", "the target is a CPU, or the engine executes no graph"),
        "memcpy_nodes": Column("", "Nodes that copy between GPU and CPU.", "as `cpu_nodes`"),
        "kernel_launches": Column("", "Kernels that the GPU runs, a run; those that a CUDA graph replays too.", "there is no GPU, or its kernels could not be seen"),
        "no_op": Column("", "True where the verdict is `no-op`."),
        "evidence": Column("", "Why the verdict is what it is, in words; may be empty."),
        "confirmed": Column("", "`confirmed` or `not confirmed`, by fresh restarts.", _NOT_FRESH),
        "confirmed_speedup": Column(_X, "Speedup in the fresh restarts alone.", _NOT_FRESH),
        "confirmed_low": Column(_X, "Lower end of its 90 % interval.", _NOT_FRESH),
        "confirmed_high": Column(_X, "Upper end of its 90 % interval.", _NOT_FRESH),
        "dropped_blocks": Column("", "The cell's blocks that were disturbed and timed again."),
        "flagged_blocks": Column("", "The cell's blocks that were disturbed and count all the same."),
    }),
    "cells": Words("a cell", {
        "restarts": Column("", "Restarts of the main phase."),
        "half_width": Column(_SHARE, "Widest 95 % half-width of ln(ratio) of its arms, without inflation.", "no arm asks for an interval"),
        "wanted_half_width": Column(_SHARE, "The sweep's `half_width`.", "the sweep asks for the pilot alone"),
        "ended_by": Column("", "`half-width`, `budget`, `pilot only` or `unfinished`.", "it is void, or its target unserved"),
        "blocks": Column("", "Blocks that were timed, in both phases."),
        "dropped_blocks": Column("", "Blocks that were disturbed and timed again."),
        "flagged_blocks": Column("", "Blocks that were disturbed and count all the same."),
        "aa_pairs": Column("", "A/A pairs of its target, and degrees of freedom of χ²."),
        "aa_chi2": Column("", "χ² of all A/A pairs of its target.", _NO_PAIR),
        "aa_p": Column("", "p-value of that χ²; below 0.001 the target is void.", _NO_PAIR),
        "inflation": Column("", "Factor of every standard error of the target, at least 1.", _NO_PAIR),
        "void": Column("", "True where nothing can be said: equal programs differ, two machines, or a baseline beyond its machine's limit."),
        "best": Column("", "Its fastest recipe.", "nothing is faster"),
        "confirmed": Column("", "`confirmed` or `not confirmed`, by fresh restarts.", "there are none"),
        "confirmed_speedup": Column(_X, "Speedup of `best` in the fresh restarts alone.", "there are none"),
        "confirmed_low": Column(_X, "Lower end of its 90 % interval.", "there are none"),
        "confirmed_high": Column(_X, "Upper end of its 90 % interval.", "there are none"),
    }),
    "accuracy_by_arm": Words("an arm of a cell that has answered; of several restarts the worst counts", {
        "recipe": RECIPE,
        "source": Column("", "What `kl` and `top1` are of: `text`, or the arm's first output.", "neither is there"),
        "kl": Column("nats", "Divergence of the next-token distributions from torch's.", "the output has none"),
        "top1": Column(_SHARE, "Tokens whose most likely successor is torch's.", "the output has none"),
        "perplexity": Column("", "Perplexity on the text.", _NO_TEXT),
        "reference_perplexity": Column("", "torch's perplexity on the same text.", _NO_TEXT),
        "perplexity_increase": Column(_SHARE, "By how much the arm's is above torch's.", _NO_TEXT),
        "tokens": Column("", "Predictions that were scored.", _NO_TEXT),
        "window": Column("tokens", "Length of a window of the text.", _NO_TEXT),
        "stride": Column("tokens", "From one window to the next.", _NO_TEXT),
        "max_rel": Column(_SHARE, "Largest error of the first output over its largest value.", "the output has none"),
        "cosine": Column("", "Cosine of the first output with torch's.", "the output has none"),
        "nonfinite": Column("", "Values of all outputs that are not finite."),
        "restarts": Column("", "Restarts that were looked at."),
        "within_bound": Column("", "Whether all bounds are kept.", "nothing was judged"),
    }),
    "sizes": Words("an arm of a cell that was examined", {
        "recipe": RECIPE,
        "graph_bytes": Column(_B, "Size of the graph's file."),
        "weight_bytes": Column(_B, "Size of its weights."),
        "disk_bytes": Column(_B, "Both."),
        "peak_bytes": Column(_B, "Most memory of the host that its process ever had: median over restarts.", "no restart says"),
        "device_bytes": Column(_B, "Memory of the GPU that it holds: median over restarts.", "no restart says"),
        "restarts": Column("", "Restarts that were looked at."),
    }),
    "pareto": Words("an arm of a cell that has a speedup, a right answer and something of its own to execute", {
        "recipe": RECIPE,
        "baseline": Column("", "True for the baseline."),
        "engine": Column("", "What runs it."),
        "verdict": Column("", "As in `speedups`."),
        "speedup": Column(_X, "As in `speedups`."),
        "low": Column(_X, "As in `speedups`.", "the baseline"),
        "high": Column(_X, "As in `speedups`.", "the baseline"),
        "loss_of": Column("", "What `loss` is of: `perplexity`, `kl`, `cosine` or `tokens`."),
        "loss": Column("see `loss_of`", "Increase of perplexity (share), KL (nats), 1 − cosine, or share of tokens unlike torch's."),
        "disk_bytes": Column(_B, "Graph and weights."),
        "front": Column("", "True where no arm on the front beats it in time, accuracy and size together."),
        "beaten_by": Column("", "The fastest arm on the front that beats it.", "it is on the front"),
    }),
    "generation": Words("an arm of a cell that generates text", {
        "recipe": RECIPE,
        "batch": Column("", "Sequences at once."),
        "prompt": Column("tokens", "Length of each prompt."),
        "new_tokens": Column("tokens", "Tokens that are made for each."),
        "restarts": Column("", "Restarts of the main phase."),
        "runs": Column("", "Timed runs."),
        "first_s": Column(_S, "Time to the first token, prompt included: geometric mean.", "a run has no seconds"),
        "first_low_s": Column(_S, f"Lower end of the {LEVELS}.", "one restart"),
        "first_high_s": Column(_S, f"Upper end of the {LEVELS}.", "one restart"),
        "token_s": Column(_S, "Time of each later token of a sequence: geometric mean.", "there is one token"),
        "token_low_s": Column(_S, f"Lower end of the {LEVELS}.", "one restart"),
        "token_high_s": Column(_S, f"Upper end of the {LEVELS}.", "one restart"),
        "token_p50_s": Column(_S, "Median over all later tokens of all runs.", "there is one token"),
        "token_p90_s": Column(_S, "90th percentile of the same.", "there is one token"),
        "token_p99_s": Column(_S, "99th percentile of the same.", "there is one token"),
        "tokens_per_s": Column("tokens / s", "All new tokens of all sequences over the whole run."),
        "decode_tokens_per_s": Column("tokens / s", "Those after the first ones.", "there is one token"),
    }),
    "efficiency": Words("an arm that was timed", {
        "recipe": RECIPE,
        "verdict": Column("", "Its verdict in the view `speedups`: a wrong arm has its rate too."),
        "tokens_per_s": Column("tokens / s", "Tokens of a run over its mean time."),
        "power_w": Column("W", "Mean power of the GPU over the arm's slots: by its energy counter in slots of at least 0.3 s, in older runs by its reading at the end of blocks, in slots of at least a second.", "no GPU, or shorter slots"),
        "tokens_per_joule": Column("tokens / J", "`tokens_per_s` over `power_w`.", "as `power_w`"),
        "joules_per_token": Column("J / token", "Energy of the GPU for each token: `power_w` over `tokens_per_s`.", "as `power_w`"),
        "memory_bytes": Column(_B, "What the arm holds on the GPU; where it uses none, the most that its process had.", "no restart says"),
        "memory_of": Column("", "`GPU` or `host`.", "as `memory_bytes`"),
        "tokens_per_s_per_gb": Column("tokens / s / GB", "`tokens_per_s` for each 10⁹ bytes of `memory_bytes`.", "as `memory_bytes`"),
    }),
    "gpu_time": Words("a class of kernels of an arm whose kernels were seen, and one for the time in which none ran", {
        "recipe": RECIPE,
        "verdict": Column("", "As in `speedups`."),
        "class": Column("", "As in `kernels`, and `idle`."),
        "launches": Column("", "How many of them ran, a run.", "the class is `idle`"),
        "seconds": Column(_S, "How long they took, a run; of `idle`, `time_s` less the time in which at least one ran."),
        "share": Column(_SHARE, "`seconds` of `time_s`: where kernels ran side by side all shares are more than 1 together."),
        "floor_s": Column(_S, "The least that the machine's own ceilings allow the class: 0 for what can be fused away.", "no ceilings were measured, or what must be done is not known"),
        "time_s": Column(_S, "The run as it was timed, as in `speedups`; where it was not, as long as it took beside the profiler."),
    }),
}
# fmt: on
"""View → what a row is, and its columns besides those that datasets have too."""


def of_view(view: str) -> dict[str, Column]:
    """Return the columns of a view with their meanings, in its order. Raises KeyError for one without."""
    own = VIEWS[view].columns
    return {name: own[name] if name in own else COMMON[name] for name in SCHEMAS[view]}
