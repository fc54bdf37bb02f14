from __future__ import annotations

from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

import llama_bench
from llama_bench.errors import InputError
from llama_bench.schemas import SCHEMAS
from llama_bench.stats import views


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa"), "broken": synthetic.Truth(failure="no")})
    folder: Path = world.write(tmp_path_factory.mktemp("store"))
    return folder


def test_a_written_run_is_read_back_with_every_dataset(run: Path) -> None:
    frames = llama_bench.load(run)
    for name in SCHEMAS:
        assert isinstance(getattr(frames, name), pl.LazyFrame)
    assert frames.timings.collect().height == 3 * 6 * 4 * 5
    assert frames.run["sweep"]["name"] == "synthetic"
    assert frames.speedups.collect().height == 4


@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_run_its_sweep_and_its_store_mean_the_same(run: Path, up: int) -> None:
    path = [run, *run.parents][up]
    assert llama_bench.load(path).speedups.collect().height == 4


def test_sql_reads_the_views(run: Path) -> None:
    found = llama_bench.load(run).sql("SELECT recipe, verdict FROM speedups WHERE speedup > 1.1")
    assert found.to_dicts() == [{"recipe": "fast", "verdict": "faster"}]
    counted = llama_bench.load(run).sql("SELECT COUNT(*) AS n FROM failures JOIN variants USING (cell, recipe)")
    assert counted["n"].to_list() == [1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT * FROM speedup", "no view 'speedup'; did you mean 'speedups'?"),
        ("SELECT recip FROM timings", "no column 'recip'; did you mean 'recipe'?"),
        ("SELECTT 1", "SQL: sql parser error"),
        ("", "SQL: "),
        ("SELECT cell + 1.5 FROM timings WHERE no_such_function(cell)", "unsupported function"),
    ],
)
def test_a_bad_query_is_one_line_with_the_nearest_word(run: Path, query: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        llama_bench.load(run).sql(query)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_result_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        llama_bench.load(tmp_path)


def test_reading_twice_gives_the_same_numbers_to_the_last_digit(run: Path) -> None:
    first = llama_bench.load(run).speedups.collect()
    assert all(llama_bench.load(run).speedups.collect().equals(first) for _ in range(20))


def test_cells_are_a_view_beside_the_speedups(run: Path) -> None:
    frames = llama_bench.load(run)
    found = frames.sql("SELECT c.best, c.ended_by, s.verdict FROM cells c JOIN speedups s ON c.cell = s.cell")
    assert found.height == 4
    assert set(found["best"]) == {"fast"}
    assert frames.sql("SELECT restarts FROM cells").to_dicts() == [{"restarts": 6}]


def test_every_view_that_is_made_is_there_for_sql_with_its_columns(run: Path) -> None:
    frames = llama_bench.load(run)
    for name in ("speedups", "cells", "accuracy_by_arm", "sizes", "pareto", "generation", "generations"):
        found = frames.sql(f"SELECT * FROM {name}")
        assert found.schema == getattr(frames, name).collect_schema(), name
    joined = frames.sql("SELECT z.disk_bytes, a.max_rel FROM sizes z JOIN accuracy_by_arm a USING (cell, recipe)")
    assert joined.height == 3


def test_all_views_come_from_one_judgement(synthetic: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    judge = views.judge_run
    monkeypatch.setattr(views, "judge_run", lambda *given: calls.append(given) or judge(*given))
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    frames = views.make(world.run, world.datasets())
    assert calls == []
    frames.speedups.collect()
    frames.cells.collect()
    frames.pareto.collect()
    frames.sizes.collect()
    assert len(calls) == 1
