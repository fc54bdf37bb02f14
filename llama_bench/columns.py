"""What each column of the datasets means: its unit, and when it is null. The names and types are those of `schemas`."""
# ruff: noqa: E501 - one line a column, so that the table can be read from top to bottom

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Column(NamedTuple):
    """What a column holds: its unit ("" where it has none), its meaning, and when it is null ("" never)."""

    unit: str
    meaning: str
    null: str = ""


class Words(NamedTuple):
    """What one row of a dataset or view is, and its columns by name."""

    row: str
    columns: Mapping[str, Column]


_S, _B, _SHARE = "s", "bytes", "share"
_NO_GPU = "no GPU, or it does not tell"
_UNSEEN = "it cannot be seen on this machine"
_NO_PROFILE = "there is no GPU, or its kernels could not be seen, or a run from before this column"
_APPROXIMATE = "nothing is asked of this output"

# fmt: off
COMMON: dict[str, Column] = {
    "cell": Column("", "Id of the cell: a model, a workload and a target, timed on one node; `run.json` lists them."),
    "model": Column("", "The model's label in the sweep."),
    "workload": Column("", "The workload's name in the sweep."),
    "target": Column("", "The target's name in the sweep."),
    "restart": Column("", "Number of the restart in its cell: fresh processes of every arm."),
    "group": Column("", "Number of the group of arms that were timed together."),
    "phase": Column("", "`main`, or `confirm` for the fresh restarts that confirm a cell's fastest recipe.", "version 1: all are `main`"),
    "recipe": Column("", "The arm's recipe; of the control, the baseline's recipe."),
    "control": Column("", "True for the baseline's second run under another name (A/A)."),
    "block": Column("", "Number of the block in its restart: every arm once, in random order."),
    "position": Column("", "The slot's place in its block, from 0."),
    "kept": Column("", "False for all rows of a block that was disturbed, and timed again.", "version 1: all are true"),
    "pid": Column("", "Process id of the arm's process."),
    "process_started_at": Column("", "When that process started: with `pid` it tells processes apart."),
    "node": Column("", "Ray's id of the node."),
    "class": Column("", "`exact` (a rewrite that must give torch's answers) or `approximate`.", "version 1, in `accuracy`"),
    "throttle": Column("", "Reasons for not clocking higher, joined by commas; an empty text is none.", _UNSEEN),
    "hardware": Column("", "Fingerprint of what lasts of the machine (`docs/machine.md`).", "version 1"),
}
"""Columns that mean the same in every dataset that has them."""

