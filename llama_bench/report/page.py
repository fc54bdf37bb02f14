"""One HTML page: the answer, every table and every chart inside it, light and dark, nothing fetched when opened."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from llama_bench.report.charts import BLUE, FAINT, GREEN, GREY, INK, PAPER, VERMILLION
from llama_bench.report.table import Table

DARK = {
    BLUE: "#6cb6ff",
    VERMILLION: "#ff9e57",
    GREEN: "#3fcf9f",
    GREY: "#a3abb5",
    INK: "#e6edf3",
    FAINT: "#30363d",
    PAPER: "none",
}
"""Colour in a chart's SVG → the same on dark paper; style rules win over an SVG's own attributes."""

_DARK_CHARTS = "".join(f'svg [fill="{c}"]{{fill:{d}}}svg [stroke="{c}"]{{stroke:{d}}}' for c, d in DARK.items())

STYLE = f"""
:root{{color-scheme:light dark;--ink:{INK};--paper:{PAPER};--faint:{FAINT};--soft:#f6f8fa}}
body{{margin:0 auto;padding:1.5rem;max-width:78rem;font:16px/1.5 system-ui,sans-serif}}
body{{color:var(--ink);background:var(--paper)}}
h1{{font-size:1.6rem;margin:0 0 .5rem}}
h2{{font-size:1.25rem;margin:2rem 0 .5rem}}
h3{{font-size:1rem;margin:1.5rem 0 .25rem}}
.answer{{font-size:1.1rem;padding:.75rem 1rem;background:var(--soft);border-left:4px solid {BLUE}}}
.answer p{{margin:.25rem 0}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
th,td{{padding:.25rem .5rem;font-size:.93rem;border-bottom:1px solid var(--faint);text-align:right;white-space:nowrap}}
th{{background:var(--soft)}}
th:first-child,td:first-child,.text th,.text td{{text-align:left}}
.text td:last-child{{white-space:normal}}
.notes{{font-size:.9rem;margin:.4rem 0 1rem}}
figure{{margin:1.5rem 0;overflow-x:auto}}
figure svg{{max-width:100%;height:auto}}
figcaption{{font-size:.9rem}}
@media (prefers-color-scheme:dark){{
:root{{--ink:#e6edf3;--paper:#0d1117;--faint:#30363d;--soft:#161b22}}
{_DARK_CHARTS}
}}
@media print{{body{{max-width:none}}figure,table{{break-inside:avoid}}}}
"""


def page(
    title: str,
    answers: Sequence[str],
    sections: Iterable[tuple[str, Sequence[Table]]],
    figures: Iterable[tuple[str, str]],
    facts: Sequence[str],
) -> str:
    """Return the whole page. `figures` are (SVG, caption); every other text is escaped here, none is trusted."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f'<div class="answer">{"".join(f"<p>{html.escape(text)}</p>" for text in answers)}</div>',
    ]
    for heading, tables in sections:
        if tables:
            parts += [f"<h2>{html.escape(heading)}</h2>", *map(_table, tables)]
    drawn = [_figure(svg, caption, number) for number, (svg, caption) in enumerate(figures)]
    if drawn:
        parts += ["<h2>Charts</h2>", *drawn]
    parts += ["<h2>This run</h2><ul>", *(f"<li>{html.escape(fact)}</li>" for fact in facts), "</ul></body></html>"]
    return "\n".join(parts) + "\n"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes)
    kind = ' class="text"' if table.text else ""
    return (
        (f"<h3>{html.escape(table.title)}</h3>" if table.title else "")
        + f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _figure(svg: str, caption: str, number: int) -> str:
    """An SVG inside HTML: its ids made unique in the page, and no namespaces, which HTML does not need."""
    inlined = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    inlined = re.sub(r"<\?xml[^>]*\?>", "", inlined)
    inlined = re.sub(r'\bid="([^"]+)"', rf'id="f{number}-\1"', inlined)
    inlined = re.sub(r"url\(#([^)]+)\)", rf"url(#f{number}-\1)", inlined)
    inlined = re.sub(r'href="#([^"]+)"', rf'href="#f{number}-\1"', inlined)
    return f"<figure>{inlined}<figcaption>{html.escape(caption)}</figcaption></figure>"
