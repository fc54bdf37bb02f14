"""The program that runs onnxoptimizer in a process of its own, so that a crash in C++ ends that process alone.

Started by its path with: source model, destination model, name of the destination's weights file, pass names.
"""

from __future__ import annotations

import sys


def main(source: str, destination: str, weights: str, *passes: str) -> None:
    from onnxoptimizer import onnx_opt_cpp2py_export as optimizer

    names = optimizer.get_fuse_and_elimination_passes() if passes == ("default",) else list(passes)
    # loads external data itself, and has no 2 GB limit as onnxoptimizer.optimize has, which sends the model as a string
    optimizer.optimize_from_path(source, destination, names, weights)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