DATASETS: dict[str, Words] = {
    "pieces": Words("a finished piece: a build, the ceilings of a node, an examination of a cell's arms, or a restart", {
        "piece": Column("", "The piece's name, and the stem of its parts: `build-…`, `ceilings-…`, `<cell>-x`, `<cell>-r0003`."),
        "kind": Column("", "`build`, `ceilings`, `examine` or `restart`."),
        **{name: COMMON[name]._replace(null="the piece is of no cell") for name in ("cell", "model", "workload")},
        "target": COMMON["target"]._replace(null="the piece is a build"),
        **{name: COMMON[name]._replace(null="the piece is no restart") for name in ("restart", "group", "phase")},
        "started_at": Column("", "When the piece was begun."),
        "wall_s": Column(_S, "How long it took, on the clock."),
        "start_s": Column(_S, "Of that: starting the arms' processes.", "the piece is no restart"),
        "load_s": Column(_S, "Of that: loading the sessions.", "the piece is no restart"),
        "warmup_s": Column(_S, "Of that: warming up.", "the piece is no restart"),
        "washout_s": Column(_S, "Of that: untimed runs before slots.", "the piece is no restart"),
        "timed_s": Column(_S, "Of that: timed runs.", "the piece is no restart"),
        "other_s": Column(_S, "The rest of `wall_s`."),
        "blocks": Column("", "Blocks that were timed, dropped ones too.", "the piece is no restart; version 1"),
        "dropped": Column("", "Blocks of those that were disturbed and timed again.", "the piece is no restart; version 1"),
    }),
    "timings": Words("a timed run", {
        "run_index": Column("", "The run's place in its slot, from 0."),
        "seconds": Column(_S, "How long the run took, by the monotonic clock."),
        "busy_s": Column(_S, "What the recipe's `slowdown` took of `seconds`.", "the recipe has none; version 1"),
        "token_s": Column(_S, "Seconds of each new token of a `generate`; the first has its prompt in it.", "another workload; versions 1 and 2"),
    }),
    "blocks": Words("a slot: one arm's turn in a block. What was seen of the machine, but the energy, is the whole block's, the same in all its rows", {
        "log_seconds": Column("ln s", "The slot's value: mean of ln(seconds) of its timed runs."),
        "washout_runs": Column("", "Untimed runs before the timed ones."),
        "washout_s": Column(_S, "How long those took."),
        "timed_s": Column(_S, "Sum of the timed runs' seconds."),
        "started_at": Column("", "When the slot was begun."),
        "disturbed": Column("", "What disturbed the block, in a sentence.", "nothing exceeded its bound; version 1"),
        "steal": Column(_SHARE, "Of the CPU time asked for in the block, what other virtual machines got.", _UNSEEN),
        "cpu_pressure": Column(_SHARE, "Of the block's time, that in which some task waited for a CPU, the cell's own arms too.", _UNSEEN),
        "sm_mhz": Column("MHz", "Clock of the GPU's processors at the block's end.", _NO_GPU),
        "power_w": Column("W", "Power of the GPU at the block's end: mean of its last second.", _NO_GPU),
        "energy_j": Column("J", "What the whole GPU used from right before the slot to right after it, by its own counter.", f"{_NO_GPU}; older runs"),
        "energy_s": Column(_S, "How long that was: washout, timed runs, and the few milliseconds around them.", "as `energy_j`"),
        "foreign": Column("", "A process on the GPU that is none of the cell's arms: `name (pid 123)`.", f"there was none; {_NO_GPU}"),
    }),
    "variants": Words("an arm of a cell: what its passes did to the graph, and what is really executed", {
        "variant": Column("", "Id of the artifact with its graph and weights."),
        "passes": Column("", "JSON list: its passes in order."),
        "engine": Column("", "What runs it, such as `onnxruntime` or `torch-compile`."),
        "class": COMMON["class"]._replace(null=""),
        "nodes_before": Column("", "Nodes of the graph before its passes."),
        "nodes_after": Column("", "Nodes of the graph after them."),
        "nodes_changed": Column("", "Nodes that its passes added, removed or changed, summed over the passes."),
        "histogram_difference": Column("", "JSON object: operator → nodes gained or lost by its passes."),
        "graph_bytes": Column(_B, "Size of the graph's file."),
        "weight_bytes": Column(_B, "Size of its weights."),
        "build_s": Column(_S, "How long the variant's last step was built."),
        "changed": Column("", "Whether any pass says that it changed something."),
        "graph_sha256": Column("", "Hash of the stored graph, without names and order of nodes."),
        "executed_sha256": Column("", "The same hash of the graph that the engine executes.", "the engine executes no graph that can be saved"),
        "executed_nodes": Column("", "Nodes of that graph.", "as `executed_sha256`"),
        "executed_histogram": Column("", "JSON object: operator → nodes of that graph.", "as `executed_sha256`"),
        "placement_sha256": Column("", "Hash of `placement`.", "as `executed_sha256`"),
        "placement": Column("", "JSON object: provider → operator → nodes that it ran in one profiled run.", "as `executed_sha256`"),
        "settings_sha256": Column("", "Hash of `settings`."),
        "settings": Column("", "JSON object: session and provider options, threads, environment; all that is set."),
        "kernel_runs": Column("", "Runs that were profiled on the GPU.", _NO_PROFILE),
        "kernel_launches": Column("", "Kernels that the GPU ran, a run; those that a CUDA graph replays too, copies not.", _NO_PROFILE),
        "kernel_busy_s": Column(_S, "Time in which at least one kernel or copy ran, a run.", _NO_PROFILE),
        "kernel_span_s": Column(_S, "From the start of the first one to the end of the last, a run.", _NO_PROFILE),
        "kernel_wall_s": Column(_S, "How long a run took in the same process without the profiler, their median.", _NO_PROFILE),
    }),
    "kernels": Words("a kernel of an arm of a cell, or a kind of copy: what the GPU did in a profiled run, a mean over `kernel_runs`; not in older runs", {
        "kernel": Column("", "Its name without namespaces, template arguments and parameters; of a copy from where to where."),
        "class": Column("", "`matmul`, `attention`, `norm`, `elementwise`, `rotary and cache`, `embedding`, `layout`, `dequantise`, `copy` or `other`, by its name."),
        "count": Column("", "How often it ran, a run."),
        "seconds": Column(_S, "How long in all, a run."),
    }),
    "accuracy": Words("an output of an arm in a restart: the timed session's answer against torch in fp32. The output `text` (once an arm) is all its predictions on the windows of a text", {
        "output": Column("", "Name of the output: `logits`, `hidden_states`, `present.0.key`, `tokens`, `text`."),
        "max_abs": Column("the output's", "Largest error: max |a − e|.", "the output is `text` or `tokens`"),
        "max_rel": Column(_SHARE, "The same over the largest value: max |a − e| / max |e|.", "the output is `text` or `tokens`"),
        "cosine": Column("", "⟨a, e⟩ / (‖a‖ · ‖e‖).", "as `max_abs`, or values are not finite; version 1"),
        "kl": Column("nats", "Mean divergence of the next-token distributions from torch's.", "the output has none; version 1"),
        "top1": Column(_SHARE, "Tokens whose most likely successor is torch's; of `tokens`, those that are the same.", "the output has none; version 1"),
        "nan": Column("", "Values that are NaN.", "version 1"),
        "infinite": Column("", "Values that are infinite.", "version 1"),
        "nonfinite": Column("", "Values that are not finite: the sum of both."),
        "perplexity": Column("", "Perplexity on the text.", "another output than `text`; versions 1 and 2"),
        "reference_perplexity": Column("", "torch's perplexity on the same text.", "as `perplexity`"),
        "tokens": Column("", "Predictions that were scored.", "as `perplexity`"),
        "window": Column("tokens", "Length of a window of the text.", "as `perplexity`"),
        "stride": Column("tokens", "From one window to the next.", "as `perplexity`"),
        "bound": Column(_SHARE, "Most that `max_rel` may be.", f"{_APPROXIMATE}, or not this"),
        "bounds": Column("", "JSON object: every bound that was asked, null where none is.", f"{_APPROXIMATE}; version 1"),
        "within_bound": Column("", "Whether all bounds are kept.", _APPROXIMATE),
        "violated": Column("", "Which bounds it is outside of and by what, in a sentence.", "it is outside of none; version 1"),
    }),
    "generations": Words("a sequence that an arm generated (once an arm); not in versions 1 and 2", {
        "sequence": Column("", "The sequence's place in the batch, from 0."),
        "tokens": Column("", "Its new tokens."),
        "agreed": Column("", "How many of them are torch's, from the first one on."),
        "prompt": Column("", "The text before them.", "the model has no tokenizer"),
        "text": Column("", "The text that they stand for.", "the model has no tokenizer"),
    }),
    "ceilings": Words("a ceiling of a node for a target, the best of several ways to reach it; not in version 1", {
        "what": Column("", "`matmul` (a matrix product), `copy` (bytes read and written) or `read`."),
        "dtype": Column("", "Precision of the product: `fp32`, `tf32`, `fp16`, `bf16`, `int8`, `fp8`; empty for bytes."),
        "per_second": Column("operations or bytes / s", "The most that was seen."),
        "how": Column("", "What was fastest, and its shape."),
        "threads": Column("", "Threads that the target gives its arms."),
        "cache_bytes": Column(_B, "Last-level cache: what may stay there need not be moved.", "it is not known"),
        "measured_at": Column("", "When it was measured."),
    }),
    "machines": Words("an arm's process in a restart: how it was set up, the node it ran on, and the moment when the restart began", {
        "niceness": Column("", "Niceness of the process."),
        "threads": Column("", "Threads of its session."),
        "provider": Column("", "The execution provider that its session has first."),
        "warmup_runs": Column("", "Untimed runs until it was steady, or time was up."),
        "steady": Column("", "Whether the last three of them agreed within 2 %."),
        "hostname": Column("", "Name of the host."),
        "cpu": Column("", "Model of its CPU."),
        "physical_cores": Column("", "Its cores."),
        "logical_cores": Column("", "Its hardware threads."),
        "memory_bytes": Column(_B, "Its memory, or the container's limit."),
        "gpu": Column("", "Names of its GPUs, joined by commas.", "it has none"),
        "load_1m": Column("", "Load of the last minute.", "version 1, or it cannot be seen"),
        "steal": Column(_SHARE, "Of the CPU time asked for since the last restart, what other virtual machines got.", f"version 1, or {_UNSEEN}"),
        "cpu_pressure": Column(_SHARE, "Of the last ten seconds, those in which some task waited for a CPU.", f"version 1, or {_UNSEEN}"),
        "memory_pressure": Column(_SHARE, "Of the last ten seconds, those in which some task waited for memory.", f"version 1, or {_UNSEEN}"),
        "cpu_mhz": Column("MHz", "Mean clock of the CPUs.", f"version 1, or {_UNSEEN}"),
        "memory_available_bytes": Column(_B, "Memory that was free to take.", "version 1"),
        "busy": Column("", "Processes beside that took CPU time since the last restart; an empty text is none.", f"version 1, or {_UNSEEN}"),
        "sm_mhz": Column("MHz", "Clock of the GPU's processors.", f"{_NO_GPU}; version 1"),
        "power_w": Column("W", "Power of the GPU.", f"{_NO_GPU}; version 1"),
        "temperature_c": Column("°C", "Temperature of the GPU.", f"{_NO_GPU}; version 1"),
        "peak_bytes": Column(_B, "Most memory of the host that the process ever had.", "versions 1 and 2, or it cannot be seen"),
        "device_bytes": Column(_B, "Memory of the GPU that it holds.", f"{_NO_GPU}; versions 1 and 2"),
        "versions": Column("", "JSON object: library → version.", "version 1"),
        "facts": Column("", "JSON object: all that is known of the machine (`docs/machine.md`)."),
    }),
    "failures": Words("a failure: what failed, where and why. A column that is null says that it concerns all", {
        **{name: COMMON[name]._replace(null="it is of no single one") for name in ("cell", "model", "workload", "target", "restart", "group", "phase", "recipe", "node")},
        "stage": Column("", "What was being done, such as `build`, `examine`, `load`, `measure`, `engine`, `store` or `driver`."),
        "artifact": Column("", "Id of the artifact that was not built.", "the stage is no build"),
        "kind": Column("", "`lost` (one try, made again), `skipped` (left out without a try), `memory` and `gpu memory` (too little of it), `no engine` (the baseline cannot run on the node), else the name of the error that gave it up."),
        "message": Column("", "Why, in words."),
        "at": Column("", "When.", "a build that failed before the stamp was written"),
    }),
}
# fmt: on
"""Dataset → what a row is, and its columns besides those of `COMMON`, which its own entries come before."""


def of_dataset(dataset: str, names: list[str]) -> dict[str, Column]:
    """Return the columns `names` of a dataset with their meanings, in that order. Raises KeyError for one without."""
    own = DATASETS[dataset].columns
    return {name: own[name] if name in own else COMMON[name] for name in names}
