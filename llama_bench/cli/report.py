"""`report`: tables and charts from results on disk."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from llama_bench.cli.common import AsJson, Quiet, ResultsAt, is_quiet, print_json, reading, warn

EXAMPLES = """
The newest run of a sweep, into the run's own folder:
  python -m llama_bench report results/quick
And open the page in a browser:
  python -m llama_bench report results/quick --open
Somewhere else:
  python -m llama_bench report results/quick --out first-look
"""


def command(
    path: ResultsAt,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to, not the run's own.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser when it is written.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the tables and charts of a run: Markdown, PNG, SVG and one HTML page. Nothing is measured.

    Of a calibration, its table and its chart.
    """
    from llama_bench import calibration, results
    from llama_bench.report import write_report
    from llama_bench.report.calibration import write_calibration

    _, run = results.locate(path)
    write = write_calibration if run.startswith(f"{calibration.NAME}/") else write_report
    files = reading(path, lambda: write(path, out))
    written = [str(file) for file in files]
    if as_json:
        print_json(written)
    elif not is_quiet(quiet):
        for file in written:
            typer.echo(file)
    if open_page:
        _open(files[0])


def _open(page: Path) -> None:
    if not webbrowser.open(page.resolve().as_uri()):
        warn(f"no browser could be opened here; the page is {page}")
