"""Reports: tables, charts and one page, from the results of a run to files that need nothing else to be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llama_bench.errors import LlamaBenchError
from llama_bench.report.files import destination, write_files

if TYPE_CHECKING:
    from llama_bench.report.document import Document
    from llama_bench.report.graphs.sections import Section as Pictures
    from llama_bench.stats.views import Frames


def write_report(path: str, out: Path | None = None) -> list[Path]:
    """Write the report of the run at `path` and return its files, the page and the tables first.

    `path` is a run, or a sweep or store whose newest run is meant. The files go into `out`, or into the run's own
    `report` folder: report.html (everything), report.md (answer and tables), charts/*.svg and charts/*.png.

    Raises InputError for what is no result, and when `out` is missing for a run in an object store; WorkError when
    the files cannot be written.
    """
    from llama_bench.stats import views

    folder = destination(path, out, "report")
    return write(views.load(path), folder, _pictures(path))


def _pictures(path: str) -> Pictures:
    """The pictures of the run's graphs; where they cannot be made a note says why, and the report goes on."""
    from llama_bench.report.graphs.sections import Section, of_run

    try:
        return of_run(path)
    except LlamaBenchError as problem:
        return Section((), (f"No pictures of graphs: {problem}",))


def write(frames: Frames, out: Path, pictures: Pictures | None = None) -> list[Path]:
    """Write the report of `frames`, with `pictures` of its graphs, into the folder `out`."""
    from llama_bench.report import drawing, page

    with drawing.unchecked():
        found = compose(frames, pictures)
    files: dict[str, str | bytes] = {"report.html": page.page(found), "report.md": _markdown(found)}
    names: set[str] = set()
    for figure in (figure for section in found.sections for figure in section.figures):
        name, svg = drawing.file_name(figure.first.name, names), figure.first.svg()
        files[f"charts/{name}.svg"] = svg
        files[f"charts/{name}.png"] = drawing.png(svg)
    return write_files(out, files)


def compose(frames: Frames, pictures: Pictures | None = None) -> Document:
    """Return the report of `frames`, with `pictures` of its graphs, to be written in any format."""
    from llama_bench.report import question
    from llama_bench.report.answer import answer
    from llama_bench.report.document import Document
    from llama_bench.report.sections import Material, sections

    material = Material(frames, pictures)
    speedups, cells, run = material.speedups, material.cells, frames.run
    return Document(
        f"Sweep {run['sweep']['name']}",
        question.question(run),
        question.answer(speedups, cells),
        question.missing(speedups, cells),
        answer(speedups, material.answers),
        sections(material),
    )


def _markdown(found: Document) -> str:
    from llama_bench.report.table import escape, markdown

    parts = [f"# {escape(found.title)}", *map(escape, (found.question, *found.answer, *found.missing, *found.details))]
    for section in found.sections:
        if section.tables:
            parts += [f"## {section.heading}", *(markdown(table).rstrip() for table in section.tables)]
    return "\n\n".join(parts) + "\n"
