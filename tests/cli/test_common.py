"""Numbers for people, and the store that an option names."""

from __future__ import annotations

from pathlib import Path

import pytest

from llama_bench.cli import common
from llama_bench.cli.common import READING_TRIES, duration, reading, size
from llama_bench.errors import InputError, WorkError


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1_850_000_000, "1.9 GB"), (147e6, "147 MB"), (5e15, "5000 TB")],
)
def test_bytes_have_two_or_three_digits(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0034, "3.4 ms"),
        (4.2, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (80, "1 min 20 s"),
        (5400, "1 h 30 min"),
    ],
)
def test_seconds_are_said_in_the_unit_people_would_take(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_results_that_are_folded_while_they_are_read_are_read_again() -> None:
    tries = iter([FileNotFoundError("c-r0000.parquet"), FileNotFoundError("c-r0001.parquet"), None])

    def work() -> str:
        if error := next(tries):
            raise error
        return "read"

    assert reading("results/quick", work) == "read"


def test_results_that_change_all_the_time_are_said_to_and_not_waited_for() -> None:
    tried = []

    def work() -> None:
        tried.append(1)
        raise FileNotFoundError("c-r0000.parquet")

    with pytest.raises(WorkError, match="results/quick: its parts change faster than they can be read"):
        reading("results/quick", work)
    assert len(tried) == READING_TRIES


def test_a_relative_store_is_refused_in_a_submitted_job_and_taken_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert common.open_store("here").root == tmp_path / "here"
    monkeypatch.setenv(common.RAY_JOB, "{}")
    with pytest.raises(InputError, match=r"--store here: a submitted job runs in a temporary copy"):
        common.open_store("here")
    assert common.open_store(str(tmp_path / "there")).root == tmp_path / "there"
    assert common.open_store("memory://").root is None
