"""The table of passes: what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_bench import passes
from llama_bench.errors import InputError
from llama_bench.sweep import Model, Pass, Workload


def test_every_family_of_the_table_can_be_applied() -> None:
    assert set(passes.PASSES) == set(passes.APPLY)


def test_every_pass_has_a_summary_of_one_line() -> None:
    for table in passes.PASSES.values():
        for name, info in table.items():
            assert info.summary.endswith("."), name
            assert "\n" not in info.summary, name
            assert len(info.summary) <= 100, name


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("onnxoptimiser", "nop", "unknown pass family 'onnxoptimiser'; did you mean 'onnxoptimizer'?"),
        ("onnxoptimizer", "fuse_transpose_in_gemm", "did you mean 'fuse_transpose_into_gemm'?"),
        ("onnxoptimizer", "split_init", "onnxoptimizer: split_init cannot be used: it cuts the model in two"),
        ("onnxoptimizer", "rewrite_input_dtype", "cannot be used: it changes the type of the model's inputs"),
    ],
)
def test_wrong_and_unusable_passes_are_refused_by_name(family: str, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        model = Model(hidden_size=16, num_attention_heads=2)
        passes.apply(
            Pass(family=family, name=name), tmp_path, tmp_path / "made", model, Workload(sequence=8), tmp_path / "state"
        )
    assert message in str(error.value)
    assert not (tmp_path / "made").exists()
