"""The page in a real browser, opened from disk with the network off, as readers meet it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llama_bench.report import compose
from llama_bench.report.page import page as html
from llama_bench.stats import views

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

EVIL = "<img src=x onerror=alert(1)>\"'&🦙" + "x" * 270

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: $LLAMA_BENCH_CHROMIUM, or the one on the path; else a skip."""
    path = os.environ.get("LLAMA_BENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium), and $LLAMA_BENCH_CHROMIUM names none")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every section that a run can have, and names that would like to be HTML."""
    Truth = synthetic.Truth
    workloads = {f"s{sequence}": {"sequence": sequence} for sequence in (16, 64)}
    world = synthetic.world(
        {
            "fast": Truth(0.8, executed="aa"),
            "slow": Truth(1.4, executed="bb"),
            "int8": Truth(0.3, executed="cc", kind="approximate", weight_bytes=1_000_000, perplexity_increase=0.01),
            "idle": Truth(removed={"Identity": 4}),
            "broken": Truth(failure=EVIL),
        },
        sizes=(512, 1024),
        targets={"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"},
        workloads=workloads,
        restarts=3,
        pilot=3,
        text=True,
    )
    world.disturb(1, 2, "fast", kept=False)
    seen = [("gemm", "matmul", 9, 6e-4), (EVIL, "attention", 2, 1e-4), ("Memcpy DtoH", "copy", 1, 1e-4)]
    world.profile(dict.fromkeys(("original", "fast", "slow"), seen))
    written: Path = tmp_path_factory.mktemp("page") / "report.html"
    written.write_text(html(compose(views.make(world.run, world.datasets()))), encoding="utf-8")
    return written


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The page, freshly opened without a network; whatever it writes to the console or asks for fails the test."""
    yield from opened(browser, file)


def opened(browser: Any, file: Path, **options: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True, **options)
    found = context.new_page()
    said: list[str] = []
    found.on("console", lambda message: said.append(message.text))
    found.on("pageerror", lambda error: said.append(str(error)))
    found.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
    found.on("request", lambda request: said.append(request.url) if request.url != file.as_uri() else None)
    found.goto(file.as_uri())
    yield found
    context.close()
    assert said == []


def column(page: Any, name: str) -> list[str]:
    """The cells of a column of the first long table, of the rows that are shown, from top to bottom."""
    heads = page.locator("[data-sortable] >> nth=0").locator("thead th").all_inner_texts()
    at = [head.split("\n")[0].strip(" ↕↑↓") for head in heads].index(name)
    rows = page.locator("[data-sortable] >> nth=0").locator("tbody tr:visible")
    return [str(row.locator("th, td").nth(at).inner_text()) for row in rows.all()]


def test_the_answer_stands_at_the_top_and_every_section_is_linked(page: Any) -> None:
    assert page.title() == "Sweep synthetic"
    box = page.locator(".answer").bounding_box()
    assert box["y"] + box["height"] < 450  # within the first screen
    links = page.locator("nav a").all()
    assert len(links) == 14
    for link in links:
        assert page.locator(link.get_attribute("href")).count() == 1


def test_a_click_sorts_by_number_and_another_turns_it_round(page: Any) -> None:
    button = page.get_by_role("button", name="Speedup").first
    for order, reverse in (("descending", True), ("ascending", False)):
        button.click()
        assert page.locator("th[aria-sort=" + order + "]").count() == 1
        numbers = [float(cell.split("×")[0]) for cell in column(page, "Speedup [low, high]") if cell != "–"]
        assert len(numbers) == 20
        assert numbers == sorted(numbers, reverse=reverse)
        assert column(page, "Speedup [low, high]")[-1] == "–"  # what has no number is last either way
    page.get_by_role("button", name="Recipe").first.click()
    recipes = column(page, "Recipe")
    assert recipes == sorted(recipes, key=str.lower, reverse=True)


def test_filters_leave_the_rows_that_fit_all_of_them_and_their_notes(page: Any) -> None:
    first, second = page.locator("[data-sortable]").all()
    assert first.get_by_role("status").inner_text() == "28 of 28 rows"
    page.get_by_role("combobox", name="Verdict").select_option("slower")
    page.get_by_role("combobox", name="Model").select_option("h512-a4-l2")
    assert set(column(page, "Recipe")) == {"slow"}
    assert set(column(page, "Model")) == {"h512-a4-l2"}
    assert first.get_by_role("status").inner_text() == "2 of 28 rows"
    assert first.locator("[data-note]:visible").count() == 2
    page.get_by_role("combobox", name="Target").select_option("B")
    assert not first.is_visible()
    assert second.is_visible()
    page.get_by_role("button", name="Show all").click()
    assert first.is_visible()
    page.get_by_role("searchbox", name="Recipe").fill("FAS")
    assert set(column(page, "Recipe")) == {"fast"}


def test_a_mark_tells_its_numbers_under_the_pointer_and_to_the_keyboard(page: Any) -> None:
    mark = page.locator("#speedups [role=graphics-symbol][aria-label^='fast: faster']").first
    tip = page.get_by_role("tooltip")
    assert not tip.is_visible()
    mark.scroll_into_view_if_needed()
    mark.hover()
    assert tip.is_visible()
    assert tip.inner_text().startswith("fast: faster\n1.2")
    page.locator("#speedups [data-drawing]").first.focus()
    page.keyboard.press("ArrowRight")
    one = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != one
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_one_figure_of_a_choice_is_shown_and_its_scale_can_be_switched(page: Any) -> None:
    figures = page.locator("#sizes figure:visible")
    assert figures.count() == 1
    before = figures.locator("svg:visible").text_content()
    page.locator("#sizes select").select_option(index=1)
    assert figures.count() == 1
    assert figures.locator("svg:visible").text_content() != before
    drawing = figures.locator("[data-drawing]:visible")
    scale = drawing.get_attribute("data-drawing")
    switch = figures.get_by_label("Logarithmic scale")
    assert switch.is_checked() == (scale == "log")
    switch.click()
    assert figures.locator("[data-drawing]:visible").get_attribute("data-drawing") != scale


def test_names_that_would_like_to_be_html_are_text(page: Any) -> None:
    assert page.locator("img").count() == 0
    assert page.get_by_text(EVIL[:40]).count() > 0
    assert page.evaluate("document.body.scrollWidth") <= 1280


def test_axe_finds_no_serious_fault(page: Any) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    serious = [
        (one["id"], one["help"], one["nodes"][0]["html"][:200])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_in_its_width_light_or_dark(browser: Any, file: Path, scheme: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
    context = browser.new_context(**phone, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
    ink = page.evaluate("getComputedStyle(document.querySelector('#speedups svg text[fill=\"#1f2328\"]')).fill")
    assert ink == ("rgb(31, 35, 40)" if scheme == "light" else "rgb(230, 237, 243)")
    context.close()


def test_on_paper_there_are_no_controls_and_all_details(page: Any) -> None:
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("nav:visible, select:visible, button[data-reset]:visible").count() == 0
    assert page.locator("details:not([open])").count() == 0


def test_without_scripts_everything_is_shown(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#sizes figure:visible").count() > 1
    assert page.locator("[data-sortable] tbody tr:visible").count() == 56
    context.close()
