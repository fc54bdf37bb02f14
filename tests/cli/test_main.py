"""The command line as a whole: help, version, errors and exit statuses."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from llama_bench import __version__
from llama_bench.cli import main
from llama_bench.errors import InputError, WorkError


@pytest.fixture
def with_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], CliRunner]:
    """Put a command `try` into the table, so that what it raises goes the way of every command's errors."""

    def put(function: Callable[[], None]) -> CliRunner:
        monkeypatch.setitem(main.COMMANDS, "try", (function, "no examples"))
        monkeypatch.delenv(main.DEBUG, raising=False)
        return CliRunner()

    return put


def _raiser(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        """Raise."""
        raise error

    return command


@pytest.mark.parametrize(("error", "status"), [(InputError("wrong key"), 2), (WorkError("no room"), 1)])
def test_an_error_for_people_is_one_line_on_stderr_and_its_exit_status(
    with_command: Callable[[Callable[[], None]], CliRunner], error: Exception, status: int
) -> None:
    result = with_command(_raiser(error)).invoke(main.make_app(), ["try"])
    assert (result.exit_code, result.stdout, result.stderr) == (status, "", f"error: {error}\n")


def test_an_unexpected_error_says_how_to_get_the_traceback_and_shows_none(
    with_command: Callable[[Callable[[], None]], CliRunner],
) -> None:
    result = with_command(_raiser(ZeroDivisionError("by zero\nsecond line"))).invoke(main.make_app(), ["try"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "unexpected ZeroDivisionError: by zero"
    assert main.DEBUG in result.stderr.splitlines()[1]
    assert len(result.stderr.splitlines()) == 2


@pytest.mark.parametrize(("arguments", "environment"), [(["--debug", "try"], {}), (["try"], {main.DEBUG: "1"})])
def test_debug_shows_the_traceback(
    with_command: Callable[[Callable[[], None]], CliRunner],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
) -> None:
    runner = with_command(_raiser(ZeroDivisionError("by zero")))
    monkeypatch.setenv(main.DEBUG, "")  # so that what --debug sets is taken back after the test
    result = runner.invoke(main.make_app(), arguments, env=environment)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr


def test_an_interrupted_run_says_that_finished_work_stays(
    with_command: Callable[[Callable[[], None]], CliRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = with_command(_raiser(KeyboardInterrupt()))
    monkeypatch.setitem(main.COMMANDS, "run", main.COMMANDS["try"])
    interrupted_run = runner.invoke(main.make_app(), ["run"])
    assert interrupted_run.exit_code == 130
    assert "on disk" in interrupted_run.stderr
    assert "same command goes on" in interrupted_run.stderr
    assert runner.invoke(main.make_app(), ["try"]).stderr == "interrupted\n"


def test_a_wrong_option_is_a_usage_error_with_status_2() -> None:
    result = CliRunner().invoke(main.make_app(), ["passes", "--nonsense"])
    assert result.exit_code == 2
    assert "--nonsense" in result.stderr
    assert "Traceback" not in result.stderr


def test_version_is_the_packages() -> None:
    result = CliRunner().invoke(main.make_app(), ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"llama_bench {__version__}\n")


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = CliRunner().invoke(main.make_app(), [name, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0
    examples = [line.strip() for line in main.COMMANDS[name][1].strip().splitlines()]
    shown = re.sub(r"\s+", " ", result.stdout)
    for line in examples:
        assert re.sub(r"\s+", " ", line) in shown


def test_without_a_command_the_help_is_shown() -> None:
    result = CliRunner().invoke(main.make_app(), [])
    assert result.exit_code == 0
    for name in main.COMMANDS:
        assert name in result.stdout


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    heavy = [
        "torch",
        "onnx",
        "onnxruntime",
        "ray",
        "polars",
        "altair",
        "numpy",
        "transformers",
        "pyarrow",
        "obstore",
        "pydantic",
    ]
    code = (
        "import sys; sys.argv = ['llama_bench', '--help']\n"
        "from llama_bench.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('LOADED', *[name for name in {heavy} if name in sys.modules])"
    )
    bare = (
        "import sys, typer, rich.table; app = typer.Typer(); app.command()(lambda: None); "
        "sys.argv = ['x', '--help']; app()"
    )
    seconds: dict[str, list[float]] = {code: [], bare: []}  # of CPU
    for _ in range(20):  # side by side: what else the machine does meets both
        for program, took in seconds.items():
            begin = _cpu_s_of_children()
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
            took.append(_cpu_s_of_children() - begin)
            assert program is bare or done.stdout.splitlines()[-1].strip() == "LOADED"
        if min(seconds[code]) < 2 * min(seconds[bare]):
            return
    pytest.fail(f"--help takes {min(seconds[code]):.2f} s of CPU, a bare program's {min(seconds[bare]):.2f} s")


def _cpu_s_of_children() -> float:
    """Seconds that the processes waited for so far have computed: a core that others take does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_module_runs_as_a_program_and_honours_no_color() -> None:
    environment = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": ""}
    done = subprocess.run(
        [sys.executable, "-m", "llama_bench", "--help"], capture_output=True, text=True, env=environment, check=True
    )
    assert "sweeps/quick.yaml" in done.stdout
    assert "\x1b[3" not in done.stdout
