"""A table as Markdown, and the numbers in its cells."""

from __future__ import annotations

import pytest

from llama_bench.report.table import Table, duration, markdown


def test_markdown_is_a_table_that_no_name_or_message_can_break() -> None:
    table = Table("a <b>", ("x|y", "n"), (("<script>", "[l](u)"), ("`c`", "*e*")), ("note <i>",))
    text = markdown(table)
    assert "<script>" not in text
    assert "<i>" not in text
    assert "[l]\\(u)" in text
    assert "| x\\|y | n |\n| :-- | --: |\n" in text
    assert "\\`c\\`" in text


@pytest.mark.parametrize(
    ("seconds", "unit", "text"),
    [
        (0.0123456, "ms", "12.35"),
        (5.1001, "s", "5.100"),
        (1234.5, "s", "1,234"),
        (0.5, "ms", "500.0"),
        (None, "s", "–"),
    ],
)
def test_times_have_four_digits(seconds: float | None, unit: str, text: str) -> None:
    assert duration(seconds, unit) == text
