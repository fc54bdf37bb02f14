"""Memory of exporting a model and of every pass on it: the peak of each build beside the model's bytes.

    python benchmarks/memory.py benchmarks/large.yaml [STORE]        every pass on a model of 2.7 GB
    python benchmarks/memory.py benchmarks/llama2_7b.yaml [STORE]    Llama-2-7B's shapes in 4 bits

Builds the sweep's exports and passes one after another, each in a process of its own, and prints a line for each:
seconds, the most memory that the process and its children had resident at once (sampled every 20 ms), that over the
bytes of the export's weights, the most of their own memory, and the bytes on disk. Resident pages of mapped files count
in the first, though the kernel takes them back when it needs them; own memory is what must be there.
A variant that nothing else is made from goes once it is measured, so that a pass costs disk for one model. The text and
the outputs that torch answers for are not built: they need the whole network in memory.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from llama_bench import plan as planning
from llama_bench import versions
from llama_bench.cli.common import catalogue
from llama_bench.plan import Artifact
from llama_bench.store import Store, clean
from llama_bench.sweep_file import load

SAMPLED_S = 0.02

BUILD = """
import pickle, sys
from llama_bench.cluster.build import build
from llama_bench.errors import LlamaBenchError
from llama_bench.store import Store
artifact, store = pickle.load(sys.stdin.buffer)
try:
    build(artifact, Store(store))
except LlamaBenchError as error:
    sys.exit(str(error))
"""


def measured(artifact: Artifact, store: str) -> tuple[float, int, int, str]:
    """Build in a fresh process; return seconds, peaks in bytes (resident, own), and why it failed, in a line."""
    begin, peak, own = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen([sys.executable, "-c", BUILD], stdin=subprocess.PIPE, stderr=told)
        assert child.stdin is not None
        with child.stdin as pipe:
            pickle.dump((artifact, store), pipe)
        root = psutil.Process(child.pid)
        while child.poll() is None:
            now = resident(root)
            peak, own = max(peak, now[0]), max(own, now[1])
            time.sleep(SAMPLED_S)
        told.seek(0)
        lines = told.read().decode(errors="replace").strip().splitlines()
    return time.perf_counter() - begin, peak, own, (lines or ["?"])[-1] if child.returncode else ""


def resident(root: psutil.Process) -> tuple[int, int]:
    """Return the resident bytes of a process and of all that it started, and those of them that are no file's."""
    total = own = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found = process.memory_info()
                total, own = total + found.rss, own + found.rss - found.shared
    return total, own


def needed(waiting: Iterable[Artifact], every: Mapping[str, Artifact]) -> set[str]:
    """Return the artifacts of `every` that those `waiting` are made from, their parents' parents too."""
    found: set[str] = set()
    for artifact in waiting:
        parent = artifact.parent
        while parent is not None:
            found.add(parent)
            parent = every[parent].parent
    return found


def main() -> None:
    sweep = load(Path(sys.argv[1]), catalogue())
    store = Store(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp())
    every = planning.make(sweep, versions.stages()).artifacts
    waiting = [artifact for artifact in every.values() if artifact.kind != "reference"]
    size = 0
    print(f"{'seconds':>8} {'peak':>9} {'× model':>8} {'own':>9} {'on disk':>9}  artifact", flush=True)
    while waiting:
        artifact = waiting.pop(0)
        seconds, peak, own, failed = (0.0, 0, 0, "") if store.has(artifact.id) else measured(artifact, store.uri)
        if failed:
            print(
                f"{seconds:8.1f} {peak / 1e9:6.2f} GB {'':8} {own / 1e9:6.2f} GB {'':9}  {artifact.label}: {failed}",
                flush=True,
            )
            waiting = [later for later in waiting if later.parent != artifact.id]
            continue
        weights = sum(length for _, length in store.manifest(artifact.id)["weights"])
        size = weights if artifact.kind == "export" else size
        figures = f"{seconds:8.1f} {peak / 1e9:6.2f} GB {peak / size:8.2f} {own / 1e9:6.2f} GB {weights / 1e9:6.2f} GB"
        print(f"{figures}  {artifact.label}", flush=True)
        clean(store, needed(waiting, every))


if __name__ == "__main__":
    main()
