"""How long the builds of a model too large for memory take, step by step, by this code and by an older checkout's.

    python benchmarks/builds.py [--layers 2] [--hidden 4096] [--context 1024] [--against CHECKOUT]

Llama-2-7B's shapes with as many layers as asked for: export, reference of a decode step, then `fuse: all`,
`precision: fp16` and 4 bits one after another, each built in a process of its own. Weights are streamed however few
layers there are, as of the whole model. With `--against` every step is also built by the code in that folder, in turn,
into a store of its own: the seconds stand side by side, and graph and weights must be the same to the byte.
Ids differ, since the code is part of them. $TMPDIR is where models are made and where the stores lie.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

SWEEP = """
name: builds
models:
  sizes:
    - {{name: llama2-7b, hidden_size: {hidden}, num_attention_heads: {heads}, num_hidden_layers: {layers},
       intermediate_size: {intermediate}, vocab_size: 32000, rms_norm_eps: 1.0e-5, max_position_embeddings: 4096,
       cache: true}}
recipes:
  original: {{}}
  int4:
    passes:
      - {{fuse: all}}
      - {{precision: fp16}}
      - {{quantize: {{bits: 4, block_size: 128, symmetric: true}}}}
workloads:
  decode: {{kind: decode, batch: 1, context: {context}}}
targets:
  cpu: {{tag: bench_cpu, provider: CPUExecutionProvider}}
"""

BUILD = """
import json, sys, time
from pathlib import Path
from llama_bench import plan as planning
from llama_bench import versions
from llama_bench.cli.common import catalogue
from llama_bench.cluster.build import build
from llama_bench.model import streamed
from llama_bench.store import Store
from llama_bench.sweep_file import load
sweep, folder, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
streamed.RESIDENT_BYTES = 0
every = [*planning.make(load(sweep, catalogue()), versions.stages()).artifacts.values()]
store, artifact = Store(folder), every[number]
begin = time.perf_counter()
built = build(artifact, store)
seconds = time.perf_counter() - begin
told = {"label": artifact.label, "kind": artifact.kind, "id": artifact.id, "seconds": seconds, "steps": len(every)}
told |= {"peak": built["peak_bytes"], "graph": built["graph_sha256"], "weights": built["weights"]}
files = [[entry["name"], entry["sha256"]] for entry in built["files"]]
print("BUILT " + json.dumps(told | {"files": files}))
"""


def built(code: Path, sweep: Path, store: Path, number: int) -> dict[str, object]:
    """Build one artifact in a fresh process by the code in the folder `code`, and return what it tells."""
    environment = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, "-c", BUILD, str(sweep), str(store), str(number)]
    done = subprocess.run(command, env=environment, cwd=code, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip()[-2000:])
    line = next(line for line in done.stdout.splitlines() if line.startswith("BUILT "))
    told: dict[str, object] = json.loads(line.removeprefix("BUILT "))
    return told


def compare(codes: list[Path], args: argparse.Namespace, folder: Path) -> None:
    """Build every step by each of the codes, and print a line for each step; leave with 1 where the bytes differ."""
    sweep = folder / "sweep.yaml"
    sizes = {"hidden": args.hidden, "heads": args.hidden // 128, "intermediate": args.hidden * 43 // 16}
    sweep.write_text(SWEEP.format(**sizes, layers=args.layers, context=args.context), encoding="utf-8")
    number, steps = 0, 1
    print(
        f"{'before':>8} {'after':>8} {'ratio':>6} {'before':>8} {'after':>8}  artifact (seconds, peak memory)",
        flush=True,
    )
    while number < steps:
        tells = [built(code, sweep, folder / f"store-{i}", number) for i, code in enumerate(codes)]
        steps = int(str(tells[0]["steps"]))
        same = all(tell[key] == tells[0][key] for tell in tells for key in ("graph", "weights"))
        same = same and all(tell["kind"] == "export" or tell["files"] == tells[0]["files"] for tell in tells)
        seconds, peaks = ([float(str(tell[key])) for tell in tells] for key in ("seconds", "peak"))
        ratio = f"{seconds[0] / seconds[-1]:6.2f}"
        print(
            f"{seconds[0]:8.1f} {seconds[-1]:8.1f} {ratio} {peaks[0] / 1e9:5.2f} GB {peaks[-1] / 1e9:5.2f} GB  "
            f"{tells[0]['label']}{'' if same else ': THE BYTES DIFFER'}",
            flush=True,
        )
        if not same:
            sys.exit(1)
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the builds of Llama-2-7B's shapes, step by step.")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=4096, help="a multiple of 2048; 4096 is the whole model's")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--against", type=Path, help="checkout of an older version to compare with")
    args = parser.parse_args()
    codes = [*([args.against.resolve()] if args.against else []), HERE]
    cpus = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cpus} CPUs, load {os.getloadavg()[0]:.1f}; {args.layers} layers", flush=True)
    with tempfile.TemporaryDirectory(prefix="builds-") as name:
        compare(codes, args, Path(name))


if __name__ == "__main__":
    main()
