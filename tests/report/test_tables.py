from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from llama_bench.report import tables
from llama_bench.stats.speedups import speedups


def made(world: Any) -> tuple[pl.DataFrame, Any]:
    return speedups(world.run, world.datasets()), world.run


def test_the_answer_names_the_fastest_recipe_of_each_cell(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fast": Truth(0.9, executed="aa"),
            "faster": Truth(0.8, executed="bb"),
            "wrong": Truth(0.4, executed="cc", within_bound=False),
            "idle": Truth(),
        },
        sizes=(512, 1024),
    )
    [sentence] = tables.answer(*made(world))
    assert sentence.startswith("On target B the fastest recipe, against original, is faster 1.2")
    assert "(h1024-a4-l2, prefill); faster 1.2" in sentence
    assert "wrong" not in sentence
    assert "1 of 4 executes exactly what original does (no-op)" in sentence


def test_the_answer_says_so_when_nothing_is_faster(synthetic: ModuleType) -> None:
    world = synthetic.world({"idle": synthetic.Truth(), "slow": synthetic.Truth(1.3, executed="aa")})
    [sentence] = tables.answer(*made(world))
    assert "none of the 2 recipes is faster than original beyond its interval" in sentence


def test_the_answer_admits_what_was_not_or_cannot_be_compared(synthetic: ModuleType) -> None:
    targets = {"A": "CUDAExecutionProvider", "B": "CPUExecutionProvider"}
    world = synthetic.world(
        {"fast": synthetic.Truth(0.8, executed="aa")}, targets=targets, unserved={"A": "no node offers it"}, restarts=1
    )
    gpu, cpu = tables.answer(*made(world))
    assert gpu == "On target A nothing was measured: no node offers it."
    assert "no recipe can be compared with original: one restart only" in cpu


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
        "Recipe", "Mean (ms)", "Median (ms)", "p90 (ms)", "Tokens/s", "Saved", "Speedup [low, high]", "Verdict",
        "Nodes changed", "Restarts",
    )  # fmt: skip
    rows = {row[0]: row for row in large.rows}
    assert list(rows) == ["original", "fast", "idle", "bad", "control (original again)"]
    assert rows["original"][5:8] == ("–", "–", "baseline")
    assert rows["fast"][5].startswith("+")
    assert rows["fast"][6].startswith("1.2")
    assert rows["fast"][7:] == ("faster", "5", "6")
    assert rows["bad"][1:8] == ("–", "–", "–", "–", "–", "–", "failed")
    notes = "\n".join(large.notes)
    assert "idle (no-op): removes 4 nodes (4 Identity) that ONNX Runtime removes itself" in notes
    assert "bad (failed): build: no." in notes
    assert "95.0%" in notes


def test_markdown_is_a_table_that_no_name_or_message_can_break() -> None:
    table = tables.Table("a <b>", ("x|y", "n"), (("<script>", "[l](u)"), ("`c`", "*e*")), ("note <i>",))
    text = tables.markdown(table)
    assert "<script>" not in text
    assert "<i>" not in text
    assert "[l]\\(u)" in text
    assert "| x\\|y | n |\n| :-- | --: |\n" in text
    assert "\\`c\\`" in text


@pytest.mark.parametrize(
    ("seconds", "unit", "text"),
    [
        (0.0123456, "ms", "12.35"),
        (5.1001, "s", "5.100"),
        (1234.5, "s", "1,234"),
        (0.5, "ms", "500.0"),
        (None, "s", "–"),
    ],
)
def test_times_have_four_digits(seconds: float | None, unit: str, text: str) -> None:
    assert tables.duration(seconds, unit) == text


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
