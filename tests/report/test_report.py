from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from llama_bench.errors import InputError, WorkError
from llama_bench.report import page, write_report
from llama_bench.report.table import Table


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fast": Truth(0.8, executed="aa"),
            "idle": Truth(removed={"Identity": 4}),
            "broken": Truth(failure="<img src=http://example.com/x.png>"),
        },
        sizes=(512, 1024),
        targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"},
        unserved={"A": "no node offers bench_A"},
    )
    folder: Path = world.write(tmp_path_factory.mktemp("store"))
    return folder


@pytest.fixture(scope="module")
def files(run: Path) -> list[Path]:
    return write_report(str(run))


class Elements(HTMLParser):
    """The tags of a page with their attributes, and whether they close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Elements:
    elements = Elements()
    elements.feed(text)
    assert elements.open == []
    return elements


def test_the_report_lies_in_the_runs_folder_with_page_tables_and_charts(run: Path, files: list[Path]) -> None:
    names = [file.relative_to(run / "report").as_posix() for file in files]
    assert names[:2] == ["report.html", "report.md"]
    assert sorted(names[2:]) == sorted(
        f"charts/{chart}.{kind}" for chart in ("speedups-B", "time-B-fast", "time-B-idle") for kind in ("png", "svg")
    )
    assert all(file.stat().st_size > 500 for file in files)


def test_the_markdown_begins_with_the_answer(files: list[Path]) -> None:
    text = files[1].read_text()
    title, unserved, answer = text.split("\n\n")[:3]
    assert title == "# Sweep synthetic"
    assert unserved == "On target A nothing was measured: no node offers bench_A."
    assert answer.startswith("On target B the fastest recipe, against original, is fast 1.2")
    assert "## Where the time went" in text
    assert "| – timed runs |" in text
    assert "* Node: host, A CPU, 2 physical cores, 16 GiB" in text
    assert "<img" not in text


def test_the_page_fetches_nothing(files: list[Path]) -> None:
    text = files[0].read_text()
    for tag, attributes in parsed(text).tags:
        assert tag not in ("script", "link", "img", "iframe", "image", "object", "embed")
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "action", "xmlns")
            assert not name.endswith("href") or (value or "").startswith("#")
            assert name == "content" or "//" not in (value or "")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_the_page_holds_every_table_and_chart_once_with_ids_of_their_own(files: list[Path]) -> None:
    elements = parsed(files[0].read_text())
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("svg") == 3
    assert tags.count("table") == 2 + 1 + 1 + 1  # results, noise, failures, seconds
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"url\(#([^)]*)\)", files[0].read_text()))
    assert references <= set(ids)


def test_what_people_wrote_is_escaped_in_the_page() -> None:
    evil = "<script>alert(1)</script>"
    table = Table(evil, (evil,), ((evil,),), (evil,))
    text = page.page(evil, [evil], [(evil, [table])], [("<svg></svg>", evil)], [evil])
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 10
    parsed(text)


def test_ids_of_two_charts_do_not_meet_in_one_page() -> None:
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><clipPath id="clip0"/><g clip-path="url(#clip0)"/></svg>'
    text = page.page("t", [], [], [(svg, "one"), (svg, "two")], [])
    assert 'id="f0-clip0"' in text
    assert "url(#f1-clip0)" in text
    assert "w3.org" not in text


def test_a_report_can_go_elsewhere_and_be_written_again(run: Path, tmp_path: Path) -> None:
    first = write_report(str(run), tmp_path / "deep" / "er")
    before = first[0].read_bytes()
    assert write_report(str(run.parent), tmp_path / "deep" / "er") == first
    assert first[0].read_bytes() == before


def test_a_folder_that_cannot_be_written_is_failed_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkError, match="cannot write"):
        write_report(str(run), tmp_path / "file" / "report")


def test_what_is_no_run_is_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_report(str(tmp_path))


def test_a_run_with_approximations_and_text_has_its_tables_and_chart_on_the_page(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    int8 = synthetic.Truth(0.3, executed="bb", kind="approximate", perplexity_increase=0.01, weight_bytes=1_000_000)
    world = synthetic.world(
        {"fused": synthetic.Truth(0.8, executed="aa"), "int8": int8},
        workload={"kind": "generate", "prompt": 8, "new_tokens": 4},
        text=True,
    )
    files = write_report(str(world.write(tmp_path / "store")))
    names = [file.name for file in files]
    assert names[2:4] == ["pareto-B-h512-a4-l2-generate.svg", "pareto-B-h512-a4-l2-generate.png"]
    text, page_text = files[1].read_text(), files[0].read_text()
    for heading in (
        "## Speed, accuracy and size together",
        "### Accuracy and size: target B",
        "### Not beaten: target B",
        "## Text generation",
        "### Generated text: target B",
    ):
        assert heading in text
        assert heading.lstrip("# ") in page_text
    assert "it approximates: perplexity +1.00%" in text
    parsed(page_text)
