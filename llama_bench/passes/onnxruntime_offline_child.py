"""The program that lets ONNX Runtime optimise a model in a process of its own, so that a crash ends that one alone.

Started by its path with: source model, destination model, and JSON with `level`, `weights` (name of the destination's
weights file) and `disabled` (names of optimisers).
"""

from __future__ import annotations

import json
import sys

EXTERNAL_FROM_BYTES = "1024"


def main(source: str, destination: str, words: str) -> None:
    import onnxruntime

    settings = json.loads(words)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    level = f"ORT_ENABLE_{settings['level'].upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = destination
    # without a file of its own, a saved model would go on referring to the source's
    entry = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{entry}file_name", settings["weights"])
    options.add_session_config_entry(f"{entry}min_size_in_bytes", EXTERNAL_FROM_BYTES)
    # weights in the kernels' own layout are for running, and this session never runs
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=set(settings["disabled"])
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
