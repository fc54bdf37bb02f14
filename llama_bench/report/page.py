"""One HTML page: the question, the answer, every table and every chart inside it; nothing is fetched when opened.

What it looks like is assets/page.css, what it does assets/page.js: without scripts it shows everything that there is.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files

from llama_bench.report.document import Block, Choice, Code, Document, Figure, Folded, Section, Sortable
from llama_bench.report.drawing import BLUE, FAINT, GREEN, GREY, INK, PAPER, VERMILLION
from llama_bench.report.table import Table

DARK = {
    BLUE: "#6cb6ff",
    VERMILLION: "#ff9e57",
    GREEN: "#3fcf9f",
    GREY: "#a3abb5",
    INK: "#e6edf3",
    FAINT: "#30363d",
    PAPER: "#0d1117",
}
"""Colour in a drawing's SVG → the same on dark paper; style rules win over an SVG's own attributes."""

_RULES = "".join(f'svg [fill="{c}"]{{fill:{d}}}svg [stroke="{c}"]{{stroke:{d}}}' for c, d in DARK.items())
_DARK_DRAWINGS = f"@media screen and (prefers-color-scheme:dark){{{_RULES}svg .background{{fill:none}}}}"

FACETS = {"target": "Target", "model": "Model", "workload": "Workload", "verdict": "Verdict"}
"""What the long tables are filtered by → its name."""

NAMES = ("Model", "Workload", "Recipe", "Verdict", "Class")
"""Columns that hold words."""

BROAD = 760
"""Drawings wider than this are scrolled sideways rather than made small."""


def page(document: Document) -> str:
    """Return the whole page. Drawings are SVG made here; every other text is escaped, none is trusted."""
    folder = files("llama_bench.report") / "assets"
    style = (folder / "page.css").read_text(encoding="utf-8") + _DARK_DRAWINGS
    script = (folder / "page.js").read_text(encoding="utf-8")
    numbers = itertools.count(1)
    sections = [section for section in document.sections if section.blocks]
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{_text(document.title)}</title><style>{style}</style></head><body>",
        '<a class="skip" href="#answer">Skip to the answer</a>',
        f"<header><h1>{_text(document.title)}</h1></header><main>",
        f'<p class="question">{_text(document.question)}</p>',
        f'<div class="answer" id="answer">{_paragraphs(document.answer)}</div>',
        f'<div class="missing" role="note">{_paragraphs(document.missing)}</div>' if document.missing else "",
        f"<details><summary>Target by target</summary>{_paragraphs(document.details)}</details>"
        if document.details
        else "",
        _contents(sections),
        *(_section(section, numbers) for section in sections),
        f"</main><script>{script}</script></body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(f'<li><a href="#{section.id}">{_text(section.heading)}</a></li>' for section in sections)
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def _section(section: Section, numbers: Iterator[int]) -> str:
    long = [block for block in section.blocks if isinstance(block, Sortable)]
    heading = f"heading-{section.id}"
    return "\n".join(
        [
            f'<section id="{section.id}" aria-labelledby="{heading}">',
            f'<h2 id="{heading}">{_text(section.heading)}</h2>',
            *([_filters(long)] if long else []),
            *(_block(block, numbers) for block in section.blocks),
            "</section>",
        ]
    )


def _block(block: Block, numbers: Iterator[int]) -> str:
    match block:
        case str():
            return f"<p>{_text(block)}</p>"
        case Table():
            return _table(block)
        case Sortable():
            return _sortable(block)
        case Figure():
            return _figure(block, numbers)
        case Choice():
            return _choice(block, numbers)
        case Folded():
            inside = "\n".join(_block(one, numbers) for one in block.blocks)
            return f"<details><summary>{_text(block.summary)}</summary>\n{inside}\n</details>"
        case Code():
            return f"<p>{_text(block.says)}</p>\n<pre><code>{_text(block.text)}</code></pre>"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_names(table, i)}>{_text(column)}</th>' for i, column in enumerate(table.columns))
    body = "".join(f"<tr>{_cells(table, row)}</tr>" for row in table.rows)
    kind = ' class="text"' if table.text else ""
    whole = f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    title = f"<h3>{_text(table.title)}</h3>" if table.title else ""
    return title + _scrolled(whole, table.title or table.columns[0]) + _notes(table.notes)


def _cells(table: Table, row: Sequence[str]) -> str:
    first, *rest = row
    others = (f"<td{_names(table, i)}>{_text(cell)}</td>" for i, cell in enumerate(rest, 1))
    return f'<th scope="row" class="names">{_text(first)}</th>' + "".join(others)


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{_text(note)}</li>" for note in notes)}</ul>' if notes else ""


def _scrolled(table: str, name: str) -> str:
    """What is wider than the screen is scrolled inside its frame, also with the keyboard."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{_text(name)}">{table}</div>'


