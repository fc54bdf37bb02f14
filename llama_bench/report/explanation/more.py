"""What would change a verdict, in words: more restarts, or wider intervals."""

from __future__ import annotations

from collections.abc import Iterator

from llama_bench.report.explanation.section import Section, share
from llama_bench.report.table import plural
from llama_bench.stats.decision import Decision, More, Tested


def what_would_change_it(found: Decision) -> Section | None:
    """Return the section about more restarts; None for a verdict that no number stands behind."""
    if found.tested is None or found.more is None or found.rule in ("control", "no-op"):
        return None
    sentences = [*_stein(found, found.more), *_needed(found, found.tested, found.more)]
    return Section("What would change it", tuple(sentences))


def _stein(found: Decision, more: More) -> Iterator[str]:
    """What Stein's second stage asked for, and what ended the cell."""
    assert found.tested is not None
    reached = f"the 95 % interval of y is ±{share(more.half_width)}"
    if more.wanted is None or more.to_wanted is None:
        yield f"The sweep asks for {found.pilot} restarts and for no width: {reached}."
        return
    short = more.to_wanted - found.tested.restarts
    done = "and they were made" if short <= 0 else f"{short} more than there are"
    ended = {
        "half-width": "It was reached in this cell.",
        "budget": "The cell was ended by its budget.",
        "pilot only": "No more than the pilot was measured.",
        "unfinished": "The cell is not finished: the same command goes on.",
    }.get(found.ended_by or "", "")
    yield (
        f"Wanted is ±{share(more.wanted)}, {reached}. From the spread of the pilot that takes "
        f"{plural(more.to_wanted, 'restart')} (Stein's second stage), {done}. {ended}".rstrip()
    )


def _needed(found: Decision, one: Tested, more: More) -> Iterator[str]:
    if found.rule == "discovery" or (found.rule == "wrong" and one.width > 1):
        yield f"The interval would still leave out 1 if it were {one.width:.1f} times as wide."
    if found.rule == "wrong":
        yield "More restarts make no wrong answer right."
    if found.rule in ("neither", "margin") and more.to_differ is not None:
        yield (
            f"If mean and spread stayed as they are, and the level too, it would be called different from "
            f"{plural(more.to_differ, 'restart')} on."
        )
    if found.rule == "neither":
        if more.to_equal is None:
            yield f"As long as its mean is further than ±{share(one.margin, 0)} from 1, no number makes it equivalent."
        else:
            yield f"It would be equivalent from {plural(more.to_equal, 'restart')} on."
