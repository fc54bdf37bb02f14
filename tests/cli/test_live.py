"""What a run looks like while it goes, from its events."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llama_bench.cli.live import BAR, Progress, bar, plain_line, watching
from llama_bench.cluster.events import Event

RUN = [
    Event("doubt", "load average is 3.0 on 2 CPUs"),
    Event("unserved", "A", detail="no node has bench_gpu"),
    Event("builds", "builds", done=0, total=2),
    Event("build", "export h64", "started", 0, 2),
    Event("build", "export h64", "finished", 1, 2, seconds=2.5),
    Event("build", "onnxoptimizer: nop on h64", "failed", 2, 2, detail="no such pass"),
    Event("cell", "h64/prefill/B", "started", 0, 4),
    Event("failure", "h64/prefill/B default", detail="load: no memory"),
    Event("slot", "h64/prefill/B", detail="restart 1/4 block 1/3 original"),
    Event("restart", "h64/prefill/B", "finished", 1, 4, seconds=75.0),
]


def _after(events: list[Event]) -> Progress:
    progress = Progress(cells_total=2, cells_a_target=1)
    for event in events:
        progress.update(event)
    return progress


def test_the_view_counts_builds_restarts_and_failures_and_names_the_slot() -> None:
    progress = _after(RUN)
    assert (progress.builds_done, progress.builds_total, progress.building) == (2, 2, [])
    assert progress.cells == {"h64/prefill/B": (1, 4)}
    assert progress.failures == 2
    assert "timing    h64/prefill/B  restart 1/4 block 1/3 original" in progress.lines()


def test_a_build_is_shown_while_it_lasts() -> None:
    assert "building  export h64" in _after(RUN[:4]).lines()
    assert "building  export h64" not in _after(RUN[:5]).lines()


@pytest.mark.parametrize("state", ["finished", "reused", "failed"])
def test_a_finished_cell_leaves_the_view_and_is_counted(state: str) -> None:
    progress = _after([*RUN, Event("cell", "h64/prefill/B", state, 4, 4)])
    assert (progress.cells, progress.cells_done) == ({}, 1)
    assert f"cells     {bar(1, 1)}" in progress.lines()  # of two, one target has no node
    assert not any("timing" in line for line in progress.lines())


@pytest.mark.parametrize(("done", "total", "full"), [(0, 4, 0), (2, 4, BAR // 2), (4, 4, BAR), (0, 0, 0), (5, 4, BAR)])
def test_a_bar_is_as_full_as_the_work(done: int, total: int, full: int) -> None:
    drawn = bar(done, total)
    assert (drawn.count("━"), drawn.count("─")) == (full, BAR - full)


def test_without_a_terminal_each_finished_piece_is_one_plain_line() -> None:
    stream = io.StringIO()
    with watching(Console(file=stream, force_terminal=False, width=40)) as on_event:
        for event in RUN:
            on_event(event)
    lines = stream.getvalue().splitlines()
    assert [line.split("s] ")[1] for line in lines] == [
        "doubtful here: load average is 3.0 on 2 CPUs",
        "no node serves target A: no node has bench_gpu",
        "build 1/2 finished: export h64 in 2.5 s",
        "build 2/2 failed: onnxoptimizer: nop on h64 (no such pass)",
        "failed: h64/prefill/B default: load: no memory",
        "restart 1/4 finished: h64/prefill/B in 1 min 15 s",
    ]
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_the_view_shows_the_slot_and_leaves_warnings_behind() -> None:
    stream = io.StringIO()
    with watching(Console(file=stream, force_terminal=True, width=100, color_system=None)) as on_event:
        for event in RUN[:-1]:
            on_event(event)
        shown = stream.getvalue()
    assert "restart 1/4 block 1/3 original" in shown
    assert "doubtful here: load average" in shown
    assert "2/2" in shown


@pytest.mark.parametrize(
    "event",
    [Event("slot", "cell"), Event("builds", "builds", total=3), Event("build", "x", "started"), Event("fold", "c")],
)
def test_what_is_only_of_interest_while_it_lasts_has_no_line(event: Event) -> None:
    assert plain_line(event) is None


def test_brackets_in_a_message_are_text_and_no_markup() -> None:
    stream = io.StringIO()
    with watching(Console(file=stream, force_terminal=False)) as on_event:
        on_event(Event("note", "shape [B, S]", detail="[red]x[/red]"))
    assert "shape [B, S]: [red]x[/red]" in stream.getvalue()


def test_a_quiet_console_shows_nothing_even_on_a_terminal() -> None:
    stream = io.StringIO()
    with watching(Console(file=stream, force_terminal=True, quiet=True)) as on_event:
        for event in RUN:
            on_event(event)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("word", ["", "1"])
def test_no_color_leaves_the_colours_out_of_the_live_view(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", word)
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = io.StringIO()
    with watching(Console(file=stream, force_terminal=True, width=100)) as on_event:
        for event in RUN:
            on_event(event)
    assert "restart 1/4 block 1/3 original" in stream.getvalue()  # the view is there …
    coloured = re.findall(r"\x1b\[(?:[\d;]*;)?(?:3[0-8]|9[0-7])(?:;[\d;]*)?m", stream.getvalue())
    assert bool(coloured) == (word == "")  # … and its warnings are red and yellow without NO_COLOR alone
