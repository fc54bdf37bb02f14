"""`passes`."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from llama_bench.cli.main import make_app
from llama_bench.passes import PASSES


def test_every_pass_of_the_table_is_listed_with_its_class() -> None:
    result = CliRunner().invoke(make_app(), ["passes", "--json"])
    listed = {(row["family"], row["name"]): row for row in json.loads(result.stdout)}
    assert set(listed) == {(family, name) for family, table in PASSES.items() for name in table}
    assert listed["onnxoptimizer", "eliminate_identity"]["class"] == "exact"


def test_a_refused_pass_is_listed_with_the_reason() -> None:
    refused = [(name, info.refused) for table in PASSES.values() for name, info in table.items() if info.refused]
    assert refused
    lines = CliRunner().invoke(make_app(), ["passes"], env={"COLUMNS": "500"}).stdout.splitlines()
    for name, reason in refused:
        assert any(name in line and f"refused: {reason}" in line for line in lines)
