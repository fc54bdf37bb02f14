"""Names that have room."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_bench.report.labels import Box, Label, Name, place

INSIDE = Box(0, 0, 400, 300)


def placed(names: list[Name], inside: Box = INSIDE) -> list[Label]:
    return place(names, [name.mark for name in names], inside, 11, 6)


def test_a_name_alone_stands_right_of_its_mark() -> None:
    [label] = placed([Name("alone", (100, 100, 5), True, False)])
    assert label.box.left > 105
    assert label.box.middle[1] == 100
    assert not label.apart


def test_a_name_at_the_right_edge_stands_left_of_its_mark() -> None:
    [label] = placed([Name("edge", (395, 100, 4), True, False)])
    assert label.box.right < 391
    assert label.box.within(INSIDE)


def test_names_of_one_place_are_spread_with_lines_and_those_that_need_not_be_are_left_out() -> None:
    names = [Name(f"needed-{i}", (200, 150, 5), True, True) for i in range(8)]
    names += [Name(f"other-{i}", (200, 150, 5), False, False) for i in range(30)]
    found = placed(names)
    assert {label.name.text for label in found if label.name.needed} == {f"needed-{i}" for i in range(8)}
    assert len(found) < len(names)
    assert any(label.apart for label in found)
    for one, other in combinations(found, 2):
        assert not one.box.meets(other.box)


def test_a_name_that_is_needed_and_has_no_room_covers_the_least() -> None:
    crowd = [(x, y, 9.0) for x in range(0, 400, 12) for y in range(0, 300, 12) if not (x > 300 and y < 60)]
    [label] = place([Name("needed", (330, 70, 3), True, False)], crowd, INSIDE, 11, 6)
    assert label.box.top < 60
    assert place([Name("other", (100, 200, 3), False, False)], crowd, INSIDE, 11, 6) == []


def test_the_end_of_a_line_is_the_nearest_point_of_the_name() -> None:
    label = Label(Name("a", (0, 50, 3), True, False), Box(20, 40, 60, 60), True)
    assert label.near == (20, 50)


marks = st.tuples(st.floats(5, 395), st.floats(5, 295), st.floats(2, 12))
names = st.lists(
    st.builds(Name, st.text("abc", min_size=1, max_size=12), marks, st.booleans(), st.booleans()), max_size=30
)


@settings(deadline=None, max_examples=60)
@given(names)
def test_names_that_need_not_be_cover_nothing_and_all_stay_inside(names: list[Name]) -> None:
    found = placed(names)
    for i, label in enumerate(found):
        assert label.box.within(INSIDE)
        if not label.name.needed:
            assert not any(label.box.covers(np.array([name.mark])) for name in names)
            assert not any(label.box.meets(other.box) for other in found[:i])
