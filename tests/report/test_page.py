"""What a document becomes as HTML: every word escaped, every drawing on its own, everything reachable by keyboard."""

from __future__ import annotations

from dataclasses import dataclass

from llama_bench.report.document import Choice, Code, Document, Figure, Section, Sortable
from llama_bench.report.page import inlined, page
from llama_bench.report.table import Table

from .elements import parsed

EVIL = "<script>alert('1')</script>\"&🦙"


@dataclass(frozen=True)
class Drawn:
    """A drawing with one clip path."""

    name: str = "drawn"
    caption: str = "a caption"

    def svg(self) -> str:
        inside = '<clipPath id="clip0"/><g clip-path="url(#clip0)"/>'
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="100">{inside}</svg>'


def document(*blocks: object, title: str = "t") -> Document:
    return Document(title, "q", ["a"], sections=[Section("results", "Results", blocks)])  # type: ignore[arg-type]


def test_what_people_wrote_is_escaped_wherever_it_stands() -> None:
    table = Table(EVIL, (EVIL, "Recipe"), ((EVIL, EVIL),), (EVIL,))
    facets = [{"model": EVIL, "recipe": EVIL, "verdict": "faster"}, {"model": "other", "verdict": EVIL}]
    two = Table(EVIL, ("Recipe", "Verdict"), ((EVIL, EVIL), (EVIL, EVIL)), (EVIL,))
    drawn = Drawn(EVIL, EVIL)
    blocks = [
        table,
        Sortable(two, facets, [(facets[0], table)]),
        Figure({EVIL: drawn, "log": drawn}),
        Choice(EVIL, {EVIL: Figure.of(drawn), "other": Figure.of(drawn)}),
        Code(EVIL, EVIL),
        EVIL,
    ]
    found = Document(EVIL, EVIL, [EVIL], [EVIL], [EVIL], [Section("results", EVIL, blocks)])  # type: ignore[arg-type]
    text = page(found)
    assert text.count("<script") == 1  # the page's own
    assert "alert(&#x27;1&#x27;)" in text
    assert "<script>alert" not in text
    for _, attributes in parsed(text).tags:
        assert not any(name.startswith("on") for name in attributes)


def test_drawings_keep_their_ids_apart_and_lose_their_namespaces() -> None:
    text = page(document(Figure.of(Drawn()), Figure.of(Drawn())))
    ids = [value for _, attributes in parsed(text).tags if (value := attributes.get("id")) and "clip0" in value]
    assert len(set(ids)) == 2
    assert all(f"url(#{one})" in text for one in ids)
    assert "w3.org" not in text
    assert (
        inlined('<?xml version="1.0"?><svg><use xlink:href="#a"/></svg>', "p-") == '<svg><use xlink:href="#p-a"/></svg>'
    )


def test_a_long_table_can_be_filtered_by_what_its_rows_differ_in() -> None:
    table = Table("T", ("Recipe", "Verdict"), (("a", "faster"), ("b", "slower")))
    facets = [{"target": "A", "recipe": name, "verdict": word} for name, word in table.rows]
    tags = parsed(page(document(Sortable(table, facets)))).tags
    filters = [attributes["data-facet"] for _, attributes in tags if "data-facet" in attributes]
    assert filters == ["verdict", "recipe"]  # one target is no choice
    assert [attributes["data-verdict"] for tag, attributes in tags if tag == "tr" and attributes] == [
        "faster",
        "slower",
    ]
    assert sum(attributes.get("aria-sort") == "none" for _, attributes in tags) == 2


def test_the_log_switch_is_on_where_the_log_drawing_is_first() -> None:
    def switch(*labels: str) -> dict[str, str | None]:
        tags = parsed(page(document(Figure({label: Drawn() for label in labels})))).tags
        [found] = [attributes for _, attributes in tags if "data-switches" in attributes]
        return found

    assert "checked" in switch("log", "linear")
    assert "checked" not in switch("linear", "log")
    assert switch("linear", "log")["data-to"] == "log"


def test_what_scrolls_can_be_reached_with_the_keyboard() -> None:
    tags = parsed(page(document(Table("T", ("A",), (("x",),)), Figure.of(Drawn())))).tags
    [wide] = [attributes for _, attributes in tags if attributes.get("class") == "wide"]
    assert (wide["tabindex"], wide["role"], wide["aria-label"]) == ("0", "region", "T")
    [drawing] = [attributes for _, attributes in tags if "data-drawing" in attributes]
    assert drawing["tabindex"] == "0"
    assert "drawn" in (drawing["aria-label"] or "")


def test_a_section_without_anything_to_show_is_neither_there_nor_linked() -> None:
    found = Document("t", "q", ["a"], sections=[Section("empty", "Empty", []), Section("full", "Full", ["words"])])
    text = page(found)
    assert "Empty" not in text
    assert 'href="#full"' in text
