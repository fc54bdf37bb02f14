"""`calibrate`: what it asks the runner for, what it prints, and a tiny one from end to end."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llama_bench.calibration import Design
from llama_bench.cli import calibrate as cli
from llama_bench.cli.common import run_as_dict
from llama_bench.cli.main import make_app
from llama_bench.cluster import calibrate as runner
from llama_bench.cluster.events import Event, RunResult
from llama_bench.store import Store

synthetic = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "stats" / "synthetic_calibration.py")))

SMALL = Design(cells=3, restarts=3, blocks=2, runs=4)

Invoke = Callable[..., Result]


@pytest.fixture
def asked() -> dict[str, Any]:
    """What the runner was called with."""
    return {}


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> Invoke:
    """Run the command with a runner that sends one event and then returns or raises `outcome`."""

    def call(outcome: RunResult | BaseException, *options: str) -> Result:
        def run(
            design: Design, store: Store, *, through: str, beside: int, on_event: Callable[[Event], None]
        ) -> RunResult:
            asked.update(design=design, store=store, through=through, beside=beside)
            on_event(Event("cell", "m/cell-0001/here", "started", 0, 6))
            on_event(Event("cell", "m/cell-0001/here", "finished"))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(runner, "run", run)
        return CliRunner().invoke(make_app(), ["calibrate", "--store", str(tmp_path / "results"), *options])

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(synthetic.write(tmp_path / "results", *synthetic.measured(SMALL)))


def _result(folder: Path | None = None, **changed: Any) -> RunResult:
    run = f"calibrate/{folder.name}" if folder else "calibrate/none"
    return RunResult(run, **{"breakdown": {"timed": 9.0}, "measured": 3 if folder else 0, **changed})


def test_options_become_the_design_and_what_is_left_out_its_defaults(invoke: Invoke, asked: dict[str, Any]) -> None:
    assert invoke(_result()).exit_code == 0
    assert (asked["design"], asked["through"], asked["beside"]) == (Design(), "processes", 1)
    options = "--cells 9 --slowdown 0.005 --slowdown 0.02 --slowed-every 2 --restarts 4 --blocks 3 --runs 6"
    more = (
        "--half-width 0.02 --budget 12 --threads 2 --provider CUDAExecutionProvider --seed 3 --through ray --beside 4"
    )
    assert invoke(_result(), *options.split(), *more.split()).exit_code == 0
    assert asked["design"] == Design(
        9, 2, (0.005, 0.02), 4, 3, 6, 0.02, 12.0, threads=2, provider="CUDAExecutionProvider", seed=3
    )
    assert (asked["through"], asked["beside"]) == ("ray", 4)


def test_it_says_beforehand_how_many_processes_it_starts_and_how_long_that_takes(invoke: Invoke) -> None:
    result = invoke(KeyboardInterrupt(), "--cells", "6")
    assert (
        "6 cells compare a program with itself, 2 of them also slowdowns of 1 % and 3 %: 96 processes" in result.stderr
    )
    assert "About " in result.stderr
    assert "at most 2 min" in result.stderr
    assert result.exit_code == 130


def test_the_forecast_grows_with_the_cells_and_only_slowed_ones_can_take_longer() -> None:
    pilot_s, most_s = cli.seconds(Design(cells=30))
    assert most_s > pilot_s
    assert cli.seconds(Design(cells=60)) == pytest.approx((2 * pilot_s, 2 * most_s))
    alone_s, alone_most_s = cli.seconds(Design(cells=30, slowed_every=0))
    assert alone_s == alone_most_s < pilot_s
    assert "at most" not in cli.forecast(Design(slowed_every=0))
    assert 60 * 5 < cli.seconds(Design())[0] < 60 * 20


def test_a_finished_calibration_prints_its_table_and_where_it_lies(invoke: Invoke, folder: Path) -> None:
    result = invoke(_result(folder))
    assert result.exit_code == 0, result.stderr
    assert "| llama_bench |" in result.stdout
    assert "cell finished: m/cell-0001/here" in result.stderr
    assert f"3 measured, 0 reused in 9.0 s; results in {folder}" in result.stderr
    assert (folder / "calibration" / "calibration.png").is_file()


def test_a_failure_is_named_and_the_status_is_1(invoke: Invoke, folder: Path) -> None:
    result = invoke(_result(folder, failures=["cell-0002: killed"]))
    assert result.exit_code == 1
    assert "failed: cell-0002: killed" in result.stderr
    assert "| llama_bench |" in result.stdout
    assert invoke(_result(unserved={"here": "no node offers bench_gpu"})).exit_code == 1


def test_a_calibration_is_shown_again_without_measuring(invoke: Invoke, folder: Path, asked: dict[str, Any]) -> None:
    before = sorted(folder.rglob("*"))
    for path in (folder, folder.parent):
        result = invoke(AssertionError("nothing is measured"), "--show", str(path))
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith("# Calibration")
        assert "| pooled t |" in result.stdout
    assert asked == {}
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "0"], "--cells 0: at least 1"),
        (["--cells", "2"], "--slowed-every 3: at most 2"),
        (["--slowdown", "0"], "--slowdown 0: above 0"),
        (["--provider", "CUDAExecutionProvidr"], "did you mean 'CUDAExecutionProvider'?"),
    ],
)
def test_a_wrong_option_is_said_before_anything_starts(
    invoke: Invoke, asked: dict[str, Any], tmp_path: Path, options: list[str], said: str
) -> None:
    result = invoke(AssertionError("the runner must not start"), *options)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert asked == {}
    assert not (tmp_path / "results").exists()


def test_showing_what_is_no_calibration_is_wrong_input(tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["calibrate", "--show", str(tmp_path)])
    assert result.exit_code == 2
    assert "no run of llama_bench here" in result.stderr


@pytest.mark.slow
def test_a_tiny_calibration_runs_from_end_to_end_and_the_same_command_measures_nothing_again(tmp_path: Path) -> None:
    store = tmp_path / "results"
    options = "--cells 2 --slowed-every 2 --slowdown 0.2 --restarts 2 --blocks 2 --runs 3 --half-width 0.9 --budget 1"
    command = ["calibrate", "--store", str(store), *options.split()]
    first = CliRunner().invoke(make_app(), command)
    assert first.exit_code == 0, first.stderr
    assert "2 measured, 0 reused" in first.stderr
    [run] = [path for path in (store / "calibrate").iterdir() if path.is_dir()]
    found = _calibration(run)
    assert found.left_out == ()
    assert found.comparisons["recipe"].to_list() == ["control", "control", "slower_20"]
    # what the busy loops took by their own clock: a busy machine gives no run the share that was asked for
    assert found.ours[1].truth == pytest.approx(math.expm1(_log_taken(run)))
    assert found.ours[1].truth > 0
    assert found.comparisons["restarts"].to_list() == [2, 2, 2]
    assert _processes(run) == 2 * (2 + 3)
    again = CliRunner().invoke(make_app(), command)
    assert again.exit_code == 0, again.stderr
    assert "0 measured, 2 reused" in again.stderr
    assert again.stdout == first.stdout


def _calibration(run: Path) -> Any:
    from llama_bench.stats import views
    from llama_bench.stats.calibration import calibrate

    return calibrate(views.load(run))


def _log_taken(run: Path) -> float:
    """The mean log ratio of a run's seconds with its busy loop and without it; each restart has as many runs."""
    from llama_bench.stats import views

    rows = views.load(run).timings.drop_nulls("busy_s").collect().to_dicts()
    return sum(math.log(row["seconds"] / (row["seconds"] - row["busy_s"])) for row in rows) / len(rows)


def _processes(run: Path) -> int:
    """How many processes the timings come from."""
    from llama_bench.stats import views

    return int(views.load(run).timings.select("pid", "process_started_at").unique().collect().height)


def test_report_on_a_calibration_writes_its_table_and_chart(folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(make_app(), ["report", str(folder), "--out", str(tmp_path / "again")])
    assert result.exit_code == 0, result.stderr
    assert [Path(line).name for line in result.stdout.splitlines()] == [
        "calibration.md", "calibration.svg", "calibration.png", "calibration.json",
    ]  # fmt: skip


def test_json_is_all_that_goes_to_stdout_and_show_prints_the_same_numbers(invoke: Invoke, folder: Path) -> None:
    result = invoke(_result(folder), "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert set(said) - {"calibration"} == set(run_as_dict(_result(folder), ""))
    assert said["calibration"] == json.loads((folder / "calibration" / "calibration.json").read_text())
    shown = invoke(AssertionError("nothing is measured"), "--show", str(folder), "--json")
    assert json.loads(shown.stdout) == said["calibration"]


def test_json_of_a_calibration_that_measured_nothing_has_none(invoke: Invoke) -> None:
    assert json.loads(invoke(_result(), "--json").stdout)["calibration"] is None
