"""Rows of a restart, from made-up answers of its arms."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest

from llama_bench.bench.energy import Spent
from llama_bench.bench.interference import Observed
from llama_bench.cluster.rows import restart_rows
from llama_bench.plan import make
from llama_bench.schemas import SCHEMAS
from llama_bench.sweep import Sweep

SEEN = Observed(0.0, 0.1, None, None, None, None, None)
NODE = {"hostname": "h", "cpu": "c", "physical_cores": 2, "logical_cores": 4, "memory_bytes": 8, "gpus": []}
SECONDS = dict.fromkeys(("wall_s", "start_s", "load_s", "warmup_s", "washout_s", "timed_s", "other_s"), 1.0)


def said(pid: int) -> dict[str, Any]:
    check = {"output": "y", "max_abs": 0.0, "max_rel": 0.0, "nonfinite": 0, "bound": 1e-3, "within_bound": True}
    return {
        "start": {"pid": pid, "process_started_at": 1e9 + pid, "niceness": 0},
        "load": {"providers": ["CPUExecutionProvider"], "threads": 2},
        "warmup": {"runs": 3, "seconds": 0.1, "steady": True},
        "check": [check],
        "memory": {"peak_bytes": 10 * pid, "device_bytes": None},
        "generated": [[4, 5]],
        "text": {**check, "output": "text", "perplexity": 9.0},
    }


@pytest.fixture
def rows(sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    cell = make(sweep, {}).cells[0]
    slot = {"block": 0, "at": datetime.now(UTC), "washout_runs": 1, "washout_s": 0.05, "kept": True, "seen": SEEN}
    slot |= {"energy": Spent(30.0, 0.06)}
    slots = [
        {**slot, "position": 0, "arm": "control", "seconds": (0.5, 2.0), "busy_s": (0.0, 0.0), "token_s": ()},
        {
            **slot,
            "position": 1,
            "arm": "original",
            "seconds": (4.0, 1.0),
            "busy_s": (0.5, 0.25),
            "token_s": ((3, 1), (0.5, 0.5)),
        },
    ]
    return restart_rows(
        cell,
        restart=5,
        group=0,
        phase="main",
        started_at=datetime.now(UTC),
        seconds=SECONDS,
        said={"control": said(7), "original": said(8)},
        slots=slots,
        node=NODE,
        moment={"load_1m": 0.5, "versions": "{}"},
        node_id="n",
        texts=lambda sequence, tokens: {"sequence": sequence, "tokens": tokens, "agreed": 1},
    )


def test_every_row_fits_its_schema(rows: dict[str, list[dict[str, Any]]]) -> None:
    for dataset, found in rows.items():
        assert found
        for row in found:
            assert set(row) <= set(SCHEMAS[dataset].names), dataset


def test_a_slots_value_is_the_mean_of_the_logarithms(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [row["log_seconds"] for row in rows["blocks"]] == pytest.approx([0.0, math.log(2)])
    assert [row["timed_s"] for row in rows["blocks"]] == [2.5, 5.0]


def test_each_timing_names_the_process_it_came_from(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [(row["recipe"], row["pid"], row["run_index"]) for row in rows["timings"]] == [
        ("control", 7, 0), ("control", 7, 1), ("original", 8, 0), ("original", 8, 1),
    ]  # fmt: skip
    assert rows["timings"][0]["control"] is True
    assert rows["timings"][2]["control"] is False


def test_pieces_come_last_because_they_make_the_others_count(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert list(rows)[-1] == "pieces"
    assert rows["pieces"][0]["restart"] == 5


def test_what_a_busy_loop_took_is_kept_and_nothing_where_there_was_none(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [row["busy_s"] for row in rows["timings"]] == [None, None, 0.5, 0.25]


def test_every_slot_of_a_block_carries_what_was_seen_around_it(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [(row["kept"], row["cpu_pressure"], row["disturbed"]) for row in rows["blocks"]] == [(True, 0.1, None)] * 2
    assert (rows["pieces"][0]["blocks"], rows["pieces"][0]["dropped"]) == (1, 0)


def test_what_each_token_took_is_kept_with_its_run(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [row["token_s"] for row in rows["timings"]] == [None, None, (3, 1), (0.5, 0.5)]


def test_text_generated_tokens_and_memory_have_rows_of_their_own(rows: dict[str, list[dict[str, Any]]]) -> None:
    assert [(row["recipe"], row["output"]) for row in rows["accuracy"]] == [
        ("control", "y"), ("control", "text"), ("original", "y"), ("original", "text"),
    ]  # fmt: skip
    assert [(row["recipe"], row["sequence"], row["tokens"]) for row in rows["generations"]] == [
        ("control", 0, [4, 5]), ("original", 0, [4, 5]),
    ]  # fmt: skip
    assert [row["peak_bytes"] for row in rows["machines"]] == [70, 80]
