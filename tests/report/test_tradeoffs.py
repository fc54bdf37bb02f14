"""Tables of accuracy and size, and of the arms that nothing beats."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from llama_bench.report import tables
from llama_bench.report.table import Table
from llama_bench.report.tradeoffs import Answers, change, megabytes
from llama_bench.stats import views


def lossy(synthetic: ModuleType, ratio: float, increase: float, size: int, **more: Any) -> Any:
    return synthetic.Truth(
        ratio, executed=f"{ratio}", kind="approximate", perplexity_increase=increase, weight_bytes=size, **more
    )


@pytest.fixture
def world(synthetic: ModuleType) -> Any:
    recipes = {
        "fused": synthetic.Truth(0.8, executed="aa"),
        "int8": lossy(synthetic, 0.3, 0.004, 1_000_000, kl=0.012, top1=0.97),
        "int4": lossy(synthetic, 0.4, 0.05, 600_000),
        "int4_worse": lossy(synthetic, 0.5, 0.06, 600_000),
        "wrong": lossy(synthetic, 0.1, 14.0, 500_000, within_bound=False),
        "missing": synthetic.Truth(skipped="not installed"),
    }
    return synthetic.world(recipes, text=True, source="dequantised from Q4_1 (GGUF, 98 MB)")


def results(world: Any) -> list[Table]:
    frames = views.make(world.run, world.datasets())
    return tables.results(frames.speedups.collect(), frames.cells.collect(), world.run, Answers.of(frames))


def tradeoffs(world: Any) -> list[Table]:
    frames = views.make(world.run, world.datasets())
    return tables.tradeoffs(frames.speedups.collect(), world.run, Answers.of(frames))


def test_a_second_table_says_what_each_arm_loses_and_takes(world: Any) -> None:
    first, second = results(world)
    assert first.title.startswith("Target B · h512-a4-l2 · prefill")
    assert second.title == "Accuracy and size: target B · h512-a4-l2 · prefill"
    assert second.columns == (
        "Recipe", "Class", "Perplexity", "Change", "KL (nats)", "Top-1", "Largest error", "On disk (MB)",
        "Memory (MB)", "Beaten by",
    )  # fmt: skip
    rows = {row[0]: row[1:] for row in second.rows}
    assert list(rows) == ["original", "fused", "int8", "int4", "int4_worse", "wrong"]
    assert rows["original"] == ("exact", "12.00", "+0.00%", "1e-09", "100.0%", "2.0e-03", "4", "304", "fused")
    assert rows["int8"] == ("approximate", "12.05", "+0.40%", "0.012", "97.0%", "2.0e-03", "1", "301", "nothing")
    assert rows["int4_worse"][-1] == "int4"
    assert (rows["wrong"][1:3], rows["wrong"][-1]) == (("180.00", "15×"), "–")
    notes = " ".join(second.notes)
    assert (
        "of 510 predictions on text, in windows of 256 tokens, 255 apart; torch in fp32 has a perplexity of 12.00."
        in notes
    )
    assert "memory is the most that the arm's process ever had" in notes


def test_every_table_says_that_the_baseline_is_a_dequantised_file(world: Any) -> None:
    said = (
        "The weights of the baseline: dequantised from Q4_1 (GGUF, 98 MB); losses are against these numbers, not "
        "against those that were trained."
    )
    for table in (*results(world), *tradeoffs(world)):
        assert said in table.notes
    for cell in world.run["cells"]:
        cell["source"] = "the folder llama, safetensors in bf16"
    assert "The weights of the baseline: the folder llama, safetensors in bf16." in results(world)[0].notes
    for cell in world.run["cells"]:
        del cell["source"]
    assert not any("weights of the baseline" in note for table in results(world) for note in table.notes)


def test_exact_rewrites_without_text_have_one_table_as_ever(synthetic: ModuleType) -> None:
    world = synthetic.world({"fused": synthetic.Truth(0.8, executed="aa")})
    assert len(results(world)) == 1
    assert tradeoffs(world) == []


def test_columns_that_nothing_fills_are_left_out(synthetic: ModuleType) -> None:
    world = synthetic.world({"int8": lossy(synthetic, 0.3, 0.0, 1_000_000)})
    for row in world.rows["accuracy"]:
        row |= {"kl": 0.01, "top1": 0.95}
    _, second = results(world)
    assert second.columns == ("Recipe", "Class", "KL (nats)", "Top-1", "Largest error", "On disk (MB)", "Beaten by")
    assert second.notes == ("KL and top-1 are of the timed output (logits), against torch in fp32.",)


def test_the_arms_that_nothing_beats_are_listed_the_fastest_first_with_what_they_beat(world: Any) -> None:
    [table] = tradeoffs(world)
    assert table.title == "Not beaten: target B · h512-a4-l2 · prefill"
    assert table.columns[4:] == ("Perplexity change", "Top-1", "On disk (MB)", "Memory (MB)", "Beats")
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["int8", "int4", "fused"]
    assert rows["int8"][1:2] == ("approximate",)
    assert rows["int8"][2].startswith("3.3")
    assert rows["int8"][4:] == ("+0.40%", "97.0%", "1", "301", "0")
    assert rows["fused"][-1] == "1"
    assert {"int4 beats int4_worse.", "fused beats original."} <= set(table.notes)
    assert "not shown to be slower" in table.notes[0]


def test_a_table_names_what_a_loss_is_of(synthetic: ModuleType) -> None:
    world = synthetic.world({"int8": lossy(synthetic, 0.3, 0.0, 1_000_000)})
    for row in world.rows["accuracy"]:
        row |= {"kl": 0.0123 if row["recipe"] == "int8" else 1e-9, "top1": 0.95}
    [table] = tradeoffs(world)
    assert table.columns[4] == "KL (nats)"
    assert {row[0]: row[4] for row in table.rows} == {"int8": "0.012", "original": "1e-09"}


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"), (0.0, "+0.00%"), (-1e-7, "+0.00%"), (0.0123, "+1.23%"), (-0.05, "-5.00%"), (0.35, "+35.0%"),
        (5.5, "+550%"), (11.0, "12×"), (1e5, "100,001×"), (float("inf"), "∞"),
    ],
)  # fmt: skip
def test_a_change_has_the_digits_that_can_be_read(share: float | None, text: str) -> None:
    assert change(share) == text


def test_megabytes_have_three_digits() -> None:
    assert [megabytes(size) for size in (None, 1_234, 98_765_432, 2_700_000_000)] == ["–", "0.00123", "98.8", "2,700"]
