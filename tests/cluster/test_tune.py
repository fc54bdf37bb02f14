"""A whole search on a real Ray of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import llama_bench
from llama_bench import tuning
from llama_bench.cluster.events import Event
from llama_bench.cluster.tune import Outcome, tune
from llama_bench.store import Store
from llama_bench.sweep import Measure, Model, Target, Text, Workload

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("local_ray"),
]

AXES: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "graph": {"fuse": ({"fuse": "all"},)},
    "numbers": {"int8": ({"quantize": "dynamic"},)},
}
SHORT = Measure(restarts=2, blocks=1, runs=10, half_width=None, confirm=False, text=Text(tokens=30, window=16))
STAGES = {title: SHORT for title in tuning.STAGES} | {"confirm": SHORT.model_copy(update={"seed": 1, "text": None})}
MODEL = Model(
    name="tiny", hidden_size=64, num_attention_heads=4, num_hidden_layers=8, intermediate_size=96, vocab_size=64,
    cache=True,
)  # fmt: skip
SEARCH = tuning.Search(
    MODEL, ("decode", Workload(kind="decode", context=64)), ("cpu", Target(tag="bench_cpu", threads=1)), 0.5
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> tuple[Store, Outcome]:
    store = Store(tmp_path_factory.mktemp("tune") / "store")
    return store, tune(SEARCH, store, stages=STAGES, axes=AXES)


def test_every_stage_is_a_run_of_its_own_that_can_be_read(found: tuple[Store, Outcome]) -> None:
    store, outcome = found
    assert [title for title in STAGES if title in outcome.runs] == list(outcome.runs)
    for title, run in outcome.runs.items():
        assert run.startswith(f"tune-tiny-decode-cpu-{list(STAGES).index(title) + 1}-{title}/")
        assert llama_bench.load(store.url(run)).speedups.collect().height >= 2


def test_the_screen_measures_every_choice_and_its_text(found: tuple[Store, Outcome]) -> None:
    screened = {one.recipe: one for one in found[1].scored["screen"]}
    assert set(screened) == {"fuse", "int8"}
    assert screened["fuse"].exact and not screened["int8"].exact
    assert screened["fuse"].perplexity_increase == pytest.approx(0, abs=1e-4)


def test_a_decoder_of_many_small_operators_is_faster_fused_and_the_winner_is_confirmed_in_other_processes(
    found: tuple[Store, Outcome],
) -> None:
    store, outcome = found
    assert outcome.winner is not None
    assert outcome.confirmed[outcome.winner].speedup is not None
    pids = [
        set(llama_bench.load(store.url(outcome.runs[title])).timings.collect()["pid"]) for title in ("final", "confirm")
    ]
    assert not pids[0] & pids[1]
    assert outcome.variant is not None and store.has(outcome.variant)


def test_the_saving_counts_what_was_measured_and_what_there_is(found: tuple[Store, Outcome]) -> None:
    saving = found[1].saving
    assert saving is not None
    assert (saving.measured <= saving.possible, saving.possible) == (True, 3)
    assert saving.spent_s > 0 and saving.everything_s > 0


def test_the_same_search_again_measures_nothing(found: tuple[Store, Outcome]) -> None:
    store, outcome = found
    events: list[Event] = []
    again = tune(SEARCH, store, stages=STAGES, axes=AXES, on_event=events.append)
    assert again.runs == outcome.runs
    assert again.winner == outcome.winner
    assert not [event for event in events if event.kind in ("restart", "slot")]
    assert Path(store.uri).is_dir()
