"""`run`: what it says and its exit status, for what a run may end with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from llama_bench.cli.main import make_app
from llama_bench.cluster import driver
from llama_bench.cluster.events import Event, RunResult
from llama_bench.errors import WorkError

SWEEP = """
name: synthetic
models: {sizes: [{hidden_size: 512, num_attention_heads: 4}]}
recipes: {original: {}, eliminate_identity: {passes: [{onnxoptimizer: eliminate_identity}]}}
workloads: {prefill: {sequence: 8}}
targets: {A: {tag: bench_gpu, provider: CUDAExecutionProvider}, B: {tag: bench_cpu}}
"""

Invoke = Callable[..., Result]


def _result(run: str = "synthetic/none", **changed: Any) -> RunResult:
    known: dict[str, Any] = {"breakdown": {"build": 3.0, "timed": 9.0}, "measured": 0, "reused": 0}
    return RunResult(**({"run": run, "failures": [], "unserved": {}} | known | changed))


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run the command with a driver that sends `events` and then returns or raises `outcome`."""
    sweep = tmp_path / "synthetic.yaml"
    sweep.write_text(SWEEP)

    def call(outcome: RunResult | BaseException, *options: str, events: tuple[Event, ...] = ()) -> Result:
        def run(sweep: Any, store: Any, *, on_event: Callable[[Event], None], **more: Any) -> RunResult:
            for event in events:
                on_event(event)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(driver, "run", run)
        store = ["--store", str(tmp_path / "results")]
        return CliRunner().invoke(make_app(), ["run", str(sweep), *store, *options])

    return call


def test_a_finished_run_prints_its_tables_where_the_time_went_and_where_the_results_lie(
    invoke: Invoke, synthetic: ModuleType, tmp_path: Path
) -> None:
    folder = synthetic.world({"half": synthetic.Truth(ratio=0.5, executed="other", changed=3)}).write(
        tmp_path / "results"
    )
    run = f"{folder.parent.name}/{folder.name}"
    result = invoke(_result(run, measured=6), events=(Event("note", "joined Ray"),))
    assert result.exit_code == 0, result.stderr
    assert "| half |" in result.stdout
    assert "faster" in result.stdout
    assert "75%" in result.stdout
    assert f"6 measured, 0 reused; results in {folder}" in result.stdout
    assert (folder / "report" / "report.html").is_file()
    assert "joined Ray" in result.stderr
    assert "joined Ray" not in result.stdout


def test_without_a_report_no_table_is_written(invoke: Invoke, synthetic: ModuleType, tmp_path: Path) -> None:
    folder = synthetic.world({}).write(tmp_path / "results")
    result = invoke(_result(f"{folder.parent.name}/{folder.name}", reused=6), "--no-report")
    assert result.exit_code == 0, result.stderr
    assert not (folder / "report").exists()


def test_a_failure_is_named_and_the_status_is_1(invoke: Invoke) -> None:
    result = invoke(_result(measured=1, failures=["nop on h512: no room"]), "--no-report")
    assert result.exit_code == 1
    assert "failed: nop on h512: no room" in result.stderr
    assert "--retry-failed" in result.stderr


def test_a_target_without_a_node_is_a_warning_while_others_were_measured(invoke: Invoke) -> None:
    result = invoke(_result(measured=1, unserved={"A": "no node offers bench_gpu"}), "--no-report")
    assert result.exit_code == 0
    assert "target A was not measured: no node offers bench_gpu" in result.stderr


def test_a_run_that_no_node_could_serve_at_all_has_failed(invoke: Invoke) -> None:
    assert invoke(_result(unserved={"A": "no node offers bench_gpu"})).exit_code == 1


def test_an_interruption_says_that_the_same_command_goes_on(invoke: Invoke) -> None:
    result = invoke(KeyboardInterrupt(), events=(Event("cell", "c", "started", 0, 4),))
    assert result.exit_code == 130
    assert "same command goes on" in result.stderr


def test_work_that_fails_as_a_whole_is_one_line(invoke: Invoke) -> None:
    result = invoke(WorkError("no Ray cluster at 'head:6379'"))
    assert (result.exit_code, result.stderr) == (1, "error: no Ray cluster at 'head:6379'\n")


def test_a_wrong_word_in_only_is_said_before_anything_starts(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(AssertionError("the driver must not start"), "--only", "recipe=eliminate_identify")
    assert result.exit_code == 2
    assert "eliminate_identity" in result.stderr
    assert not (tmp_path / "results").exists()


def test_a_store_that_cannot_be_written_is_wrong_input(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = invoke(AssertionError("the driver must not start"), "--store", str(tmp_path / "file" / "results"))
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) <= 2


def test_quiet_leaves_the_tables_and_what_is_missing(invoke: Invoke, synthetic: ModuleType, tmp_path: Path) -> None:
    folder = synthetic.world({"half": synthetic.Truth(ratio=0.5, executed="other", changed=3)}).write(
        tmp_path / "results"
    )
    outcome = _result(f"{folder.parent.name}/{folder.name}", measured=6, failures=["nop: no room"], unserved={"A": "x"})
    result = invoke(outcome, "--quiet", events=(Event("note", "joined Ray"),))
    assert result.exit_code == 1
    assert "| half |" in result.stdout
    assert "where the time went" not in result.stdout
    assert "joined Ray" not in result.output and "wrote" not in result.output
    assert result.stderr.splitlines()[0] == "warning: target A was not measured: x"
    assert "failed: nop: no room" in result.stderr


def test_json_is_all_that_goes_to_stdout_and_names_the_files_of_the_report(
    invoke: Invoke, synthetic: ModuleType, tmp_path: Path
) -> None:
    folder = synthetic.world({}).write(tmp_path / "results")
    result = invoke(_result(f"{folder.parent.name}/{folder.name}", reused=6), "--json")
    said = json.loads(result.stdout)
    assert (said["reused"], said["path"]) == (6, str(folder))
    assert str(folder / "report" / "report.html") in said["report"]
    assert all(Path(file).is_file() for file in said["report"])
