"""`export`: one variant of a sweep as a folder ready to serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli import complete
from llama_bench.cli.common import (
    AsJson,
    Quiet,
    StoreAt,
    SweepFile,
    build_missing,
    is_quiet,
    open_store,
    out,
    print_json,
    read_sweep,
)
from llama_bench.errors import InputError, LlamaBenchError, nearest

if TYPE_CHECKING:
    from llama_bench.plan import Cell, Plan
    from llama_bench.store import Store

EXAMPLES = """
What a run found to be good, to be served:
  python -m llama_bench export sweeps/smollm2.yaml --recipe fused_int4 --out served/smollm2-int4
Of a sweep with several models and workloads:
  python -m llama_bench export sweeps/optimizations.yaml --recipe fused --model h512-a4-l2 --workload decode --out a
"""


def command(
    sweep: SweepFile,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="RECIPE",
            help="The recipe of the sweep whose variant is written.",
            autocompletion=complete.recipes,
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new or empty folder.")],
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Which model, where there are several.")] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="WORKLOAD", help="Which workload, where that decides the graph.", autocompletion=complete.workloads
        ),
    ] = None,
    store: StoreAt = "./results",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write one variant as a folder: graph, weights, config, tokenizer, and a card with recipe, numbers and hashes.

    What the store lacks of it is built here; numbers are those of the sweep's newest run, where there is one.
    """
    from llama_bench import folder as folders
    from llama_bench import versions
    from llama_bench.plan import make

    planned = make(read_sweep(sweep), versions.stages())
    cell = _cell(planned, model, workload)
    arm = next((arm for arm in cell.arms if arm.name == recipe and not arm.control), None)
    if arm is None:
        raise InputError(f"--recipe {recipe}: not a recipe of {sweep}{nearest(recipe, planned.sweep.recipes)}")
    place = open_store(store)
    build_missing(planned, arm.variant, place, quiet)
    run, numbers = _numbers(place, planned.sweep.name, cell, recipe)
    written = folders.write(place, folders.Chosen(arm.variant, recipe, cell.model, arm.recipe, numbers, run), folder)
    if as_json:
        print_json([str(path) for path in written])
    elif not is_quiet(quiet):
        for path in written:
            out().print(str(path), markup=False, soft_wrap=True)


def _cell(planned: Plan, model: str | None, workload: str | None) -> Cell:
    """Return the cell that is meant; raises InputError for an unknown name, or where several are left."""
    models, workloads = [one.label for one in planned.sweep.models], list(planned.sweep.workloads)
    for option, word, words in (("model", model, models), ("workload", workload, workloads)):
        if word is not None and word not in words:
            raise InputError(f"--{option} {word}: not in this sweep{nearest(word, words)}")
    if model is None and len(models) > 1:
        raise InputError(f"--model is needed, since the sweep has several: {', '.join(models)}")
    left = [
        cell for cell in planned.cells if model in (None, cell.model.label) and workload in (None, cell.workload_name)
    ]
    if len({cell.arms[0].variant for cell in left}) > 1:
        raise InputError(f"--workload is needed, since their graphs differ: {', '.join(workloads)}")
    return left[0]


def _numbers(store: Store, sweep: str, cell: Cell, recipe: str) -> tuple[str | None, list[tuple[str, str]]]:
    """Return the sweep's newest run in the store and what it says of the recipe's arms on every target."""
    from llama_bench.report.table import ratio
    from llama_bench.stats import views

    try:
        frames = views.load(store.url(sweep))
    except LlamaBenchError:  # never run here
        return None, []
    rows = [
        row
        for row in frames.speedups.collect().to_dicts()
        if (row["model"], row["recipe"]) == (cell.model.label, recipe) and not row["control"]
    ]
    found = [
        (f"{row['workload']} on {row['target']}", f"{row['mean_s']:.4g} s, {ratio(row)}, {row['verdict']}")
        for row in rows
        if row["mean_s"] is not None
    ]
    return f"{sweep}/{frames.run.get('run', '')}".rstrip("/"), found
