"""docs/schema.md lists every column of every dataset and view with its type, in their order."""

from __future__ import annotations

import re
from typing import Any

import polars as pl
import pytest

from llama_bench.schemas import SCHEMA_VERSION, SCHEMAS
from llama_bench.stats import accuracy, cells, generation, pareto, sizes, speedups

from .documents import ROOT

PAGE = (ROOT / "docs/schema.md").read_text(encoding="utf-8")

VIEWS: dict[str, dict[str, Any]] = {
    "speedups": speedups.SCHEMA,
    "cells": cells.SCHEMA,
    "accuracy_by_arm": accuracy.SCHEMA,
    "sizes": sizes.SCHEMA,
    "pareto": pareto.SCHEMA,
    "generation": generation.SCHEMA,
}

WORDS = {"string": "text", "int64": "count", "double": "number", "bool": "flag"}
COMMON = ("cell", "model", "workload", "target", "restart", "group", "phase")
"""Columns that the page explains once, above the tables."""


def _word(dtype: Any) -> str:
    """The page's word for a type, of Arrow or of polars."""
    names = {pl.String: "text", pl.Int64: "count", pl.Float64: "number", pl.Boolean: "flag"}
    if dtype in names.values() or dtype in names:
        return names.get(dtype, dtype)
    text = str(dtype)
    return "time" if text.startswith("timestamp") else WORDS.get(text) or f"{WORDS[text[text.index(': ') + 2 : -1]]}s"


def _documented(name: str) -> list[tuple[str, str]]:
    """Column and type of each row of the table under the heading `name`."""
    section = PAGE.partition(f"\n### {name}\n")[2].partition("\n#")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| (\w+) \| ([^|]+) \|$", section, flags=re.MULTILINE)
    return [(column, kind) for columns, kind, _ in rows for column in re.findall(r"`(\w+)`", columns)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_of_a_dataset_is_documented(name: str) -> None:
    columns = [(field.name, _word(field.type)) for field in SCHEMAS[name]]
    own = COMMON if "restart" in SCHEMAS[name].names else COMMON[:4] if "cell" in SCHEMAS[name].names else ()
    assert _documented(name) == [(column, kind) for column, kind in columns if column not in own]


@pytest.mark.parametrize("name", VIEWS)
def test_every_column_of_a_view_is_documented(name: str) -> None:
    columns = [(column, _word(dtype)) for column, dtype in VIEWS[name].items()]
    assert _documented(name) == [(column, kind) for column, kind in columns if column not in COMMON[:4]]


def test_every_dataset_and_view_has_its_table_and_the_version_is_said() -> None:
    assert re.findall(r"^### (\w+)$", PAGE, flags=re.MULTILINE) == [*SCHEMAS, *VIEWS]
    assert f"The version of the schema is **{SCHEMA_VERSION}**" in PAGE


def test_the_page_has_every_view_that_sql_sees() -> None:
    from dataclasses import fields

    from llama_bench.stats.views import Frames

    assert {field.name for field in fields(Frames)} - {"run"} == {*SCHEMAS, *VIEWS}
