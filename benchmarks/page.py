"""What the page of a large run costs: seconds and memory to make it, its size, and how soon a browser shows it.

    python benchmarks/page.py               500 arms and a million timings
    python benchmarks/page.py --keep DIR    keeps the run and the page

The run is made of rows whose true ratios are known (tests/stats/synthetic.py): ten models, fifty recipes, every slot
and timing of them. Making the report is a whole command in a fresh process; the browser is a headless Chromium from the
path (Playwright drives it), without a network.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from scale import timed

from llama_bench.store import Store

ROOT = Path(__file__).parent.parent
RUN = "synthetic/20260102T030405Z-f00d"
MODELS, RECIPES, RESTARTS, BLOCKS, RUNS = 10, 50, 6, 4, 84


def synthetic() -> ModuleType:
    spec = importlib.util.spec_from_file_location("synthetic", ROOT / "tests" / "stats" / "synthetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic"] = module
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path) -> Path:
    """Write the run, a model at a time: its rows as Python objects would not fit otherwise."""
    made = synthetic()
    recipes = {
        f"r{n}": made.Truth(0.6 + 0.02 * n, executed=f"x{n}", kind="approximate" if n % 5 == 0 else "exact")
        for n in range(RECIPES - 1)
    }
    sizes = tuple(256 * (n + 1) for n in range(MODELS))
    shape: dict[str, Any] = {"restarts": RESTARTS, "blocks": BLOCKS, "runs": RUNS}
    whole = made.world(recipes, sizes=sizes, **{**shape, "restarts": 0})
    run = folder / RUN
    for n, size in enumerate(sizes):
        one = made.world(recipes, sizes=(size,), seed=n, text=True, **shape)
        if n == 0:
            made.World(whole.run, one.rows).write(folder)
        else:
            one.write_parts(Store(folder), RUN)
    return run


def opening_s(page: Path) -> float:
    """Return the seconds from asking for the page to the end of its loading, scripts run, in a fresh browser."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no Chromium on the path")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_context(offline=True).new_page()
        tab.goto(page.as_uri(), wait_until="load")
        milliseconds = tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        browser.close()
    return float(milliseconds) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="page-")))
        run = folder / RUN
        if not run.is_dir():
            write_run(folder)
        out = folder / "report"
        seconds, peak, _ = timed([sys.executable, "-m", "llama_bench", "report", str(run), "--out", str(out)])
        page = out / "report.html"
        timings = MODELS * (RECIPES + 1) * RESTARTS * BLOCKS * RUNS
        print(f"{MODELS * RECIPES} arms and as many controls as models, {timings:,} timings")
        print(f"{seconds:8.2f} s {peak / 2**30:6.2f} GiB  to make the report, {len(list(out.rglob('*')))} files")
        print(f"{page.stat().st_size / 1e6:8.2f} MB             the page")
        print(f"{opening_s(page):8.2f} s             to open it")


if __name__ == "__main__":
    main()
