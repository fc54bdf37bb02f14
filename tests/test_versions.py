"""Fingerprints of code and libraries."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_bench import versions
from llama_bench.errors import WorkError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a package with two parts that hash differently."""
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "slot.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "graph.py").write_text("c = 3\n")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    return tmp_path


def test_an_edit_changes_the_hash_of_its_part_and_of_no_other(package: Path) -> None:
    bench, graph = versions.code("bench"), versions.code("graph")
    (package / "bench" / "slot.py").write_text("a = 1\nb = 3\n")
    assert versions.code("bench") != bench
    assert versions.code("graph") == graph


def test_line_ends_and_the_order_of_parts_change_nothing(package: Path) -> None:
    before = versions.code("bench", "graph")
    (package / "bench" / "slot.py").write_bytes(b"a = 1\r\nb = 2\r\n")
    assert versions.code("graph", "bench") == before


def test_moving_code_to_another_file_changes_the_hash(package: Path) -> None:
    before = versions.code("bench")
    (package / "bench" / "slot.py").rename(package / "bench" / "slots.py")
    assert versions.code("bench") != before


def test_a_part_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no part 'bnech'"):
        versions.code("bnech")


def test_stages_name_the_versions_that_shape_what_they_build() -> None:
    stages = versions.stages()
    assert {"export", "reference", "onnxoptimizer"} <= set(stages)
    assert "torch=" in stages["export"]
    assert "onnxoptimizer=" in stages["onnxoptimizer"]
    assert "missing" not in " ".join(stages.values())


def test_libraries_name_one_build_of_onnx_runtime() -> None:
    found = versions.libraries()
    assert {"torch", "onnx", "numpy", "ray", "llama_bench", "python"} <= set(found)
    assert sum(name in found for name in versions.ENGINE) == 1


def test_two_builds_of_onnx_runtime_are_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_version", lambda name: "1.0")
    with pytest.raises(WorkError, match="uninstall"):
        versions.libraries()


def test_the_measuring_fingerprint_covers_parts_that_exist_and_no_reports() -> None:
    assert len(versions.measuring()) == 64
    assert not {"report", "cli", "stats"} & set(versions.MEASURING)


def test_every_family_of_passes_has_a_build_stage_whose_versions_are_known() -> None:
    from llama_bench.passes import PASSES

    assert set(versions.STAGES) == {"export", "reference", "own export", "own reference", *PASSES}
