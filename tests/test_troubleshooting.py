"""docs/troubleshooting.md explains every message of the source, and no message that is not there any more."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import messages as source
from .documents import ROOT
from .messages import Message, covers, messages

PAGE = ROOT / "docs/troubleshooting.md"


def entries() -> list[tuple[str, str]]:
    """Return the rows of the page's tables: message and explanation."""
    rows = re.findall(r"^\| (`+) ?(.+?) ?\1 \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(message.replace(r"\|", "|"), explanation) for _, message, explanation in rows]


@pytest.fixture(scope="module")
def said() -> list[Message]:
    return messages()


def test_every_message_of_the_source_is_explained(said: list[Message]) -> None:
    known = [entry for entry, _ in entries()]
    missing = [message for message in said if not any(covers(entry, message.text) for entry in known)]
    lines = "\n".join(f"{one.where}: | {_code(one.text)} | what it means, and what to do |" for one in missing)
    assert not missing, f"add to a table of docs/troubleshooting.md, without the place and with your words:\n{lines}"


def _code(text: str) -> str:
    marked = f"`` {text} ``" if "`" in text else f"`{text}`"
    return marked.replace("|", r"\|")


def test_every_explained_message_is_still_said(said: list[Message]) -> None:
    stale = [entry for entry, _ in entries() if not any(covers(entry, message.text) for message in said)]
    assert not stale, "no message is like these; remove them from docs/troubleshooting.md:\n" + "\n".join(stale)


def test_no_entry_is_so_wide_that_it_would_explain_anything() -> None:
    for entry, explanation in entries():
        assert len(re.findall(r"[A-Za-z]", entry)) >= 3, entry
        assert explanation.endswith("."), explanation
    assert len({entry for entry, _ in entries()}) == len(entries())


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("raise InputError(f'{a}: no such thing')", "…: no such thing"),
        ("refuse(why, 'key')", "… is wrong"),
        ("raise WorkError(reason(a))", "since … it is late"),
        ("return Fault('failed', f'{a}: gone', True)", "…: gone"),
        ("raise InputError('too ' + ('late' if a else 'early'))", "too …"),
    ],
)
def test_a_message_is_found_where_it_is_said(
    line: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PACKAGE", tmp_path)
    module = (
        f"def reason(a):\n    return f'since {{a}} it is late'\n\ndef f(a):\n    why = f'{{a}} is wrong'\n    {line}\n"
    )
    (tmp_path / "new.py").write_text(module)
    assert text in [message.text for message in source.messages()]


def test_an_entry_covers_what_it_holds_enough_of() -> None:
    assert covers("…: no such file…", "…: no such file…")
    assert covers("a text cannot be scored: …", "a text cannot be scored: the graph gives …, no logits")
    assert not covers("…: no such file…", "…: no such thing")
    assert not covers("… has no …", "the graph has no Gather of the rows of a constant matrix")
