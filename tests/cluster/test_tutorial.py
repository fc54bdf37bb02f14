"""docs/tutorial.md, from its first command to its last, on a real Ray; only its sizes and repetitions are cut down."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from llama_bench.cli.main import make_app

from ..documents import ROOT, Block, blocks
from ..messages import covers, messages

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("local_ray")]

TUTORIAL = blocks(ROOT / "docs/tutorial.md")

SMALL = {"restarts": 2, "blocks": 1, "runs": 2, "confirm": False}
"""What is left of `measure`: the tutorial's words are tried here, not its numbers."""

IDENTITY = {"onnxoptimizer": "eliminate_identity"}

SET_UP = ("python3 -m venv .venv", ".venv/bin/pip install -e .", "source .venv/bin/activate")
"""Commands that make the environment, in which this test runs already."""


def cut_down(file: Path, **parts: Any) -> None:
    """Leave few repetitions of a sweep and one tiny model; `parts` replace parts of it."""
    yaml = YAML()
    sweep = yaml.load(file)
    sweep["models"]["sizes"] = [{"hidden_size": 128, "intermediate_size": 352}]  # one of the tutorial's
    sweep["measure"].update(SMALL)
    sweep.update(parts)
    yaml.dump(sweep, file)


def ran(words: list[str]) -> str:
    """Run one command of the tutorial; return what it printed."""
    line = " ".join(words)
    if line in SET_UP:
        return ""
    if words[0] == "sed":
        subprocess.run(words, check=True)
        return ""
    assert words[:3] == ["python", "-m", "llama_bench"], line
    result = CliRunner().invoke(make_app(), words[3:])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> list[tuple[Block, str]]:
    """Follow the tutorial in a fresh checkout; give each block and what the commands before it had printed."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "sweeps", folder / "sweeps")
    quick = folder / "sweeps/quick.yaml"
    cut_down(quick, include=[], recipes={"original": {}, "eliminate_identity": {"passes": [IDENTITY]}})
    built = {part: YAML(typ="safe").load(quick)[part] for part in ("models", "workloads")}
    said, told = "", []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in TUTORIAL:
            if block.language == "yaml":
                (folder / "sweeps/mine.yaml").write_text(block.text, encoding="utf-8")
                cut_down(folder / "sweeps/mine.yaml", **built)  # so that its model is built already
            elif block.language == "bash":
                said = "\n".join(ran(words) for words in block.commands)
            told.append((block, said))
    return told


def test_every_output_that_the_tutorial_shows_is_what_its_commands_print(printed: list[tuple[Block, str]]) -> None:
    shown = [(block, said) for block, said in printed if block.language == "text"]
    assert shown
    for block, said in shown:
        for line in block.text.splitlines():
            if line.startswith("doubtful here: "):  # differs between machines: one of those that there are
                doubt = line.split(": ", 2)[2]
                assert [one for one in messages() if covers(one.text, doubt)], f"{block}: {line}"
            else:
                assert " ".join(line.split()) in " ".join(said.split()), f"{block}: {line}"


def _after(printed: list[tuple[Block, str]], begin: str, which: int = 0) -> str:
    """Return what the block printed whose commands begin so."""
    found = [said for block, said in printed if block.language == "bash" and block.text.startswith(begin)]
    return found[which]


def test_the_pass_that_finds_nothing_is_a_no_op_with_the_evidence_that_the_tutorial_tells_of(
    printed: list[tuple[Block, str]],
) -> None:
    said = _after(printed, 'python -m llama_bench query results/quick "SELECT model')
    [row] = [line for line in said.splitlines() if "eliminate_identity" in line]
    assert "no-op" in row
    assert "changed 0 nodes" in " ".join(said.split())


def test_the_same_command_again_measures_nothing_and_prints_the_tables(printed: list[tuple[Block, str]]) -> None:
    first, again = (_after(printed, "python -m llama_bench run sweeps/mine.yaml", which) for which in (0, 1))
    assert "1 measured, 0 reused" in first
    assert "0 measured, 1 reused" in again
    for said in (first, again):
        assert re.search(r"^\| unoptimised \|", said, flags=re.MULTILINE)


def test_the_sweep_of_the_tutorial_is_about_fifteen_lines() -> None:
    [block] = [block for block in TUTORIAL if block.language == "yaml"]
    assert len(block.text.splitlines()) <= 16
