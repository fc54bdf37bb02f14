from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from llama_bench.calibration import Design
from llama_bench.errors import InputError, WorkError
from llama_bench.report import calibration as report
from llama_bench.stats.calibration import Calibration, calibrate
from llama_bench.stats.procedures import PROCEDURES

synthetic = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parents[1] / "stats" / "synthetic_calibration.py")),
)

DESIGN = Design(cells=12, restarts=3, blocks=2, runs=4)


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    return synthetic.measured(DESIGN, spread=0.002, noise=0.001)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def found(measured: tuple[dict[str, Any], dict[str, pl.DataFrame]]) -> Calibration:
    return calibrate(synthetic.frames(*measured))


@pytest.fixture(scope="module")
def run(measured: tuple[dict[str, Any], dict[str, pl.DataFrame]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(synthetic.write(tmp_path_factory.mktemp("store"), *measured))


@pytest.fixture(scope="module")
def files(run: Path) -> list[Path]:
    return report.write_calibration(str(run))


def test_the_files_lie_in_the_runs_folder_the_markdown_first(run: Path, files: list[Path]) -> None:
    names = ["calibration.md", "calibration.svg", "calibration.png", "calibration.json"]
    assert files == [run / "calibration" / name for name in names]
    assert files[1].read_text().startswith("<svg")
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert files[0].read_text().count("\n## ") == 2


def test_the_table_has_a_row_a_procedure_with_rate_interval_and_counts(found: Calibration) -> None:
    table = report.table(found)
    assert table.columns == ("Procedure", "Nothing differs", "1 % slower", "3 % slower", "Wrong sign")
    assert [row[0] for row in table.rows] == list(PROCEDURES)
    for row in table.rows:
        for column, n in zip(row[1:], (12, 4, 4, 8), strict=True):
            match = re.fullmatch(r"([\d.]+) % \[([\d.]+), ([\d.]+)\] \((\d+)/(\d+)\)", column)
            assert match is not None
            rate, low, high = map(float, match.groups()[:3])
            assert low <= rate <= high
            assert int(match[5]) == n
            assert rate == pytest.approx(100 * int(match[4]) / n, abs=0.05)


def test_the_notes_say_how_each_procedure_decides_and_what_the_intervals_did(found: Calibration) -> None:
    notes = report.table(found).notes
    assert [name for name in PROCEDURES if any(note.startswith(f"{name}: ") for note in notes)] == list(PROCEDURES)
    assert "the means of all runs differ by 2 % or more" in " ".join(notes)
    [three] = [note for note in notes if note.startswith("Slowdowns of 3 %")]
    ours = found.ours[-1]
    assert f"({100 * ours.truth:.2f} % by the loops' own clocks)" in three
    assert f"({ours.reached.k}/{ours.reached.n}) reached a half-width of 1 %" in three
    assert f"({ours.found_reached.k}/{ours.found_reached.n}) were found" in three
    assert not any("Left out" in note or "disturbed" in note for note in notes)


def test_few_narrow_intervals_come_with_a_warning_that_they_are_a_selection() -> None:
    few = calibrate(synthetic.frames(*synthetic.measured(replace(DESIGN, cells=60), spread=0.008)))
    assert 0 < few.ours[-1].reached.k < 10
    [warning] = [note for note in report.table(few).notes if note.startswith("Only") and "of 3 %" in note]
    assert "--budget" in warning
    none = calibrate(synthetic.frames(*synthetic.measured(DESIGN, spread=0.2)))
    assert none.ours[-1].reached.k == 0
    assert not any(note.startswith("Only") for note in report.table(none).notes)


def test_cells_left_out_and_disturbed_blocks_are_counted_in_the_notes(
    measured: tuple[dict[str, Any], dict[str, pl.DataFrame]],
) -> None:
    run, rows = measured
    gone = (pl.col("workload") == "cell-0002") & pl.col("control")
    disturbed = pl.when(pl.col("workload") == "cell-0001").then(pl.lit("steal 12 %"))
    spoiled = {**rows, "blocks": rows["blocks"].filter(~gone).with_columns(disturbed=disturbed)}
    notes = " ".join(report.table(calibrate(synthetic.frames(run, spoiled))).notes)
    assert "Left out are 1 of 12 cells: 1 unfinished (such as cell-0002: control has 0 of 3 restarts)." in notes
    assert "Of 72 blocks 0 were disturbed, dropped for all arms and timed again; 6 were disturbed and kept." in notes


def test_the_lines_for_a_readme_are_at_most_ten_and_name_the_machine(found: Calibration) -> None:
    text = report.readme(found, ["A | CPU, 2 cores"])
    assert len(text.splitlines()) <= 10
    assert text.startswith("12 cells on A \\| CPU, 2 cores: how often")
    assert text.count("\n| ") == 2 + len(PROCEDURES)


def test_the_json_holds_every_number_and_comparison(files: list[Path], found: Calibration) -> None:
    data = json.loads(files[3].read_text())
    assert data["design"]["cells"] == 12
    assert data["cells"] == {"planned": 12, "used": 12}
    assert len(data["rates"]) == 3 * len(PROCEDURES)
    assert data["rates"][0]["claimed"]["n"] == 12
    assert data["intervals"][2]["truth"] == found.ours[2].truth
    assert data["comparisons"] == found.comparisons.to_dicts()
    assert data["facts"][0] == "A CPU, 2 cores"
    assert data["facts"][1].endswith("1.5 (median)")


def test_the_chart_has_a_panel_a_slowdown_with_every_procedure_and_a_line_at_five_percent(found: Calibration) -> None:
    chart = report.chart(found)
    panels = chart.spec["hconcat"]
    assert [panel["title"]["text"] for panel in panels] == ["Nothing differs", "1 % slower", "3 % slower"]
    data = [rows for rows in chart.spec["datasets"].values() if "procedure" in rows[0]]
    assert sorted(len(rows) for rows in data) == [5, 5, 5]
    assert [{"rate": pytest.approx(0.05)}] in list(chart.spec["datasets"].values())
    assert all(0 <= row["low"] <= row["rate"] <= row["high"] <= 1 for rows in data for row in rows)


def test_a_calibration_of_which_nothing_is_finished_is_written_too(
    measured: tuple[dict[str, Any], dict[str, pl.DataFrame]], tmp_path: Path
) -> None:
    text = report.write(synthetic.frames(measured[0], {}), tmp_path)[0].read_text()
    assert "| llama_bench | – | – | – | – |" in text
    assert "Left out are 12 of 12 cells" in text


def test_without_slowed_cells_the_table_and_the_chart_have_false_alarms_alone() -> None:
    design = Design(cells=4, slowed_every=0, restarts=3, blocks=2, runs=4)
    found = calibrate(synthetic.frames(*synthetic.measured(design)))
    assert report.table(found).columns == ("Procedure", "Nothing differs")
    assert len(report.chart(found).spec["hconcat"]) == 1
    assert "none has slowed arms" in report.page(found, ["a machine"])


def test_it_can_go_elsewhere_and_a_folder_that_cannot_be_written_is_failed_work(run: Path, tmp_path: Path) -> None:
    assert report.write_calibration(str(run.parent), tmp_path / "deep")[0].is_file()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkError, match="cannot write"):
        report.write_calibration(str(run), tmp_path / "file" / "calibration")


def test_the_run_of_a_sweep_is_wrong_input(synthetic: Any, tmp_path: Path) -> None:
    folder = synthetic.world({}).write(tmp_path)
    with pytest.raises(InputError, match="no calibration"):
        report.write_calibration(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
