"""What a sceptic asks first, as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import polars as pl

from llama_bench.report import trust
from llama_bench.stats import views


def cells(world: Any) -> pl.DataFrame:
    return views.make(world.run, world.datasets()).cells.collect()


def test_each_target_says_what_its_equal_programs_show(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(), "fast": synthetic.Truth(0.8, executed="aa")})
    table = trust.noise(cells(world))
    assert table is not None
    [row] = table.rows
    assert row[:2] == ("B", "2")
    assert float(row[2]) > 0
    assert 0.001 < float(row[3]) <= 1
    assert row[4].endswith("×")
    assert row[5:] == ("24", "0", "0", "yes")


def test_a_target_whose_equal_programs_differ_has_no_verdicts(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(1.2), "fast": synthetic.Truth(0.8, executed="aa")})
    table = trust.noise(cells(world))
    assert table is not None
    assert table.rows[0][-1] == "no: void"


def test_a_run_that_timed_nothing_has_no_noise(synthetic: ModuleType) -> None:
    assert trust.noise(cells(synthetic.world({}, restarts=0))) is None


def test_ceilings_are_printed_in_units_that_can_be_read() -> None:
    row = {"node": "n", "hardware": "h", "target": "B", "threads": 2, "how": "torch", "measured_at": datetime.now(UTC)}
    given = pl.from_dicts(
        [
            {**row, "what": "matmul", "dtype": "fp32", "per_second": 1.25e11},
            {**row, "what": "read", "dtype": "", "per_second": 2.5e10},
        ]
    )
    table = trust.ceilings(given)
    assert table is not None
    assert [line[1:3] for line in table.rows] == [("matmul fp32", "0.12 T operations/s"), ("read", "25.00 GB/s")]
    assert trust.ceilings(given.clear()) is None
