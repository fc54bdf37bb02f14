"""The pictures of the report's page that the README shows, made from the runs in docs/results.

    python docs/screenshots.py       needs Chromium on the path, and the extra `test` (Playwright)

Writes docs/images/page-*.png.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from llama_bench.report import write_report

ROOT = Path(__file__).parent.parent
WIDTH = 1280

PICTURES = {
    "page-answer": ("report/20261123-134404-e50b9842", "body", 880),
    "page-results": ("smollm2/20261123-222818-9b7ddda5", "#results", 640),
}
"""Name → the run, which part of its page is shown, and how many pixels of it from its top."""


def main() -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("no Chromium on the path")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        for name, (run, selector, height) in PICTURES.items():
            page = browser.new_context(viewport={"width": WIDTH, "height": 900}, offline=True).new_page()
            page.goto(write_report(str(ROOT / "docs/results" / run), Path(folder) / name)[0].as_uri())
            if selector == "#results":  # as a reader uses it: one workload, the fastest first
                page.get_by_role("combobox", name="Workload").select_option("decode")
                page.get_by_role("button", name="Speedup").first.click()
            box = page.locator(selector).bounding_box()
            assert box is not None
            top = box["y"] + page.evaluate("window.scrollY")
            file = ROOT / "docs/images" / f"{name}.png"
            page.screenshot(path=file, full_page=True, clip={"x": 0, "y": top, "width": WIDTH, "height": height})
            print(file.relative_to(ROOT))
        browser.close()


if __name__ == "__main__":
    main()
