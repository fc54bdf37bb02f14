"""What a shell offers on Tab, through the protocol that the installed completion speaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llama_bench.cli import main

ROOT = Path(__file__).parents[2]

Offers = Callable[[str], list[str]]


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Offers:
    """Give what bash would offer for the last word of a line."""
    monkeypatch.chdir(ROOT)

    def ask(line: str) -> list[str]:
        words = f"{main.PROGRAM} {line}"
        environment = {
            "_LLAMA_BENCH_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        return CliRunner().invoke(main.make_app(), [], env=environment, prog_name=main.PROGRAM).stdout.split()

    return ask


def test_commands_and_options_are_offered(offers: Offers) -> None:
    assert offers("re") == ["report"]
    assert set(offers("")) == set(main.COMMANDS)
    assert {"--store", "--quiet"} <= set(offers("run --"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("query PATH SQL --format ", ["table", "csv", "json", "parquet"]),
        ("tune --target ", ["cpu", "gpu"]),
        ("tune --workload ", ["prefill", "decode", "generate"]),
        ("calibrate --through r", ["ray"]),
        ("run sweeps/quick", ["sweeps/quick.yaml", "sweeps/quick_gpu.yaml"]),
        ("run q", []),
        ("plan sweeps/parts/", []),  # parts to include are no sweeps
        ("plan sweeps/quick.yaml --only re", ["recipe="]),
        ("plan sweeps/quick.yaml --only recipe=fuse_t", ["recipe=fuse_transpose_into_gemm"]),
        ("plan sweeps/gemm.yaml --only target=x,workload=", ["target=x,workload=prefill"]),
        ("export sweeps/report.yaml --recipe original_l", ["original_level0"]),
        ("export no-such.yaml --recipe o", []),
        ("status docs/results/q", ["docs/results/quick_gpu"]),
    ],
)
def test_the_words_of_an_argument_are_offered(line: str, words: list[str], offers: Offers) -> None:
    assert offers(line) == words


def test_the_runs_of_a_sweep_are_offered_once_it_is_named(offers: Offers) -> None:
    [run] = [path.name for path in (ROOT / "docs/results/quick_gpu").iterdir()]
    assert offers("report docs/results/quick_gpu/") == [f"docs/results/quick_gpu/{run}"]


def test_a_broken_sweep_has_no_words_and_no_traceback(offers: Offers, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: x\nrecipes: [{\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "circle.yaml").write_text("name: c\ninclude: circle.yaml\nrecipes: {original: {}}\n")
    assert offers(f"export {tmp_path}/broken.yaml --recipe ") == []
    assert offers(f"export {tmp_path}/list.yaml --recipe ") == []
    assert offers(f"export {tmp_path}/circle.yaml --recipe ") == ["original"]


def test_completion_imports_nothing_heavy() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "ray", "polars", "altair", "numpy", "pyarrow", "obstore"]
    code = (
        "import sys\nfrom llama_bench.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        f"print('LOADED', *[name for name in {heavy} if name in sys.modules])"
    )
    words = "llama-bench export sweeps/report.yaml --recipe original_l"
    asked = {"_LLAMA_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "4"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | asked, cwd=ROOT
    )
    assert done.stdout.split() == ["original_level0", "LOADED"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_completes_the_program_that_pip_installs(
    shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    result = CliRunner().invoke(main.make_app(), ["--show-completion", shell], prog_name=main.PROGRAM)
    assert result.exit_code == 0, result.output
    assert "llama-bench" in result.stdout and "_LLAMA_BENCH_COMPLETE" in result.stdout
