from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llama_bench import calibration, plan
from llama_bench.calibration import Design
from llama_bench.errors import InputError
from llama_bench.sweep import Sweep


def test_every_cell_is_an_a_a_pair_and_every_kth_has_the_slowed_arms_too() -> None:
    design = Design(cells=7, slowed_every=3)
    slowed = {cell: calibration.arms(design, cell) for cell in range(1, 8)}
    assert [cell for cell, arms in slowed.items() if len(arms) > 2] == [3, 6]
    assert slowed[1] == ("original", "control")
    assert slowed[6] == ("original", "control", "slower_1", "slower_3")


def test_without_slowed_cells_no_recipe_is_slowed() -> None:
    design = Design(cells=4, slowed_every=0)
    assert list(calibration.sweep(design).recipes) == ["original"]
    assert all(len(calibration.arms(design, cell)) == 2 for cell in range(1, 5))


def test_processes_are_counted_one_an_arm_in_every_pilot_restart() -> None:
    assert calibration.processes(Design(cells=7, slowed_every=3, restarts=2)) == 2 * (5 * 2 + 2 * 4)


def test_the_sweep_has_one_model_one_export_one_reference_and_a_cell_of_its_own_for_every_number() -> None:
    sweep = calibration.sweep(Design(cells=12))
    planned = plan.make(sweep, {})
    assert sweep.name == "calibrate"
    assert [artifact.kind for artifact in planned.artifacts.values()] == ["export", "reference"]
    assert len({cell.id for cell in planned.cells}) == 12
    assert [calibration.number(cell.workload_name) for cell in planned.cells] == list(range(1, 13))
    assert sweep.recipes["slower_3"].session.slowdown == 0.03
    assert not sweep.measure.confirm


@pytest.mark.parametrize(
    "changed",
    [
        {"cells": 30}, {"slowed_every": 4}, {"slowed_every": 0}, {"slowdowns": (0.005, 0.02, 0.1)}, {"restarts": 3},
        {"blocks": 2}, {"runs": 3}, {"half_width": 0.02}, {"budget_s": 5.0}, {"threads": 2}, {"seed": 8},
        {"provider": "CUDAExecutionProvider"}, {"hidden_size": 64}, {"layers": 1}, {"sequence": 16},
    ],
)  # fmt: skip
def test_all_of_a_design_is_part_of_its_sweep_and_read_back_from_it(changed: dict[str, Any]) -> None:
    design = replace(Design(), **changed)
    written = calibration.sweep(design).model_dump(mode="json")
    assert written != calibration.sweep(Design()).model_dump(mode="json")
    # recipes that no cell has are not in the sweep
    expected = design if design.slowed_every else replace(design, slowdowns=())
    assert calibration.design_of(Sweep.model_validate(written)) == expected


def test_a_sweep_that_is_no_calibration_has_no_design() -> None:
    sweep = calibration.sweep(Design()).model_copy(update={"name": "report"})
    with pytest.raises(InputError, match="'report' is a sweep and no calibration"):
        calibration.design_of(sweep)
    with pytest.raises(InputError, match="'prefill' is not a cell"):
        calibration.number("prefill")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cells": 0}, "--cells 0: at least 1"),
        ({"cells": 10_000}, "--cells 10000: at most 9999"),
        ({"cells": 2}, "--slowed-every 3: at most 2"),
        ({"slowed_every": -1}, "--slowed-every -1: at least 0"),
        ({"restarts": 1}, "--restarts 1: at least 2"),
        ({"blocks": 0}, "--blocks 0"),
        ({"runs": 1}, "--runs 1: at least 2"),
        ({"threads": 0}, "--threads 0"),
        ({"seed": -1}, "--seed -1"),
        ({"half_width": 0.0}, "--half-width 0: above 0 and below 1"),
        ({"half_width": 1.0}, "--half-width 1"),
        ({"half_width": float("nan")}, "--half-width nan"),
        ({"budget_s": 0.0}, "--budget 0: above 0"),
        ({"budget_s": float("inf")}, "--budget inf"),
        ({"slowdowns": (0.03, -0.01)}, "--slowdown -0.01"),
        ({"slowdowns": (0.03, 0.03)}, "--slowdown: 0.03, 0.03 has a share twice"),
        ({"slowdowns": ()}, "--slowdown: at least one"),
        ({"hidden_size": 30}, "hidden size 30: a multiple of 4"),
    ],
)
def test_a_value_out_of_range_names_its_option(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as problem:
        Design(**changed)
    assert said in str(problem.value)
