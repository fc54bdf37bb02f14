"""What a sceptic asks first, as tables."""

from __future__ import annotations

from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import polars as pl

from llama_bench.report import trust
from llama_bench.report.table import Table
from llama_bench.stats import views


def noise(world: Any) -> Table | None:
    frames = views.make(world.run, world.datasets())
    return trust.noise(frames.cells.collect(), frames.speedups.collect())


def test_each_target_says_what_its_equal_programs_show(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(), "fast": synthetic.Truth(0.8, executed="aa")})
    table = noise(world)
    assert table is not None
    [row] = table.rows
    assert row[0] == "B"
    assert 0 < float(row[1].removesuffix("%")) < 2
    assert row[2] == "2"
    assert float(row[3]) > 0
    assert 0.001 < float(row[4]) <= 1
    assert row[5].endswith("×")
    assert row[6:] == ("24", "0", "0", "yes")


def test_a_target_whose_equal_programs_differ_has_no_verdicts(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(1.2), "fast": synthetic.Truth(0.8, executed="aa")})
    table = noise(world)
    assert table is not None
    assert table.rows[0][-1] == "no: void"


def test_processes_that_were_on_the_gpu_are_named_with_the_blocks_that_they_were_in() -> None:
    def block(number: int, foreign: str | None, kept: bool = True, target: str = "gpu") -> list[dict[str, Any]]:
        row = {"target": target, "cell": "c", "restart": 0, "group": 0, "block": number, "kept": kept}
        return [{**row, "foreign": foreign, "recipe": name} for name in ("original", "control")]

    rows = [*block(0, "blender (pid 9)"), *block(1, None), *block(2, "blender (pid 9)", False), *block(3, "x (pid 8)")]
    [said] = trust.strangers(pl.DataFrame([*rows, *block(0, None, target="cpu")]))
    assert said == (
        "Another process was on the GPU of gpu in 3 of 4 blocks (blender (pid 9); x (pid 8)): "
        "its verdicts count 2 of these blocks and may be off."
    )
    [said] = trust.strangers(pl.DataFrame(block(2, "blender (pid 9)", False)))
    assert said.endswith("none of these blocks counts.")


def test_a_run_that_timed_nothing_has_no_noise(synthetic: ModuleType) -> None:
    assert noise(synthetic.world({}, restarts=0)) is None


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
