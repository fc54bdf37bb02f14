"""A comparison of two runs as JUnit XML, which CI systems show as tests: an arm is a test case."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from llama_bench.report import comparison_words as words
from llama_bench.report.comparison import Comparison, Row
from llama_bench.stats.comparing import TESTED

PASSED = (*TESTED, "same", "baseline", "control", "no-op", "now right")
"""Verdicts that are no failure unless their row is a regression; every other one cannot be compared."""

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, escaped or not (a terminal's colours in a message, say)."""


def junit(found: Comparison) -> str:
    """Return the XML: regressions are failures, and what cannot be compared is skipped.

    Of each case `time` is the arm's in B, in seconds. The answer and the environment are in the suite's `system-out`.
    """
    skipped = [row for row in found.rows if not row["regression"] and row["verdict"] not in PASSED]
    counts = {"tests": len(found.rows), "failures": len(found.regressions), "errors": 0, "skipped": len(skipped)}
    said = {key: str(count) for key, count in counts.items()}
    root = ET.Element("testsuites", {"name": "llama_bench compare", **said})
    suite = ET.SubElement(root, "testsuite", {"name": _text(f"{found.a['name']} → {found.b['name']}"), **said})
    for row in found.rows:
        _case(suite, row)
    lines = [words.answer(found), *map(words.machine, found.drift), *found.notes]
    lines += [words.differs(one) for one in found.differences]
    ET.SubElement(suite, "system-out").text = _text("\n".join(lines))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=False)


def _case(suite: ET.Element, row: Row) -> None:
    name = {"classname": _text(f"{row['model']}.{row['workload']}.{row['target']}"), "name": _text(row["recipe"])}
    seconds = {} if row["time_b_s"] is None else {"time": f"{row['time_b_s']:.9f}"}
    case = ET.SubElement(suite, "testcase", name | seconds)
    message = _text(f"{row['recipe']} {words.change(row)}")
    if row["regression"]:
        ET.SubElement(case, "failure", {"type": row["verdict"], "message": message}).text = _text(_why(row))
    elif row["verdict"] not in PASSED:
        ET.SubElement(case, "skipped", {"message": _text(f"{row['verdict']}: {row['evidence']}".removesuffix(": "))})
    else:
        ET.SubElement(case, "system-out").text = _text(_why(row))


def _why(row: Row) -> str:
    parts = [
        f"{words.where(row)}: {row['verdict']}",
        "" if row["change"] is None else f"{words.change(row)} by {row['by']}",
        row["evidence"],
    ]
    return "; ".join(part for part in parts if part)


def _text(said: str) -> str:
    return _NO_XML.sub("\ufffd", said)
