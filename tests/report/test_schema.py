"""The documented schema: one description for each column, true of the runs that are in the repository."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

import llama_bench
from llama_bench import columns, results
from llama_bench.report import schema
from llama_bench.schemas import SCHEMAS
from llama_bench.stats import columns as views
from llama_bench.stats.views import Frames

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
RUNS = [
    path.parent
    for path in sorted(RESULTS.glob("*/*/run.json"))
    if path.parent.parent.name not in ("calibrate", "tune", "optimizations")
]


def test_every_column_of_every_dataset_and_view_is_described_once_and_no_other() -> None:
    assert list(columns.DATASETS) == list(SCHEMAS)
    for dataset, words in columns.DATASETS.items():
        assert list(columns.of_dataset(dataset, SCHEMAS[dataset].names)) == SCHEMAS[dataset].names
        assert set(words.columns) <= set(SCHEMAS[dataset].names), dataset
    assert list(views.VIEWS) == list(views.SCHEMAS)
    for view, words in views.VIEWS.items():
        assert list(views.of_view(view)) == list(views.SCHEMAS[view])
        assert set(words.columns) <= set(views.SCHEMAS[view]), view


def test_datasets_and_views_together_are_all_that_sql_knows() -> None:
    known = {name for name in Frames.__dataclass_fields__ if name != "run"}
    assert known == {*SCHEMAS, *views.SCHEMAS} == {table.title for table in schema.tables()}


def test_the_documented_schema_is_the_schema() -> None:
    page = (ROOT / "docs/schema.md").read_text(encoding="utf-8")
    documented = page.partition("<!-- schema:")[2].partition("-->")[2].partition("<!-- end of schema -->")[0]
    assert documented.strip() == schema.markdown(), "run: python -m llama_bench schema --results --markdown"


def test_a_description_ends_with_a_stop_and_units_are_those_of_the_names() -> None:
    for table in schema.tables():
        for name, _, unit, meaning, _ in table.rows:
            assert meaning.endswith("."), (table.title, name)
            for end, known in (("_s", ("s", "tokens / s")), ("_bytes", ("bytes",)), ("_mhz", ("MHz",)), ("_w", ("W",))):
                assert not name.endswith(end) or unit in known, (table.title, name)


@pytest.mark.parametrize("run", RUNS, ids=lambda path: f"{path.parent.name}-{path.name[:15]}")
def test_what_is_said_never_to_be_null_is_not(run: Path) -> None:
    store, name = results.locate(run)
    frames = llama_bench.load(run)
    parts = {dataset: [store.url(part.key) for part in found] for dataset, found in _parts(store, name).items()}
    for dataset, files in parts.items():
        if not files:
            continue
        said = columns.of_dataset(dataset, SCHEMAS[dataset].names)
        raw = pl.scan_parquet(files, missing_columns="insert", schema=_columns(dataset)).collect()
        _check(raw, {column: one.null for column, one in said.items()}, dataset)
    for view in views.SCHEMAS:
        _check(getattr(frames, view).collect(), {column: one.null for column, one in views.of_view(view).items()}, view)


def _check(rows: pl.DataFrame, null: dict[str, str], where: str) -> None:
    for column, when in null.items():
        assert when or not rows[column].null_count(), (where, column)


def _parts(store: object, run: str) -> dict[str, list[object]]:
    from llama_bench.parts import counting_parts

    return counting_parts(store, run)  # type: ignore[arg-type, return-value]


def _columns(dataset: str) -> pl.Schema:
    return pl.DataFrame(SCHEMAS[dataset].empty_table()).schema