def _sortable(block: Sortable) -> str:
    table = block.table
    head = "".join(
        f'<th scope="col" aria-sort="none"{_names(table, i)}><button type="button">{_text(column)}</button></th>'
        for i, column in enumerate(table.columns)
    )
    rows = zip(table.rows, block.facets, strict=True)
    body = "".join(f"<tr{_facets(facets)}>{_sortable_row(table, row)}</tr>" for row, facets in rows)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    told = "".join(
        f"<details data-note{_facets(facets)}><summary>{_text(said.title)}</summary>{_notes(said.notes)}</details>"
        for facets, said in block.notes
    )
    return (
        f'<div data-sortable><h3>{_text(table.title)}</h3><p role="status"></p>'
        f"{_scrolled(whole, table.title)}{told}{_notes(table.notes)}</div>"
    )


def _names(table: Table, column: int) -> str:
    return ' class="names"' if table.columns[column] in NAMES else ""


def _sortable_row(table: Table, row: Sequence[str]) -> str:
    def classes(i: int) -> str:
        return ' class="names verdict"' if table.columns[i] == "Verdict" else _names(table, i)

    return "".join(
        f'<th scope="row"{classes(i)}>{_text(cell)}</th>'
        if table.columns[i] == "Recipe"
        else f"<td{classes(i)}>{_text(cell)}</td>"
        for i, cell in enumerate(row)
    )


def _facets(facets: Mapping[str, str]) -> str:
    lowered = {key: word.lower() if key == "recipe" else word for key, word in facets.items()}
    return "".join(f' data-{key}="{_text(word)}"' for key, word in lowered.items())


def _filters(tables: Iterable[Sortable]) -> str:
    """What all long tables of a section are filtered by: a choice for each facet that has several words."""
    rows = [facets for table in tables for facets in table.facets]
    chosen = []
    for key, name in FACETS.items():
        words = list(dict.fromkeys(facets[key] for facets in rows if key in facets))
        if len(words) > 1:
            options = "".join(f'<option value="{_text(word)}">{_text(word)}</option>' for word in words)
            chosen.append(
                f'<label>{name} <select data-facet="{key}"><option value="">all</option>{options}</select></label>'
            )
    search = '<label>Recipe <input type="search" data-facet="recipe" placeholder="part of its name"></label>'
    return f'<div class="controls">{"".join(chosen)}{search}<button type="button" data-reset>Show all</button></div>'


# ── drawings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _choice(choice: Choice, numbers: Iterator[int]) -> str:
    if len(choice.figures) == 1:
        return _figure(next(iter(choice.figures.values())), numbers)
    name = f"choice-{next(numbers)}"
    options = "".join(f"<option>{_text(option)}</option>" for option in choice.figures)
    chooser = f'<label>{_text(choice.label)} <select data-chooses="{name}">{options}</select></label>'
    figures = "".join(_figure(figure, numbers, f' data-choice="{name}"') for figure in choice.figures.values())
    return f'<div class="controls">{chooser}</div>{figures}'


def _figure(figure: Figure, numbers: Iterator[int], attributes: str = "") -> str:
    name = f"figure-{next(numbers)}"
    drawings, svgs = [], [(label, drawing, drawing.svg()) for label, drawing in figure.drawings.items()]
    for label, drawing, svg in svgs:
        about = f"{drawing.name}: a chart; arrow keys read its marks"
        inside = inlined(svg, f"f{next(numbers)}-")
        drawings.append(
            f'<div data-drawing="{_text(label)}" tabindex="0" role="group" aria-label="{_text(about)}">{inside}</div>'
        )
    switch = ""
    if len(svgs) > 1:
        first, other = list(figure.drawings)[:2]
        to, checked = ("log", first == "log") if "log" in (first, other) else (other, False)
        switch = (
            f'<div class="controls"><label class="switch"><input type="checkbox" data-switches="{name}" '
            f'data-to="{_text(to)}"{" checked" if checked else ""}> {_text(SWITCHES.get(to, to))}</label></div>'
        )
    broad = ' class="broad"' if max(_width(svg) for _, _, svg in svgs) > BROAD else ""
    caption = f"<figcaption>{_text(figure.first.caption)}</figcaption>"
    return f'<figure id="{name}"{broad}{attributes}>{switch}{"".join(drawings)}{caption}</figure>'


SWITCHES = {"log": "Logarithmic scale"}
"""Label of a drawing → what its switch is called."""


def _width(svg: str) -> float:
    found = re.search(r'<svg[^>]*\swidth="([0-9.]+)', svg)
    return float(found[1]) if found else 0.0


def inlined(svg: str, prefix: str) -> str:
    """Return an SVG for inside HTML: its ids made unique by `prefix`, and no namespaces, which HTML does not need."""
    found = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    found = re.sub(r"<\?xml[^>]*\?>|<!DOCTYPE[^>]*>", "", found)
    found = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', found)
    found = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", found)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', found)


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{_text(text)}</p>" for text in texts)


def _text(text: str) -> str:
    return html.escape(text)
