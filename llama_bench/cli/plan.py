"""`plan`: what a sweep will build and measure, and the disk, memory and time that takes, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import (
    AsJson,
    Only,
    StoreAt,
    SweepFile,
    duration,
    out,
    print_json,
    print_table,
    read_sweep,
    size,
    warn,
)

if TYPE_CHECKING:
    from llama_bench.estimate import Needs
    from llama_bench.plan import Plan

EXAMPLES = """
Before a long run:
  python -m llama_bench plan sweeps/report.yaml
One model and one target of it, every artifact by name:
  python -m llama_bench plan sweeps/report.yaml --only model=h512*,target=B --artifacts
"""


def command(
    sweep: SweepFile,
    only: Only = None,
    store: StoreAt = "./results",
    artifacts: Annotated[bool, typer.Option("--artifacts", help="List every artifact too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the artifacts and cells of a sweep, and the disk and time they need."""
    from llama_bench import versions
    from llama_bench.bench import machine
    from llama_bench.estimate import estimates
    from llama_bench.plan import make

    planned = make(read_sweep(sweep, only), versions.stages())
    needs = estimates(planned, machine.matmul_flops_per_s())
    built, free = _built_and_free(store, planned)
    if as_json:
        print_json(_as_dict(planned, needs, built, free))
        return
    if artifacts:
        print_table(
            ("artifact", "kind", "state", "what"),
            [(a.id, a.kind, "built" if a.id in built else "to build", a.label) for a in planned.artifacts.values()],
        )
        out().print()
    _print(planned, needs, built, free, machine.memory_bytes())


def _built_and_free(uri: str, planned: Plan) -> tuple[set[str], int | None]:
    """Return the artifacts that `uri` already holds and the room there; a store that does not exist is not made."""
    import shutil

    from llama_bench.store import Store

    if "://" not in uri and not Path(uri).is_dir():
        there = next(p for p in [Path(uri).absolute(), *Path(uri).absolute().parents] if p.is_dir())
        return set(), shutil.disk_usage(there).free
    store = Store(uri)
    return {artifact for artifact in planned.artifacts if store.has(artifact)}, store.free_bytes()


def _print(planned: Plan, needs: Needs, built: set[str], free: int | None, memory: int) -> None:
    rows = [
        (
            cell.label,
            str(cell.arms),
            str(cell.timed_runs),
            duration(cell.run_s),
            size(cell.arm_bytes),
            duration(cell.pilot_s),
            duration(cell.most_s),
        )
        for cell in needs.cells
    ]
    columns = ("cell", "arms", "runs an arm", "one run", "memory an arm", "pilot", "at most")
    print_table(columns, rows, right=", ".join(columns[1:]))
    room = f", {size(free)} free" if free is not None else ""
    lines = [
        "",
        f"artifacts  {needs.exports} exports, {needs.passes} passes, {needs.references} references, "
        f"{len(built)} of them built already",
        f"disk       {size(needs.disk_bytes)}{room}: weights {size(needs.weight_bytes)} once, reference outputs "
        f"{size(needs.reference_bytes)}, graphs {size(needs.graph_bytes)}",
        f"build      about {duration(needs.build_s)} one after another; the largest step takes about "
        f"{size(needs.build_bytes)} of memory",
        f"measure    about {duration(needs.pilot_s)} for the pilot restarts, at most {duration(needs.most_s)}",
    ]
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)
    if free is not None and needs.disk_bytes > free:
        warn(f"the store has too little room: {size(needs.disk_bytes)} needed, {size(free)} free")
    largest = max((cell.arm_bytes for cell in needs.cells if not _on_gpu(planned, cell.target)), default=0)
    if largest * 3 > memory:  # an arm is always timed beside the baseline and the control
        warn(f"three arms of the largest cell take {size(3 * largest)} of memory; this machine has {size(memory)}")


def _on_gpu(planned: Plan, target: str) -> bool:
    return planned.sweep.targets[target].needs_gpu


def _as_dict(planned: Plan, needs: Needs, built: set[str], free: int | None) -> dict[str, Any]:
    return {
        "sweep": planned.sweep.name,
        "needs": needs.to_dict(),
        "free_bytes": free,
        "artifacts": [
            {"id": a.id, "kind": a.kind, "parent": a.parent, "label": a.label, "built": a.id in built}
            for a in planned.artifacts.values()
        ],
    }
