"""A comparison in words and tables: the answer in a sentence, what the machine did, the rows, Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from llama_bench.report.comparison import Comparison, Row
from llama_bench.report.table import DASH, Table, duration, escape, markdown, plural
from llama_bench.stats import comparing
from llama_bench.stats.environment import ONLY, Difference

CHANGED = ("slower", "faster", "now wrong", "now failed", "now right")
"""Verdicts that say that something is not as it was, in the order in which they are listed."""

ABSENT = ("new", "gone", "skipped", "unserved", "failed")
"""Verdicts of arms without a number in one of the runs, or in both."""

COUNTED = ("slower", "faster", "equivalent", "inconclusive", "same", "now wrong", "now failed", "void", "new", "gone")
"""Verdicts that come first in the line of numbers, in this order."""

SHOWN = 3
"""Arms that the sentence names; the tables have them all."""

NAMES = 8
"""Names that a line has before it only counts."""


def answer(found: Comparison) -> str:
    """Return the answer in one sentence."""
    compared = [row for row in found.rows if row["verdict"] in comparing.TESTED or row["verdict"] == "same"]
    worse, slower, faster = found.regressions, _of(found, "slower"), _of(found, "faster")
    if worse:
        return f"{plural(len(worse), 'regression')} from A to B: {_listed(worse)}"
    if not compared:
        return "No arm can be compared: none has a time in both runs that stands"
    if slower:
        return f"No regression, but {plural(len(slower), 'arm')} slower within the threshold: {_listed(slower)}"
    if faster:
        return f"No regression, and {plural(len(faster), 'arm')} faster: {_listed(faster)}"
    if all(row["verdict"] == "same" for row in compared):
        return f"Nothing to tell apart: {_all(len(compared))} the same program on the same hardware in both runs"
    return f"No arm of {len(compared)} became faster or slower from A to B beyond noise"


def _all(count: int) -> str:
    return "the one arm that can be compared is" if count == 1 else f"all {count} arms that can be compared are"


def _of(found: Comparison, *words: str) -> list[Row]:
    return [row for row in found.rows if row["verdict"] in words]


def _listed(rows: Sequence[Row]) -> str:
    """The rows that changed most, by name, and how many more there are."""
    most = sorted(rows, key=lambda row: -abs(row["change"] or 0.0))
    named = [f"{row['recipe']} {change(row)} ({where(row)})" for row in most[:SHOWN]]
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return "; ".join(named) + more


def where(row: Row) -> str:
    """Return the cell of a row in words."""
    return f"{row['model']}, {row['workload']}, target {row['target']}"


def change(row: Row) -> str:
    """Return `+10.1 % [+8.9, +11.4]`, how much longer it takes, or its verdict where it has no such number."""
    if row["change"] is None:
        return str(row["verdict"])
    return _interval(row["change"], row["low"], row["high"])


def _interval(value: float, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" [{low * 100:+.1f}, {high * 100:+.1f}]"
    return f"{value * 100:+.1f} %{ends}"


def numbers(found: Comparison) -> str:
    """Return how many arms have which verdict."""
    listed = [*COUNTED, *dict.fromkeys(row["verdict"] for row in found.rows if row["verdict"] not in COUNTED)]
    counts = [(word, len(_of(found, word))) for word in listed]
    return f"{plural(len(found.rows), 'arm')}: " + ", ".join(f"{count} {word}" for word, count in counts if count)


def machine(row: Row) -> str:
    """Return what the times of a target say of its machine, and of what is compared because of it."""
    name, ends = row["target"], f"from {_percent(row['least'])} to {_percent(row['most'])}"
    if not row["same_hardware"]:
        what = f"the times of {plural(row['arms'], 'arm')} changed by {_percent(row['change'])} in the middle, {ends}"
        if row["by"] == "time":
            return f"Target {name}: other hardware in B, and times were asked for: {what}, which compares the machines."
        return f"Target {name}: other hardware in B, so speedups over the baseline are compared, not times ({what})."
    if row["source"] == "same programs":
        shift = _interval(row["change"], row["low"], row["high"])
        off = "is not counted as a change of the others" if row["by"] == "time" else "cancels in speedups"
        code = "" if row["same_code"] else " (or the code that measures, which is not the same)"
        wider = f" They do not agree, so every interval is {row['inflation']:.2f}× as wide." if _uneven(row) else ""
        return (
            f"Target {name}: the machine itself{code} changed its times by {shift}. That is the mean of "
            f"{plural(row['arms'], 'arm')} that {'is' if row['arms'] == 1 else 'are'} the same program in both runs "
            f"({ends}); it {off}.{wider}"
        )
    tail = (
        "so what the machine did cannot be told from what was changed; --by speedup leaves out what all arms share"
        if row["by"] == "time"
        else "and what all arms share cancels in speedups"
    )
    return (
        f"Target {name}: the times of {plural(row['arms'], 'arm')} changed by {_percent(row['change'])} in the middle, "
        f"{ends}. No arm is known to be the same program in both runs, {tail}."
    )


def _uneven(row: Row) -> bool:
    return row["inflation"] is not None and row["inflation"] >= 1.005


def _percent(value: float) -> str:
    return f"{value * 100:+.1f} %"


COLUMNS = ("Model", "Workload", "Target", "Recipe", "Time A", "Time B", "Time", "Speedup A", "Speedup B",
           "Change [low, high]", "Verdict")  # fmt: skip
NUMBERS = COLUMNS[4:10]


def table(rows: Sequence[Row], title: str = "") -> Table:
    """Return one line an arm; what the columns mean is :func:`legend`."""
    return Table(title, COLUMNS, tuple(_cells(row) for row in rows))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        *(str(row[key]) for key in ("model", "workload", "target", "recipe")),
        *(_time(row[key]) for key in ("time_a_s", "time_b_s")),
        DASH if row["time_change"] is None else _percent(row["time_change"]),
        *(DASH if row[key] is None else f"{row[key]:.3f}×" for key in ("speedup_a", "speedup_b")),
        DASH if row["change"] is None else change(row),
        row["verdict"] + (" (regression)" if row["regression"] and row["verdict"] == "slower" else ""),
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return DASH
    return f"{duration(seconds, 's')} s" if seconds >= 1 else f"{duration(seconds, 'ms')} ms"


def legend(found: Comparison) -> list[str]:
    """Return what “Change” is of here, and from where on it is a regression."""
    tested = [row for row in found.rows if row["change"] is not None]
    lines = []
    if any(row["by"] == "time" for row in tested):
        off = " without the machine's drift" if any(row["drift"] is not None for row in tested) else ""
        lines.append(f"Change: of the arm's time{off}; +10 % takes 10 % longer.")
    if any(row["by"] == "speedup" for row in tested):
        lines.append("Change, by speedup: of the arm's time over its baseline's; +10 % takes 10 % longer beside it.")
    if found.rows:
        limits = sorted({row["threshold"] for row in found.rows})
        words = " or ".join(f"{limit * 100:.3g} %" for limit in limits)
        lines.append(f"A regression is slower beyond noise and by more than {words}, now wrong, or now failed.")
    return lines


def changed(found: Comparison) -> list[Row]:
    """Return the rows that are not as they were, the worst first."""
    order = {word: i for i, word in enumerate(CHANGED)}
    rows = _of(found, *CHANGED)
    return sorted(rows, key=lambda row: (not row["regression"], order[row["verdict"]], -abs(row["change"] or 0.0)))


def unchanged(found: Comparison) -> list[Row]:
    """Return the rows with numbers in both runs that say nothing new."""
    return [row for row in found.rows if row["verdict"] not in (*CHANGED, *ABSENT)]


def reasons(rows: Sequence[Row]) -> list[str]:
    """Return a line for each verdict with its evidence, for the arms that cannot be compared or are not right."""
    arms: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row["evidence"] and row["verdict"] in ("wrong", "now wrong", "now right", "now failed", "void", *ABSENT):
            arms.setdefault((row["verdict"], row["evidence"]), []).append(row)
    return [f"{word}, {_arms(found)}: {evidence}" for (word, evidence), found in arms.items()]


def _arms(rows: Sequence[Row]) -> str:
    """Their names, and their cell where they are of one only."""
    cell = f" ({where(rows[0])})" if len({where(row) for row in rows}) == 1 else ""
    return _names([row["recipe"] for row in rows]) + cell


def absent(found: Comparison) -> list[str]:
    """Return which arms only one run has a number for."""
    return [f"{word}: {_names([row['recipe'] for row in rows])}" for word in ABSENT if (rows := _of(found, word))]


def _names(names: Sequence[str]) -> str:
    once = list(dict.fromkeys(names))
    more = f" and {len(once) - NAMES} more" if len(once) > NAMES else ""
    return ", ".join(once[:NAMES]) + more


def differs(one: Difference) -> str:
    """Return a difference of the environment in words."""
    if not one.what.endswith(ONLY):
        return f"{one.part}: {one.what} {one.a} → {one.b}"
    sides = [
        f"only in {run} {_names(words.split(', '))}" for run, words in (("A", one.a), ("B", one.b)) if words != DASH
    ]
    return f"{one.part}: {one.what.removesuffix(ONLY)} {'; '.join(sides)}"


def as_markdown(found: Comparison) -> str:
    """Return a comment for a pull request: the answer, what changed, and all the rest folded away."""
    parts = [f"## {escape(answer(found))}", "\n".join(f"* {escape(line)}" for line in _lines(found))]
    rows = changed(found)
    if rows:
        parts += [markdown(table(rows)).rstrip(), "\n".join(f"* {escape(line)}" for line in reasons(rows))]
    rest = [row for row in found.rows if row not in rows]
    whole = [
        f"<details><summary>All {plural(len(found.rows), 'arm')}, and the environment</summary>",
        markdown(table(found.rows)).rstrip(),
        "\n".join(f"* {escape(line)}" for line in [*legend(found), *reasons(rest)]),
        "### What changed in the environment",
        "\n".join(f"* {escape(differs(one))}" for one in found.differences) or "Nothing that was recorded.",
        "</details>",
    ]
    return "\n\n".join(part for part in [*parts, *whole] if part) + "\n"


def _lines(found: Comparison) -> list[str]:
    runs = [
        f"{name}: {run['name']}, began {run['began'][:16].replace('T', ' ')}"
        for name, run in (("A", found.a), ("B", found.b))
    ]
    return [*runs, numbers(found), *(machine(row) for row in found.drift), *found.notes]


def as_json(found: Comparison) -> dict[str, Any]:
    """Return everything as JSON holds it: shares and seconds."""
    return {
        "a": dict(found.a),
        "b": dict(found.b),
        "answer": answer(found),
        "regressions": len(found.regressions),
        "notes": list(found.notes),
        "machine": [{**row, "words": machine(row)} for row in found.drift],
        "environment": [asdict(one) for one in found.differences],
        "rows": [dict(row) for row in found.rows],
    }
