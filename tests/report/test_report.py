from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from llama_bench.errors import InputError, WorkError
from llama_bench.report import write_report

from .elements import parsed


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


def test_the_report_lies_in_the_runs_folder_with_page_tables_and_charts(run: Path, files: list[Path]) -> None:
    names = [file.relative_to(run / "report").as_posix() for file in files]
    assert names[:2] == ["report.html", "report.md"]
    sizes = ("512-a4-l2", "1024-a4-l2")
    charts = [
        "speedups-B",
        "time-B-fast",
        "time-B-idle",
        "tokens-B",
        "seconds",
        *(f"slots-B-h{s}-prefill" for s in sizes),
    ]
    assert sorted(names[2:]) == sorted(f"charts/{chart}.{kind}" for chart in charts for kind in ("png", "svg"))
    assert all(file.stat().st_size > 500 for file in files)


def test_the_markdown_begins_with_the_answer(files: list[Path]) -> None:
    text = files[1].read_text()
    title, question, answer, trust, unserved, failed = text.split("\n\n")[:6]
    assert title == "# Sweep synthetic"
    assert question.startswith("Which of 3 recipes makes 2 models faster than original")
    assert answer.startswith("On A nothing can be compared; on B fast is the fastest against its baseline, 1.2")
    assert trust.startswith("The verdicts stand on B")
    assert unserved == "Nothing was measured on target A: no node offers bench_A."
    assert failed == "2 arms failed and have no number: broken."
    assert "On target B the fastest recipe, against original, is fast 1.2" in text
    assert "## Where the time went" in text
    assert "| – timed runs |" in text
    assert "| B | host | A CPU | 2 |" in text
    assert "<img" not in text


def test_the_page_fetches_nothing(files: list[Path]) -> None:
    text = files[0].read_text()
    tags = parsed(text).tags
    assert [dict(attributes) for tag, attributes in tags if tag == "script"] == [{}]  # its own, inside
    for tag, attributes in tags:
        assert tag not in ("link", "img", "iframe", "image", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "action", "xmlns")
            assert not name.startswith("on")
            assert not name.endswith("href") or (value or "").startswith("#")
            assert name == "content" or "//" not in (value or "")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_the_page_holds_every_section_table_and_chart_with_ids_of_their_own(files: list[Path]) -> None:
    elements = parsed(files[0].read_text())
    tags = [tag for tag, _ in elements.tags]
    assert (
        tags.count("svg") == 1 + 2 * 2 + 1 + 1 + 2
    )  # speedups, sizes in two scales, tokens, seconds, slots of two cells
    assert (
        tags.count("table") == 1 + 1 + 1 + 1 + 1 + 1 + 1
    )  # noise, results, tokens, seconds, failures, nodes, versions
    ids = [attributes["id"] for _, attributes in elements.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", files[0].read_text())) <= set(ids)
    links = {value for _, attributes in elements.tags if (value := attributes.get("href"))}
    assert {f"#{id}" for id in ("noise", "results", "speedups", "sizes", "slots", "machines", "again")} <= links
    assert {link.removeprefix("#") for link in links} <= set(ids)


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
    assert {"pareto-B-h512-a4-l2-generate.svg", "pareto-B-h512-a4-l2-generate.png"} <= set(names)
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
