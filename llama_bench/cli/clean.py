"""`clean`: remove from a store the artifacts and weights that no run in it needs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli import complete
from llama_bench.cli.common import AsJson, Quiet, is_quiet, out, print_json, read_sweep, size
from llama_bench.errors import InputError

if TYPE_CHECKING:
    from llama_bench.store import Store

EXAMPLES = """
What would go, and how much room that makes:
  python -m llama_bench clean results --dry-run
Keep what a sweep that has not run yet will need:
  python -m llama_bench clean results --sweep sweeps/report.yaml
Results are never removed: delete a run's folder by hand, then clean.
"""


def command(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store: a folder or a URI.")],
    sweep: Annotated[
        list[Path] | None,
        typer.Option(
            "--sweep",
            help="Keep what this sweep file needs too; may be repeated.",
            autocompletion=complete.sweep_files,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Remove the artifacts and weights that no run in the store needs. Results stay."""
    from llama_bench.store import Store, clean

    if "://" not in store and not Path(store).is_dir():
        raise InputError(f"{store} is no folder, so there is no store to clean")
    place = Store(store)
    cleaned = clean(place, needed_by_runs(place) | _needed_by_sweeps(sweep or []), dry_run=dry_run)
    if as_json:
        print_json({**asdict(cleaned), "dry_run": dry_run})
        return
    if is_quiet(quiet):
        return
    verb = "would remove" if dry_run else "removed"
    out().print(
        f"{verb} {cleaned.artifacts} artifacts and {cleaned.weights} weights, {size(cleaned.bytes)}",
        markup=False,
        soft_wrap=True,
    )


def needed_by_runs(store: Store) -> set[str]:
    """Return the ids of the artifacts that the runs of `store` need, in the words of each `run.json`.

    Raises InputError for a run that does not say so: nothing may be removed on a guess.
    """
    from llama_bench import results

    needed: set[str] = set()
    for sweep in store.folders(""):
        for name in results.runs(store, sweep):
            artifacts = results.read_run(store, f"{sweep}/{name}").get("artifacts")
            if not isinstance(artifacts, list):
                key = f"{sweep}/{name}/run.json"
                raise InputError(f"{store.url(key)} does not say which artifacts its run needs: nothing was removed")
            needed |= set(artifacts)
    return needed


def _needed_by_sweeps(files: list[Path]) -> set[str]:
    if not files:
        return set()
    from llama_bench import versions
    from llama_bench.plan import make

    stages = versions.stages()
    return {artifact for file in files for artifact in make(read_sweep(file), stages).artifacts}
