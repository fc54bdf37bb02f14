from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report import tables
from llama_bench.stats import views


def made(world: Any) -> tuple[pl.DataFrame, pl.DataFrame, Any]:
    frames = views.make(world.run, world.datasets())
    return frames.speedups.collect(), frames.cells.collect(), world.run


def test_a_table_holds_the_studys_columns_and_more_for_every_arm(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fast": Truth(0.8, executed="aa", changed=5),
            "idle": Truth(removed={"Identity": 4}),
            "bad": Truth(failure="no"),
        },
        sizes=(512, 2048),
    )
    large, small = tables.results(*made(world))
    assert "h2048" in large.title
    assert "h512" in small.title
    assert large.columns == (
        "Recipe", "Mean (ms)", "Median (ms)", "p90 (ms)", "Tokens/s", "Of limit", "Saved", "Speedup [low, high]",
        "Verdict", "Nodes changed", "Restarts",
    )  # fmt: skip
    rows = {row[0]: row for row in large.rows}
    assert list(rows) == ["original", "fast", "idle", "bad", "control (original again)"]
    assert rows["original"][5:9] == ("–", "–", "–", "baseline")
    assert rows["fast"][6].startswith("+")
    assert rows["fast"][7].startswith("1.2")
    assert rows["fast"][8:] == ("faster", "5", "6")
    assert rows["bad"][1:9] == ("–",) * 7 + ("failed",)
    notes = "\n".join(large.notes)
    assert "idle (no-op): removes 4 nodes (4 Identity) that ONNX Runtime removes itself" in notes
    assert "bad (failed): build: no." in notes
    assert "95.0%" in notes


def test_the_breakdown_adds_up_and_gives_shares_of_measuring(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8)})
    build = {"piece": "build-1", "kind": "build", "wall_s": 37.0}
    world.rows["pieces"].append(build)
    table = tables.breakdown(world.datasets()["pieces"].collect())
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["builds (1)"] == ("37.0", "37.0%", "–")
    assert rows["examinations of what is executed (1)"] == ("3.0", "3.0%", "–")
    assert rows["restarts (6)"] == ("60.0", "60.0%", "100.0%")
    assert rows["– timed runs"] == ("27.0", "27.0%", "45.0%")
    assert rows["– other"] == ("3.0", "3.0%", "5.0%")


def test_a_run_without_pieces_has_a_breakdown_of_dashes(synthetic: ModuleType) -> None:
    world = synthetic.world({}, restarts=0)
    table = tables.breakdown(world.datasets()["pieces"].collect().clear())
    assert table.rows[0] == ("restarts (0)", "0.0", "–", "–")


def test_failures_are_counted_and_named(synthetic: ModuleType) -> None:
    world = synthetic.world({"bad": synthetic.Truth(failure="too\nlarge")})
    failures = world.datasets()["failures"].collect()
    table = tables.failures(pl.concat([failures, failures]))
    assert table is not None
    assert table.rows == (("build", "WorkError", "h512-a4-l2 · prefill · B · bad", "2", "too large"),)
    assert tables.failures(failures.clear()) is None


def test_a_cell_that_the_run_left_out_has_no_table_of_dashes(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, sizes=(512, 1024))
    left_out = next(cell["id"] for cell in world.run["cells"] if cell["hidden_size"] == 1024)
    for dataset in ("timings", "blocks", "variants", "machines", "accuracy", "pieces"):
        world.rows[dataset] = [row for row in world.rows[dataset] if row["cell"] != left_out]
    [table] = tables.results(*made(world))
    assert "h512" in table.title


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ({"sequence": 16, "batch": 2}, " · prefill (2×16 tokens, logits out)"),
        ({"kind": "decode", "context": 32}, " · decode (batch 1, one token after 32)"),
        ({"kind": "generate", "prompt": 8, "new_tokens": 4}, " · generate (batch 1, 4 tokens after 8)"),
    ],
)
def test_a_title_says_what_is_run(synthetic: ModuleType, workload: dict[str, Any], said: str) -> None:
    [table] = tables.results(*made(synthetic.world({}, workload=workload)))
    assert table.title.endswith(said)


def test_tokens_a_second_are_those_that_a_run_makes(synthetic: ModuleType) -> None:
    for workload, tokens in (
        ({"sequence": 16, "batch": 2}, 32),
        ({"kind": "decode", "context": 32, "batch": 3}, 3),
        ({"kind": "generate", "prompt": 8, "new_tokens": 4, "batch": 2}, 8),
    ):
        [original, _] = made(synthetic.world({}, workload=workload))[0].to_dicts()
        assert original["tokens_per_s"] == pytest.approx(tokens / original["mean_s"])


def test_an_arm_whose_engine_is_not_here_is_skipped_with_the_reason(synthetic: ModuleType) -> None:
    missing = synthetic.Truth(skipped="openvino is not installed", engine="openvino")
    [table] = tables.results(*made(synthetic.world({"openvino": missing})))
    row = next(row for row in table.rows if row[0] == "openvino")
    assert row[8] == "skipped"
    assert "openvino (skipped): openvino is not installed." in table.notes


@pytest.mark.parametrize(
    ("half_width", "spread", "restarts", "said"),
    [
        (0.05, 0.001, 6, "6 restarts: every 95 % interval is ±0.1% or narrower, as wanted."),
        (0.001, 0.02, 8, ", ±0.1% was wanted."),
        (None, 0.001, 6, "6 restarts: the sweep asks for the pilot alone"),
        (0.05, 0.001, 3, "3 restarts: not finished: the same command goes on."),
    ],
)
def test_each_table_says_whether_the_half_width_or_the_budget_ended_it(
    synthetic: ModuleType, half_width: float | None, spread: float, restarts: int, said: str
) -> None:
    world = synthetic.world(
        {"fast": synthetic.Truth(0.8, executed="aa")}, half_width=half_width, spread=spread, restarts=restarts
    )
    [table] = tables.results(*made(world))
    assert any(said in note for note in table.notes), table.notes


def test_disturbed_blocks_are_told_below_the_table(synthetic: ModuleType) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")})
    world.disturb(2, 0, "fast", kept=False)
    world.disturb(2, 1, "fast", kept=True)
    notes = "\n".join(tables.results(*made(world))[0].notes)
    assert "1 of 25 blocks were disturbed, left out for all arms, and timed again." in notes
    assert "1 of 25 blocks were disturbed and count all the same" in notes


@pytest.mark.parametrize(
    ("fresh", "word"), [(0.8, "confirmed on 6 fresh restarts: 1.2"), (1.0, "not confirmed on 6 fresh restarts: ")]
)
def test_the_fastest_is_said_to_be_confirmed_or_not(synthetic: ModuleType, fresh: float, word: str) -> None:
    world = synthetic.world({"fast": synthetic.Truth(0.8, executed="aa")}, confirm="fast", fresh=fresh)
    notes = "\n".join(tables.results(*made(world))[0].notes)
    assert f"fast (faster): {word}" in notes
