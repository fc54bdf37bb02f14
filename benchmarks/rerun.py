"""Running a finished sweep again: what it adds to Ray's own start (asked for: under 2 s, and nothing measured).

    python benchmarks/rerun.py [SWEEP] [STORE]

Runs the sweep once if the store does not hold it yet, then times Ray's start alone and the finished run in turn, five
times each, and prints the median difference and both medians.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

START = "from llama_bench.cluster import connect; connect.connect(); import ray; ray.shutdown()"


def seconds(*command: str) -> float:
    """Wall seconds of a whole command; its output is dropped, a failure ends the benchmark."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    sweep = sys.argv[1] if len(sys.argv) > 1 else "sweeps/quick.yaml"
    store = sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()
    again = (sys.executable, "-m", "llama_bench", "run", sweep, "--store", store, "--no-report")
    print(f"first run: {seconds(*again):.1f} s")
    starts, runs = [], []
    for _ in range(5):
        starts.append(seconds(sys.executable, "-c", START))
        runs.append(seconds(*again))
    added = statistics.median(run - start for run, start in zip(runs, starts, strict=True))
    print(f"Ray's start alone {statistics.median(starts):.2f} s, finished sweep again {statistics.median(runs):.2f} s")
    print(f"added to Ray's start: {added:.2f} s (median of 5 pairs)")


if __name__ == "__main__":
    main()
