"""`status`: how far a run is, from anywhere that reaches its store."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from llama_bench.cli.common import AsJson, ResultsAt, out, print_json, print_table, warn

if TYPE_CHECKING:
    from llama_bench.status import Status

EXAMPLES = """
A run that goes on elsewhere:
  python -m llama_bench status s3://bucket/results
Every cell of it:
  python -m llama_bench status s3://bucket/results/report --cells
For a script: exit status 0, and "finished": true once nothing is left to do
  python -m llama_bench status results --json
"""


def command(
    path: ResultsAt,
    cells: Annotated[bool, typer.Option("--cells", help="List every cell too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is: what is built and measured, what failed, and who works on it now.

    Looks at the store alone, so it works while the run goes on, after it has ended, and from any machine.
    """
    from llama_bench import results, status

    store, run = results.locate(path)
    found = status.read(store, run)
    if as_json:
        print_json({**asdict(found), "finished": found.finished})
        return
    _print(found, store.url(run), cells)


def _print(found: Status, url: str, cells: bool) -> None:
    from llama_bench.status import STATES

    targets = dict.fromkeys(cell.target for cell in found.cells)
    rows = [(name, *(str(found.count(state, name)) for state in STATES)) for name in targets]
    print_table(("cells of target", *STATES), rows, right=", ".join(STATES))
    if cells:
        out().print()
        listed = [
            (f"{c.model}/{c.workload}/{c.target}", c.state, str(c.restarts or ""), str(c.failures or ""))
            for c in found.cells
        ]
        print_table(("cell", "state", "restarts so far", "failures"), listed, right="restarts so far, failures")
    failed = f", {found.build_failures} failed" if found.build_failures else ""
    lines = ["", f"run      {url}", f"built    {found.built} of {found.artifacts} artifacts{failed}"]
    lines += [f"working  {driver}" for driver in found.drivers] or ["working  nobody"]
    for line in lines:
        out().print(line, markup=False, soft_wrap=True)
    for target, reason in found.unserved.items():
        warn(f"target {target} was not measured: {reason}")
