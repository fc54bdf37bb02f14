"""A report's sweep file is the sweep that was run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llama_bench.cli.common import read_sweep
from llama_bench.report import rerun
from llama_bench.report.document import Code

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["quick", "report", "gemm", "prefill", "optimizations"])
def test_the_file_that_is_written_reads_as_the_same_sweep(name: str, tmp_path: Path) -> None:
    sweep = read_sweep(ROOT / "sweeps" / f"{name}.yaml")
    file = tmp_path / "again.yaml"
    file.write_text(rerun.sweep_file(sweep.model_dump(mode="json")))
    assert read_sweep(file) == sweep
    assert len(file.read_text().splitlines()) < 200


def test_an_own_model_is_written_without_what_follows_from_its_file(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    sweep = read_sweep(tmp_path / "sweeps" / "own.yaml")
    again = tmp_path / "sweeps" / "again.yaml"
    again.write_text(rerun.sweep_file(sweep.model_dump(mode="json")))
    assert "costs" not in again.read_text()
    assert read_sweep(again) == sweep


def test_the_commands_name_the_sweep_and_the_version_that_ran_it() -> None:
    sweep = read_sweep(ROOT / "sweeps" / "quick.yaml").model_dump(mode="json")
    commands, file = rerun.blocks({"sweep": sweep, "versions": {"llama_bench": "1.2.3"}})
    assert isinstance(commands, Code)
    assert isinstance(file, Code)
    assert "llama_bench 1.2.3" in commands.says
    assert "python -m llama_bench run sweeps/quick.yaml" in commands.text
    assert "recipes:" in file.text
