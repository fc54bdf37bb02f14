"""The generated part of docs/cli.md: `python -m llama_bench.cli.page` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.main import get_command

from llama_bench.cli.main import COMMANDS, EXIT_STATUSES, PROGRAM, make_app

KINDS = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""Type of an option's value → what stands for it where the option has no word of its own."""


def page() -> str:
    """Return exit statuses, global options, and every command with its arguments and options, as Markdown."""
    group: Any = get_command(make_app())
    lines = ["## Exit statuses", "", "| status | what it says |", "| --: | --- |"]
    lines += [f"| {status} | {meaning} |" for status, meaning in EXIT_STATUSES.items()]
    lines += ["", "## Before the command", "", *_table(group.params, {})]
    for name, command in group.commands.items():
        lines += ["", f"## {name}", "", *_command(name, command, get_type_hints(COMMANDS[name][0]))]
    return "\n".join(lines)


def _command(name: str, command: Any, kinds: Mapping[str, Any]) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    words = [_word(param) for param in arguments]
    usage = " ".join([PROGRAM, name, *words, "[OPTIONS]"])
    return [f"`{usage}`", "", *_paragraphs(command.help), "", *_table(command.params, kinds)]


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a help text, each on one line, with an empty line between two."""
    whole = [" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n")]
    return "\n\n".join(whole).split("\n")


def _table(params: list[Any], kinds: Mapping[str, Any]) -> list[str]:
    rows = [f"| `{_names(param, kinds.get(param.name))}` | {_help(param)} | {_default(param)} |" for param in params]
    return ["| | | default |", "| --- | --- | --- |", *rows]


def _word(param: Any) -> str:
    word = str(param.metavar or param.name.upper())
    return word if param.required or word.startswith("[") else f"[{word}]"


def _names(param: Any, kind: Any) -> str:
    """Return what is written on the command line: `--store PATH|URI`, `--report / --no-report`, `SWEEP`."""
    if param.param_type_name == "argument":
        return _word(param).replace("|", r"\|")
    names = ", ".join(param.opts) + "".join(f" / {name}" for name in param.secondary_opts)
    return (names if param.is_flag else f"{names} {_value(param, kind)}").replace("|", r"\|")


def _value(param: Any, kind: Any) -> str:
    """Return what stands after an option: its own word, its choices, or the kind of its value."""
    if param.metavar:
        return str(param.metavar)
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, Enum):
            return "|".join(_plain(choice) for choice in one)
        if one in KINDS:
            return KINDS[one]
    return "TEXT"


def _help(param: Any) -> str:
    return " ".join((param.help or "").partition("  [default:")[0].split()).replace("|", r"\|")


def _default(param: Any) -> str:
    """Return the default as it would be written; empty for none, and for a flag that is off."""
    if param.required:
        return "needed"
    value = None if callable(param.default) else param.default
    if value is None or value is False or (param.is_flag and value is not True):
        return ""
    return f"`{_plain(value)}`" if value is not True else f"`{param.opts[0]}`"


def _plain(value: Any) -> str:
    return str(value.value if isinstance(value, Enum) else value)


if __name__ == "__main__":
    typer.echo(page())
