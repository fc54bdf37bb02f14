"""How long planning 10,000 variants takes: `python benchmarks/plan_10000.py` prints seconds and variants."""

from __future__ import annotations

import time

from llama_bench import plan
from llama_bench.sweep import Model, Pass, Recipe, Sweep, Target, Workload


def sweep_of(models: int, recipes: int, depth: int = 3) -> Sweep:
    """Return a sweep of models × recipes variants; no two recipes share a prefix, so nothing is saved by sharing."""
    return Sweep(
        name="ten-thousand",
        models=tuple(Model(hidden_size=64 * (i + 1), num_attention_heads=4) for i in range(models)),
        recipes={"original": Recipe()}
        | {
            f"r{i}": Recipe(passes=tuple(Pass(family="onnxoptimizer", name=f"p{i}_{step}") for step in range(depth)))
            for i in range(1, recipes)
        },
        workloads={"prefill": Workload(sequence=128)},
        targets={"A": Target(tag="bench_gpu", provider="CUDAExecutionProvider"), "B": Target(tag="bench_cpu")},
    )


def measure(models: int, recipes: int) -> tuple[float, int]:
    """Return the seconds that one plan takes and the variants in it."""
    sweep = sweep_of(models, recipes)
    start = time.perf_counter()
    made = plan.make(sweep, {"export": "1", "onnxoptimizer": "1"})
    seconds = time.perf_counter() - start
    variants = {(cell.model.label, arm.name) for cell in made.cells for arm in cell.arms if not arm.control}
    return seconds, len(variants)


if __name__ == "__main__":
    for models, recipes in [(100, 100), (10, 1000), (1, 10_000), (10_000, 1)]:
        seconds, variants = measure(models, recipes)
        print(f"{seconds:.3f} s  {variants} variants  ({models} models × {recipes} recipes of 3 passes, 2 targets)")
