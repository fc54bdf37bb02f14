"""docs/reading.md: its examples run, agree with one another and with llama_bench, and take only rows that count."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from scipy import stats

import llama_bench

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reading.md").read_text(encoding="utf-8")
RUN = "docs/results/gemm/20261123-182045-909a0e99"
CELL = "d328fa1361102a42"

Found = dict[str, tuple[float, float, float, int]]
"""arm → speedup, low, high, restarts"""


def block(heading: str) -> str:
    """The Python block under a heading of the page."""
    return re.search(rf"## {heading}\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL).group(1)  # type: ignore[union-attr]


def from_polars(rows: pl.DataFrame) -> Found:
    return {arm: tuple(rest) for arm, *rest in rows.iter_rows()}  # type: ignore[misc]


def from_duckdb(rows: Any) -> Found:
    return {arm: tuple(rest) for arm, *rest in rows.fetchall()}


def from_pandas(rows: Any) -> Found:
    return {str(row.Index): (row.speedup, row.low, row.high, row.restarts) for row in rows.itertuples()}


READERS: dict[str, Callable[[Any], Found]] = {"polars": from_polars, "DuckDB": from_duckdb, "pandas": from_pandas}


@pytest.fixture(autouse=True)
def clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says that its blocks run in a clone of the repository."""
    monkeypatch.chdir(ROOT)


def found(heading: str, run: str = RUN) -> Found:
    """What the block under `heading` finds, in another run where one is given.

    DuckDB hands its rows out once, so that they are not printed here.
    """
    space: dict[str, Any] = {}
    exec(block(heading).replace(RUN, run).replace("print(found.fetchdf())", ""), space)
    return READERS[heading](space["found"])


@pytest.fixture
def results() -> dict[str, Found]:
    """What each block finds."""
    return {heading: found(heading) for heading in READERS}


def test_polars_duckdb_and_pandas_find_the_same(results: dict[str, Found]) -> None:
    one, *others = results.values()
    assert len(one) == 9
    for other in others:
        assert set(other) == set(one)
        for arm, numbers in one.items():
            assert other[arm] == pytest.approx(numbers), arm


def test_they_are_the_views_up_to_level_and_inflation(results: dict[str, Found]) -> None:
    frames = llama_bench.load(RUN)
    inflation = frames.cells.filter(cell=CELL).collect()["inflation"][0]
    view = {row["recipe"]: row for row in frames.speedups.filter(cell=CELL).collect().to_dicts() if not row["baseline"]}
    assert set(view) == set(results["polars"])
    for arm, (speedup, low, high, restarts) in results["polars"].items():
        row = view[arm]
        assert (row["speedup"], row["restarts"]) == (pytest.approx(speedup), restarts)
        wider = inflation * stats.t.ppf(0.5 + row["level"] / 2, 5) / stats.t.ppf(0.975, 5)
        assert np.log(row["high"] / row["low"]) == pytest.approx(wider * np.log(high / low)), arm


def test_the_printed_table_is_what_comes_out(results: dict[str, Found]) -> None:
    printed = re.search(r"## What comes out\n\n```text\n(.*?)```", PAGE, flags=re.DOTALL).group(1)  # type: ignore[union-attr]
    assert printed.rstrip("\n") == "\n".join(_printed(results["polars"]))


def _printed(rows: Found) -> list[str]:
    lines = [f"{'arm':<32}{'speedup':>9}{'low':>9}{'high':>9}{'restarts':>10}"]
    for arm, (speedup, low, high, restarts) in rows.items():
        lines.append(f"{arm:<32}{speedup:>9.4f}{low:>9.4f}{high:>9.4f}{restarts:>10}")
    return lines


def test_every_block_of_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 4
    for code in blocks:
        exec(code, {})
    assert capsys.readouterr().out.count("fuse_matmul_add_bias_into_gemm") == 4


def test_restarts_that_did_not_finish_or_are_there_twice_change_nothing(
    tmp_path: Path, results: dict[str, Found]
) -> None:
    run = tmp_path / "gemm" / "20261123-182045-909a0e99"
    shutil.copytree(ROOT / RUN, run)
    [part] = [file for file in (run / "timings").glob("*.parquet") if file.stem.startswith(CELL)]
    table = pq.read_table(part)
    held = table.filter(pl.Series(table["restart"]).is_between(2, 4).to_arrow())
    pq.write_table(held, run / "timings" / f"{CELL}-r0002.parquet")  # folded, and not yet deleted
    lost = pl.DataFrame(held).with_columns(restart=pl.lit(99, dtype=pl.Int64), seconds=pl.col("seconds") * 7)
    pq.write_table(lost.to_arrow().cast(table.schema), run / "timings" / f"{CELL}-r0099.parquet")  # never finished
    assert pl.scan_parquet(run / "timings" / "*.parquet").select(pl.len()).collect().item() > table.num_rows * 2
    for heading in READERS:
        again = found(heading, str(run))
        for arm, numbers in results[heading].items():
            assert again[arm] == pytest.approx(numbers), (heading, arm)
