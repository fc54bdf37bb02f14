"""Tables of what was generated."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from llama_bench.report.generation import SHOWN, generation
from llama_bench.report.table import Table
from llama_bench.stats import views

GENERATE = {"kind": "generate", "batch": 2, "prompt": 8, "new_tokens": 4}


@pytest.fixture
def world(synthetic: ModuleType) -> Any:
    recipes = {
        "fused": synthetic.Truth(0.8, executed="aa"),
        "int4": synthetic.Truth(0.4, executed="bb", kind="approximate"),
    }
    return synthetic.world(recipes, workload=GENERATE, text=True, source="dequantised from Q4_1 (GGUF, 98 MB)")


def made(world: Any) -> list[Table]:
    frames = views.make(world.run, world.datasets())
    return generation(frames.generation.collect(), frames.generations.collect(), world.run)


def test_the_times_of_first_and_later_tokens_are_in_milliseconds(world: Any) -> None:
    times, _ = made(world)
    assert times.title == "Generating: target B · h512-a4-l2 · generate"
    rows = {row[0]: row[1:] for row in times.rows}
    assert list(rows) == ["original", "fused", "int4", "control"]
    first, low = rows["original"][0].split(" [")
    assert float(first) == pytest.approx(0.6, rel=0.1)  # three tenths of 2 ms
    assert float(low.split(",")[0]) < float(first)
    p50, p90, p99 = map(float, rows["original"][2:5])
    assert p50 <= p90 <= p99
    assert float(rows["fused"][0].split(" ")[0]) == pytest.approx(0.8 * float(first), rel=0.05)
    assert [row[-1] for row in rows.values()] == ["8 of 8", "8 of 8", "4 of 8", "8 of 8"]
    assert times.notes[0].startswith("4 new tokens after a prompt of 8, batch 2, greedy.")
    assert times.notes[1].startswith("The weights of the baseline: dequantised from Q4_1 (GGUF, 98 MB); losses")


def test_arms_that_say_the_same_are_told_together_in_the_order_of_the_tables(world: Any) -> None:
    _, texts = made(world)
    assert texts.title == "Generated text: target B · h512-a4-l2 · generate"
    assert texts.rows == (("original, fused", "word0 word1 word2 word3"), ("int4", "word0 word1 word-1 word-1"))
    assert texts.notes == ("After the prompt: Once",)


def test_texts_are_cut_and_tokens_stand_for_what_no_tokenizer_can_say(world: Any) -> None:
    for row in world.rows["generations"]:
        row["text"] = None if row["recipe"] == "int4" else "long\n words " * 100
        row["prompt"] = "x" * 300 + "end"
    _, texts = made(world)
    said = dict(texts.rows)
    assert said["int4"] == "tokens 0, 1, -1, -1"
    assert len(said["original, fused"]) == SHOWN + 1
    assert said["original, fused"].startswith("long words long words")
    assert said["original, fused"].endswith("…")
    assert texts.notes[0].startswith("After the prompt: …x")
    assert texts.notes[0].endswith("end")


def test_without_texts_the_times_stand_alone(world: Any) -> None:
    world.rows["generations"] = []
    [times] = made(world)
    assert {row[-1] for row in times.rows} == {"–"}


def test_what_generates_nothing_has_no_table(synthetic: ModuleType) -> None:
    assert made(synthetic.world({})) == []
