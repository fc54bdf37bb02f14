"""Which arms are beaten in time, accuracy and size together, and which are not."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_bench.stats import views
from llama_bench.stats.pareto import Point, beats, faster, front, graded, losses_of

ORIGINAL = Point(1.0, 1.0, 1.0, 0.0, 100)


def arm(speedup: float, loss: float, size: float, width: float = 0.02) -> Point:
    return Point(speedup, speedup * (1 - width), speedup * (1 + width), loss, size)


def test_an_arm_is_beaten_only_by_one_that_is_nowhere_worse_and_somewhere_better() -> None:
    half = arm(2.0, 0.01, 50)
    assert beats(arm(3.0, 0.01, 50), half)
    assert beats(arm(2.0, 0.005, 50), half)
    assert beats(arm(2.0, 0.01, 25), half)
    assert not beats(half, half)
    for other in (arm(3.0, 0.02, 50), arm(3.0, 0.01, 60), arm(1.5, 0.001, 25)):
        assert not beats(other, half)
        assert not beats(half, other)


def test_a_difference_inside_the_intervals_is_none() -> None:
    one, other = arm(2.0, 0.0, 100, width=0.1), arm(1.9, 0.0, 100, width=0.1)
    assert not faster(one, other)
    assert not beats(one, other)
    # the same time as far as is known: what loses less beats it
    assert beats(dataclasses.replace(other, loss=-1.0), one)


def test_the_baseline_is_beaten_by_what_is_shown_to_be_faster_and_by_nothing_else() -> None:
    assert beats(arm(1.1, 0.0, 100), ORIGINAL)
    assert not beats(arm(1.1, 0.0, 100, width=0.2), ORIGINAL)
    assert front({"original": ORIGINAL, "fused": arm(1.1, 0.0, 100)}) == {"original": "fused", "fused": None}


def test_what_a_beaten_arm_beats_need_not_be_beaten() -> None:
    """a is faster than c, b lies between them: nobody can tell a from b, or b from c."""
    a = Point(1.10, 1.05, 1.15, loss=0.03, size=100)
    b = Point(1.04, 0.99, 1.09, loss=0.02, size=100)
    c = Point(0.98, 0.93, 1.03, loss=0.01, size=100)
    assert beats(c, b)
    assert beats(b, a)
    assert not beats(c, a)
    assert front({"a": a, "b": b, "c": c}) == {"a": None, "b": "c", "c": None}


def test_the_fastest_on_the_front_is_named() -> None:
    points = {"slow": arm(0.5, 0.5, 500), "better": arm(1.0, 0.0, 100), "fast": arm(3.0, 0.1, 100)}
    assert front(points) == {"slow": "fast", "better": None, "fast": None}


coarse = st.integers(0, 3)
points = st.builds(
    lambda middle, half, loss, size: Point(middle / 4, (middle - half) / 4, (middle + half) / 4, loss, size),
    st.integers(2, 12),
    st.integers(0, 2),
    coarse,
    coarse,
)
cells = st.lists(points, min_size=1, max_size=12).map(lambda found: {f"arm{i}": one for i, one in enumerate(found)})


@settings(deadline=None, max_examples=300)
@given(cells)
def test_the_front_is_never_empty_and_beats_exactly_the_others(arms: dict[str, Point]) -> None:
    found = front(arms)
    assert list(found) == list(arms)
    standing = {name for name, by in found.items() if by is None}
    assert standing
    for name, by in found.items():
        beaten = [other for other in standing if beats(arms[other], arms[name])]
        assert (by in beaten) if by is not None else not beaten


@settings(deadline=None, max_examples=300)
@given(cells, points)
def test_adding_an_arm_that_the_front_beats_changes_nothing(arms: dict[str, Point], more: Point) -> None:
    found = front(arms)
    after = front({**arms, "more": more})
    if any(by is None and beats(arms[name], more) for name, by in found.items()):
        assert after == {**found, "more": after["more"]}
        assert after["more"] is not None
    else:
        assert after["more"] is None


@settings(deadline=None, max_examples=200)
@given(cells, st.randoms(use_true_random=False))
def test_the_order_of_arms_changes_no_place(arms: dict[str, Point], order: Any) -> None:
    names = list(arms)
    order.shuffle(names)
    on = {name for name, by in front({name: arms[name] for name in names}).items() if by is None}
    assert on == {name for name, by in front(arms).items() if by is None}


@settings(deadline=None, max_examples=200)
@given(cells, st.data())
def test_an_arm_that_becomes_faster_keeps_its_place(arms: dict[str, Point], data: st.DataObject) -> None:
    on = sorted(name for name, by in front(arms).items() if by is None)
    name = data.draw(st.sampled_from(on))
    one = arms[name]
    quicker = Point(one.speedup + 5, one.low + 5, one.high + 5, one.loss, one.size)
    assert front({**arms, name: quicker})[name] is None


@settings(deadline=None, max_examples=200)
@given(cells)
def test_without_noise_the_front_is_what_nobody_beats(arms: dict[str, Point]) -> None:
    sure = {
        name: dataclasses.replace(one, low=one.speedup, high=one.speedup, loss=one.loss) for name, one in arms.items()
    }
    unbeaten = {a for a, one in sure.items() if not any(beats(other, one) for other in sure.values())}
    assert {name for name, by in front(sure).items() if by is None} == unbeaten


def test_losses_count_as_printed_and_nothing_up_to_what_rounding_costs() -> None:
    assert graded(0.0123456, 1e-4) == 0.012
    assert (graded(9e-5, 1e-4), graded(-0.3, 1e-4)) == (0.0, 0.0)


def test_the_loss_of_a_row_is_known_by_each_measure_that_it_has() -> None:
    text = {"source": "text", "perplexity_increase": 0.01, "kl": 0.002, "top1": 0.9, "cosine": 0.5}
    assert losses_of(text) == {"perplexity": 0.01, "kl": 0.002, "cosine": 0.5, "tokens": None}
    tokens = {"source": "tokens", "top1": 0.75, "kl": None, "cosine": None, "perplexity_increase": None}
    assert losses_of(tokens) == {"perplexity": None, "kl": None, "cosine": None, "tokens": 0.25}
    assert set(losses_of({"perplexity_increase": float("inf")}).values()) == {None}


def placed(world: Any) -> dict[str, dict[str, Any]]:
    table = views.make(world.run, world.datasets()).pareto.collect()
    return {row["recipe"]: row for row in table.to_dicts()}


def lossy(synthetic: ModuleType, ratio: float, increase: float, size: int, **more: Any) -> Any:
    return synthetic.Truth(
        ratio, executed=f"{ratio}", kind="approximate", perplexity_increase=increase, weight_bytes=size, **more
    )


def test_the_view_places_what_can_be_compared_and_names_who_beats_whom(synthetic: ModuleType) -> None:
    Truth = synthetic.Truth
    world = synthetic.world(
        {
            "fused": Truth(0.8, executed="aa"),
            "int8": lossy(synthetic, 0.3, 0.004, 1_000_000),
            "int4": lossy(synthetic, 0.4, 0.05, 600_000),
            "int4_worse": lossy(synthetic, 0.5, 0.06, 600_000),
            "idle": Truth(),
            "wrong": lossy(synthetic, 0.1, 3.0, 100, within_bound=False),
            "torch": Truth(1.3, engine="torch-eager"),
            "missing": Truth(skipped="openvino is not installed"),
        },
        text=True,
    )
    found = placed(world)
    assert list(found) == ["original", "fused", "int8", "int4", "int4_worse", "torch"]
    assert {name: row["beaten_by"] for name, row in found.items()} == {
        "original": "fused", "fused": None, "int8": None, "int4": None, "int4_worse": "int4", "torch": "fused",
    }  # fmt: skip
    assert [name for name, row in found.items() if row["front"]] == ["fused", "int8", "int4"]
    assert found["int8"]["loss"] == pytest.approx(0.004)
    assert {row["loss_of"] for row in found.values()} == {"perplexity"}
    assert found["original"]["speedup"] == found["original"]["low"] == found["original"]["high"] == 1.0
    assert (found["int8"]["disk_bytes"], found["int8"]["class"]) == (1_001_000, "approximate")
    assert found["torch"]["engine"] == "torch-eager"


def test_without_text_the_divergence_of_the_logits_counts(synthetic: ModuleType) -> None:
    world = synthetic.world({"int8": lossy(synthetic, 0.3, 0.0, 1_000_000)})
    for row in world.rows["accuracy"]:
        row |= {"kl": 0.02 if row["recipe"] == "int8" else 1e-9, "cosine": 0.99}
    found = placed(world)
    assert {row["loss_of"] for row in found.values()} == {"kl"}
    assert (found["int8"]["loss"], found["original"]["loss"]) == (0.02, 1e-9)


def test_an_arm_whose_loss_is_not_known_as_the_baselines_is_has_no_place(synthetic: ModuleType) -> None:
    world = synthetic.world({"int8": lossy(synthetic, 0.3, 0.0, 1_000_000)}, text=True)
    world.rows["accuracy"] = [
        row for row in world.rows["accuracy"] if row["recipe"] != "int8" or row["output"] != "text"
    ]
    assert list(placed(world)) == ["original"]
    world.rows["accuracy"] = []
    assert placed(world) == {}


def test_a_target_whose_equal_programs_differ_places_nothing_but_its_baseline(synthetic: ModuleType) -> None:
    truths = {"fast": synthetic.Truth(0.8, executed="aa"), "idle": synthetic.Truth(1.2)}
    assert list(placed(synthetic.world(truths, text=True))) == ["original"]
