"""The documents of the project, cut into their fenced blocks, commands and links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


def documents() -> list[Path]:
    """Every page: the README, CONTRIBUTING and all of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """One fenced block: the page it stands on, the line of its fence, its language ("" without one) and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a bash block as words: lines and what `&&` joins, without comments."""
        found: list[list[str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                found.append(words[:end])
                words = words[end + 1 :]
        return found


def blocks(path: Path) -> list[Block]:
    """Cut `path` at its fences; a fence that nothing closes is an error."""
    found: list[Block] = []
    begin: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.lstrip().startswith("```"):
            inside.append(line)
        elif begin is None:
            begin, inside = (number, line.strip().removeprefix("```")), []
        else:
            page = path.relative_to(ROOT).as_posix()
            found.append(Block(page, begin[0], begin[1], "\n".join(inside) + "\n"))
            begin = None
    assert begin is None, f"{path}: the fence in line {begin and begin[0]} is not closed"
    return found


def prose(path: Path) -> str:
    """Return `path` without its fenced blocks and comments."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def spans(path: Path) -> list[str]:
    """Return the pieces of prose in code font, each on one line."""
    return [
        " ".join(span.split()).replace(r"\|", "|") for _, span in re.findall(r"(`+)(.+?)\1", prose(path), re.DOTALL)
    ]


def links(path: Path) -> list[tuple[str, str]]:
    """Return target and anchor of every link and picture that leads to a file of the project or into the page."""
    found = re.findall(r"\]\((?!https?://)([^)\s#]*)(?:#([^)]*))?\)", prose(path))
    return [(target, anchor) for target, anchor in found if target or anchor]


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of `path`, as they are made where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
