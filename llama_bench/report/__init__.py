"""Reports: tables, charts and one page, from the results of a run to files that need nothing else to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.report.files import destination, write_files

if TYPE_CHECKING:
    from llama_bench.report.table import Table


def write_report(path: str, out: Path | None = None) -> list[Path]:
    """Write the report of the run at `path` and return its files, the page and the tables first.

    `path` is a run, or a sweep or store whose newest run is meant. The files go into `out`, or into the run's own
    `report` folder: report.html (everything), report.md (answer and tables), charts/*.svg and charts/*.png.

    Raises InputError for what is no result, and when `out` is missing for a run in an object store; WorkError when
    the files cannot be written.
    """
    from llama_bench.stats import views

    folder = destination(path, out, "report")
    return write(views.load(path), folder)


def write(frames: Any, out: Path) -> list[Path]:
    """Write the report of `frames` (:class:`llama_bench.stats.views.Frames`) into the folder `out`."""
    from llama_bench.report import charts, page, pareto, tables, trust
    from llama_bench.report.answer import answer
    from llama_bench.report.generation import generation
    from llama_bench.report.tradeoffs import Answers

    run = frames.run
    speedups, cells, known = frames.speedups.collect(), frames.cells.collect(), Answers.of(frames)
    answers = answer(speedups, known)
    found: dict[str, Sequence[Table | None]] = {
        "Results": tables.results(speedups, cells, run, known),
        "Speed, accuracy and size together": tables.tradeoffs(speedups, run, known),
        "Text generation": generation(frames.generation.collect(), frames.generations.collect(), run),
        "Can these verdicts be believed?": [trust.noise(cells)],
        "The speed of light here": [trust.ceilings(frames.ceilings.collect())],
        "Failures": [tables.failures(frames.failures.collect())],
        "Where the time went": [tables.breakdown(frames.pieces.collect())],
    }
    sections = [(heading, [table for table in those if table is not None]) for heading, those in found.items()]
    title, facts = f"Sweep {run['sweep']['name']}", _facts(run)
    placed = pareto.charts(frames.pareto.collect())
    drawn = [(chart, chart.svg()) for chart in (*placed, *charts.charts(speedups, run))]
    files: dict[str, str | bytes] = {
        "report.html": page.page(title, answers, sections, [(svg, chart.caption) for chart, svg in drawn], facts),
        "report.md": _markdown(title, answers, sections, facts),
    }
    for chart, svg in drawn:
        files[f"charts/{chart.name}.svg"] = svg
        files[f"charts/{chart.name}.png"] = charts.png(svg)
    return write_files(out, files)


def _markdown(
    title: str, answers: Sequence[str], sections: Sequence[tuple[str, Sequence[Any]]], facts: Sequence[str]
) -> str:
    from llama_bench.report.table import escape, markdown

    parts = [f"# {escape(title)}", *map(escape, answers)]
    for heading, tables in sections:
        if tables:
            parts += [f"## {heading}", *(markdown(table).rstrip() for table in tables)]
    parts += ["## This run", "\n".join(f"* {escape(fact)}" for fact in facts)]
    return "\n\n".join(parts) + "\n"


def _facts(run: Mapping[str, Any]) -> list[str]:
    """What the run was: when, by which code and libraries, on which nodes."""
    measure = run["sweep"]["measure"]
    facts = [
        f"Started {run.get('created_at', 'at an unknown time')}; fingerprint {run.get('fingerprint', 'unknown')}",
        f"{measure['restarts']} pilot restarts × {measure['blocks']} blocks × {measure['runs']} runs an arm; "
        f"seed {measure['seed']}",
    ]
    if versions := run.get("versions"):
        facts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    facts += [f"Node: {_node(machine)}" for machine in run.get("machines") or []]
    return facts


def _node(facts: Mapping[str, Any]) -> str:
    """One node in words, from :func:`llama_bench.bench.machine.facts`."""
    words = [str(facts[key]) for key in ("hostname", "cpu") if facts.get(key)]
    if cores := facts.get("physical_cores"):
        words.append(f"{cores} physical cores")
    if memory := facts.get("memory_bytes"):
        words.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join([*words, *(str(gpu.get("name", gpu)) for gpu in facts.get("gpus") or [])])
