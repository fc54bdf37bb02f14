"""The datasets of a run: their columns and the order of their rows. Seconds and bytes."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 3

READABLE = (1, 2, 3)
"""Versions that can be read; a column that an older one lacks is null."""

_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_T = pa.timestamp("us", tz="UTC")

_CELL = [("cell", _S), ("model", _S), ("workload", _S), ("target", _S)]
_REPLICATE = [*_CELL, ("restart", _I), ("group", _I), ("phase", _S)]
"""`phase` is "main" (null in version 1) or "confirm": the fresh restarts that confirm a cell's fastest recipe."""

# A table of columns reads better several to a line.
# fmt: off
SCHEMAS: dict[str, pa.Schema] = {
    # one row a finished piece (a build, an examination of a cell's arms, a restart) and where its seconds went
    "pieces": pa.schema(
        [
            ("piece", _S), ("kind", _S), *_REPLICATE, ("node", _S), ("started_at", _T), ("wall_s", _F),
            ("start_s", _F), ("load_s", _F), ("warmup_s", _F), ("washout_s", _F), ("timed_s", _F), ("other_s", _F),
            ("blocks", _I), ("dropped", _I),
        ]
    ),
    # one row a timed run; busy_s is what a recipe's `slowdown` took of it, kept is its block's, token_s are the seconds
    # of each new token of a `generate`, the first with its prompt
    "timings": pa.schema(
        [
            *_REPLICATE, ("block", _I), ("position", _I), ("recipe", _S), ("control", _B), ("run_index", _I),
            ("seconds", _F), ("busy_s", _F), ("token_s", pa.list_(_F)), ("kept", _B), ("pid", _I),
            ("process_started_at", _T),
        ]
    ),
    # one row a slot (one arm's turn in a block); value is the mean of ln(seconds) of its timed runs. What was seen
    # around it is its block's, but for its energy: `disturbed` says by what, and a block not `kept` was measured again
    "blocks": pa.schema(
        [
            *_REPLICATE, ("block", _I), ("position", _I), ("recipe", _S), ("control", _B), ("log_seconds", _F),
            ("washout_runs", _I), ("washout_s", _F), ("timed_s", _F), ("started_at", _T), ("pid", _I),
            ("kept", _B), ("disturbed", _S), ("steal", _F), ("cpu_pressure", _F), ("sm_mhz", _F), ("power_w", _F),
            ("throttle", _S), ("foreign", _S), ("energy_j", _F), ("energy_s", _F),
        ]
    ),
    # one row an arm of a cell: what its passes did to the graph, and what ONNX Runtime really executes
    "variants": pa.schema(
        [
            *_CELL, ("recipe", _S), ("control", _B), ("variant", _S), ("passes", _S), ("engine", _S), ("class", _S),
            ("nodes_before", _I), ("nodes_after", _I), ("nodes_changed", _I), ("histogram_difference", _S),
            ("graph_bytes", _I), ("weight_bytes", _I), ("build_s", _F), ("changed", _B),
            ("graph_sha256", _S), ("executed_sha256", _S), ("executed_nodes", _I), ("executed_histogram", _S),
            ("placement_sha256", _S), ("placement", _S), ("settings_sha256", _S), ("settings", _S),
            ("kernel_runs", _I), ("kernel_launches", _F), ("kernel_busy_s", _F), ("kernel_span_s", _F),
            ("kernel_wall_s", _F),
        ]
    ),
    # one row a kernel of an arm of a cell, or a kind of copy: what the GPU did in a profiled run
    "kernels": pa.schema(
        [
            *_CELL, ("recipe", _S), ("control", _B), ("kernel", _S), ("class", _S), ("count", _F), ("seconds", _F),
        ]
    ),
    # one row an output of an arm in a restart: the timed session's answer against torch in fp32. The output "text"
    # (once an arm) are all predictions on the windows of a text, with both perplexities and the tokens scored
    "accuracy": pa.schema(
        [
            *_REPLICATE, ("recipe", _S), ("control", _B), ("output", _S), ("class", _S), ("max_abs", _F),
            ("max_rel", _F), ("cosine", _F), ("kl", _F), ("top1", _F), ("nan", _I), ("infinite", _I),
            ("nonfinite", _I), ("perplexity", _F), ("reference_perplexity", _F), ("tokens", _I), ("window", _I),
            ("stride", _I), ("bound", _F), ("bounds", _S), ("within_bound", _B), ("violated", _S),
        ]
    ),
    # one row a sequence that an arm generated (once an arm): its new tokens, how many agree with torch's from the
    # first one on, and the text that they stand for where the model has a tokenizer
    "generations": pa.schema(
        [
            *_REPLICATE, ("recipe", _S), ("control", _B), ("sequence", _I), ("tokens", pa.list_(_I)), ("agreed", _I),
            ("prompt", _S), ("text", _S),
        ]
    ),
    # one row a ceiling of a node: operations a second of a matrix product in a precision, or bytes a second
    "ceilings": pa.schema(
        [
            ("node", _S), ("hardware", _S), ("target", _S), ("what", _S), ("dtype", _S), ("per_second", _F),
            ("how", _S), ("threads", _I), ("cache_bytes", _I), ("measured_at", _T),
        ]
    ),
    # one row an arm's process in a restart: the node it ran on and how it was set up
    "machines": pa.schema(
        [
            *_REPLICATE, ("recipe", _S), ("control", _B), ("pid", _I), ("process_started_at", _T), ("niceness", _I),
            ("threads", _I), ("provider", _S), ("warmup_runs", _I), ("steady", _B), ("node", _S), ("hostname", _S),
            ("cpu", _S), ("physical_cores", _I), ("logical_cores", _I), ("memory_bytes", _I), ("gpu", _S),
            ("hardware", _S), ("load_1m", _F), ("steal", _F), ("cpu_pressure", _F), ("memory_pressure", _F),
            ("cpu_mhz", _F), ("memory_available_bytes", _I), ("busy", _S), ("sm_mhz", _F), ("power_w", _F),
            ("temperature_c", _F), ("throttle", _S), ("peak_bytes", _I), ("device_bytes", _I), ("versions", _S),
            ("facts", _S),
        ]
    ),
    # one row a failure: what failed, where, why
    "failures": pa.schema(
        [
            *_REPLICATE, ("recipe", _S), ("stage", _S), ("artifact", _S), ("kind", _S), ("message", _S),
            ("node", _S), ("at", _T),
        ]
    ),
}
# fmt: on
"""Every dataset's columns. Seconds and bytes; columns that do not apply to a row are null."""

SORT: dict[str, list[str]] = {
    "pieces": ["kind", "cell", "restart", "group", "piece"],
    "timings": ["cell", "restart", "group", "block", "position", "run_index"],
    "blocks": ["cell", "restart", "group", "block", "position"],
    "variants": ["cell", "control", "recipe"],
    "kernels": ["cell", "control", "recipe", "class", "kernel"],
    "accuracy": ["cell", "restart", "group", "control", "recipe", "output"],
    "generations": ["cell", "restart", "group", "control", "recipe", "sequence"],
    "ceilings": ["hardware", "target", "what", "dtype"],
    "machines": ["cell", "restart", "group", "control", "recipe"],
    "failures": ["at", "cell", "artifact", "recipe"],
}
"""The order of the rows in each part."""
