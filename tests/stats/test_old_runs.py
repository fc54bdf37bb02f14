"""Runs that older versions measured, and that the documentation shows, are read as they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_bench.report import write_report
from llama_bench.stats import views

RESULTS = Path(__file__).parents[2] / "docs" / "results"
RUNS = sorted(
    path.parent
    for sweep in ("report", "gemm", "quick_gpu")
    for path in RESULTS.glob(f"{sweep}/*/run.json")
    if path.parent.name < "20261124"  # later ones have all that these lack
)


@pytest.fixture(scope="module", params=RUNS, ids=lambda path: f"{path.parent.name}-{path.name[:15]}")
def frames(request: pytest.FixtureRequest) -> views.Frames:
    return views.load(request.param)


def test_there_are_old_runs() -> None:
    assert len(RUNS) >= 4


def test_every_view_is_there_and_what_was_not_measured_is_null(frames: views.Frames) -> None:
    speedups = frames.speedups.collect()
    assert "baseline" in set(speedups["verdict"])
    assert speedups["tokens_per_s"].drop_nulls().len() > 0
    accuracy = frames.accuracy_by_arm.collect()
    assert accuracy["max_rel"].null_count() == 0
    assert accuracy["perplexity"].null_count() == accuracy.height > 0
    sizes = frames.sizes.collect()
    assert sizes["disk_bytes"].null_count() == 0
    assert sizes["peak_bytes"].null_count() == sizes["device_bytes"].null_count() == sizes.height > 0
    assert frames.generation.collect().is_empty()
    assert frames.generations.collect().is_empty()
    assert frames.timings.collect()["token_s"].null_count() == frames.timings.collect().height


def test_the_documented_verdicts_of_the_study_stand() -> None:
    [cpu] = [path for path in RUNS if path.name.startswith("20261123-134136")]
    query = "SELECT recipe, verdict, saved FROM speedups WHERE hidden_size = 2048 AND target = 'B'"
    found = {row["recipe"]: row for row in views.load(cpu).sql(query).to_dicts()}
    study = ("eliminate_identity", "fuse_transpose_into_gemm", "fuse_matmul_add_bias_into_gemm")
    assert {found[name]["verdict"] for name in study} == {"no-op"}
    assert found["control"]["verdict"] == "control"
    assert [round(found[name]["saved"], 3) for name in study] == [-0.009, -0.006, -0.007]  # docs/study.md


def test_a_report_of_an_old_run_has_no_table_of_what_it_did_not_measure(tmp_path: Path) -> None:
    text = write_report(str(RUNS[0]), tmp_path)[1].read_text()
    assert "| Recipe |" in text
    for heading in ("Accuracy and size", "Perplexity", "Generated text", "Not beaten"):
        assert heading not in text
