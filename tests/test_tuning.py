"""The search's space and stages, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_bench import tuning
from llama_bench.sweep import Measure, Model, Pass, Target, Text, Workload
from llama_bench.tuning import Scored

MODEL = Model(hidden_size=16, num_attention_heads=2, cache=True, name="tiny")

AXES: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "graph": {"f": ({"fuse": "all"},), "g": ({"onnxscript": "optimize"},)},
    "cache": {"kv": ({"quantize": "kv_cache"},)},
    "numbers": {"a": ({"quantize": "dynamic"},), "b": ({"quantize": {"bits": 4}},)},
}


def misfit(steps: Sequence[Pass], model: Model) -> tuple[int, str] | None:
    """Refuse a quantised cache without a fusion before it, as the real table does."""
    labels = [step.label for step in steps]
    return (0, "no") if "quantize: kv_cache" in labels and "fuse: all" not in labels else None


def scored(recipe: str, speedup: float, increase: float | None = 0.0, verdict: str = "faster", **more: Any) -> Scored:
    return Scored(recipe, speedup, speedup - 0.01, speedup + 0.01, verdict, increase, **more)


SPACE = tuning.space(MODEL, misfit, AXES)


def test_the_space_is_every_combination_that_fits() -> None:
    combinations = [c for c in product([None, "f", "g"], [None, "kv"], [None, "a", "b"]) if any(c)]
    fitting = ["+".join(filter(None, c)) for c in combinations if c[1] is None or c[0] == "f"]
    assert list(SPACE) == fitting
    assert SPACE["f+kv+b"] == {"graph": "f", "cache": "kv", "numbers": "b"}


def test_passes_come_in_the_order_of_the_axes() -> None:
    labels = [step.label for step in tuning.recipe(SPACE["f+kv+b"], AXES).passes]
    assert labels == ["fuse: all", "quantize: kv_cache", "quantize: {bits: 4}"]


def test_the_screen_has_every_choice_once_and_as_small_as_it_can_be() -> None:
    assert sorted(tuning.screen(SPACE)) == ["a", "b", "f", "f+kv", "g"]


def test_combine_joins_the_best_of_each_axis_and_leaves_out_what_is_slower_or_worse() -> None:
    screened = [scored("f", 1.2), scored("g", 0.9), scored("f+kv", 0.8), scored("a", 2.0, 0.5), scored("b", 1.5, 0.005)]
    assert tuning.combine(SPACE, screened, 0.01) == ["b", "f", "f+b"]


def test_combine_keeps_at_most_two_choices_of_an_axis() -> None:
    numbers = {f"n{i}": ({"quantize": {"bits": i}},) for i in range(2, 6)}
    everything = tuning.space(MODEL, lambda steps, model: None, {"numbers": numbers})
    chosen = tuning.combine(everything, [scored(f"n{i}", i) for i in range(2, 6)], 0.01)
    assert sorted(chosen) == ["n4", "n5"]


def test_finalists_are_the_fastest_acceptable_ones_and_the_best_single_choice() -> None:
    found = [scored("f", 1.1), scored("b", 1.3), scored("f+b", 1.6), scored("f+a", 1.5), scored("g+a", 1.4)]
    assert tuning.finalists(found, SPACE, 0.01) == ["f+b", "f+a", "g+a", "b"]
    assert tuning.winner(found, 0.01) == "f+b"
    assert tuning.best_single(SPACE, found, 0.01) == "b"


@pytest.mark.parametrize(
    ("one", "fit"),
    [
        (scored("b", 1.5, 0.01), True),
        (scored("b", 1.5, 0.0101), False),
        (scored("b", 1.5, None), False),
        (scored("f", 1.5, None, exact=True), True),
        (scored("b", 1.5, 0.0, "wrong"), False),
        (Scored("b", None, None, None, "failed", 0.0), False),
    ],
)
def test_what_is_acceptable_has_a_number_a_right_answer_and_a_perplexity_within_the_bound(
    one: Scored, fit: bool
) -> None:
    assert tuning.acceptable(one, 0.01) is fit


def test_nothing_wins_where_nothing_is_faster() -> None:
    assert tuning.winner([scored("f", 1.0), scored("b", 0.7)], 0.01) is None


def test_one_beats_another_only_outside_both_intervals() -> None:
    assert tuning.beats(scored("a", 1.5), scored("b", 1.47))
    assert not tuning.beats(scored("a", 1.5), scored("b", 1.49))
    assert not tuning.beats(Scored("a", 1.5, None, None, "faster", 0.0), scored("b", 1.0))


@given(st.lists(st.tuples(st.sampled_from(sorted(SPACE)), st.floats(0.1, 9), st.floats(0, 0.1)), max_size=20))
def test_every_stage_stays_inside_the_space_and_the_bound(found: list[tuple[str, float, float]]) -> None:
    rows = [scored(name, speedup, increase) for name, speedup, increase in found]
    assert set(tuning.combine(SPACE, rows, 0.01)) <= set(SPACE)
    within = {
        slack: {row.recipe for row in rows if row.perplexity_increase is not None and row.perplexity_increase <= slack}
        for slack in (0.01, 0.02)
    }
    chosen = set(tuning.finalists(rows, SPACE, 0.01))
    assert chosen <= within[0.02]
    fastest = tuning.winner(rows, 0.01)
    assert fastest is None or fastest in chosen & within[0.01]


def test_short_texts_leave_slack_and_the_fastest_recipe_without_it_goes_along() -> None:
    found = [scored("f+a", 3.0, 0.019), scored("f+b", 2.5, 0.018), scored("g+a", 2.4, 0.015), scored("b", 1.5, 0.005)]
    assert tuning.finalists(found, SPACE, 0.01) == ["f+a", "f+b", "g+a", "b"]
    assert tuning.finalists([scored("f+a", 3.0, 0.021)], SPACE, 0.01) == []
    assert "f+a" in tuning.combine(SPACE, [scored("f", 1.1), scored("a", 2.0, 0.02)], 0.01)
    assert tuning.SLACK["final"] == tuning.SLACK["confirm"] == 1.0
    assert list(tuning.SLACK) == list(tuning.STAGES)


def test_a_stage_is_a_sweep_with_the_bound_and_a_name_of_its_own() -> None:
    search = tuning.Search(
        MODEL, ("decode", Workload(kind="decode", context=8)), ("cpu", Target(tag="bench_cpu")), 0.02, {"file": "a.txt"}
    )
    sweep = search.stage("final", {"f": tuning.recipe(SPACE["f"], AXES)}, Measure(text=Text(tokens=5)))
    assert sweep.name == "tune-tiny-decode-cpu-3-final"
    assert list(sweep.recipes) == ["original", "f"]
    assert sweep.measure.accuracy.max_perplexity_increase == 0.02
    assert sweep.measure.text == Text(tokens=5, file="a.txt")


def test_the_confirmation_has_another_seed_than_the_final() -> None:
    assert tuning.STAGES["confirm"].seed != tuning.STAGES["final"].seed


def test_the_saving_compares_with_every_recipe_measured_like_a_finalist() -> None:
    saving = tuning.saving(measured=10, possible=100, spent_s=60, final_s=40, final_arms=4)
    assert saving.everything_s == 1000
    assert saving.share == pytest.approx(0.94)


def test_every_choice_of_the_real_axes_is_in_the_table_of_passes() -> None:
    from llama_bench.passes import misfit as real

    model = Model(hidden_size=256, num_attention_heads=4, intermediate_size=512, cache=True)
    screened = tuning.screen(tuning.space(model, real))
    parts = {part for name in screened for part in name.split("+")}
    assert parts == {choice for choices in tuning.AXES.values() for choice in choices}
