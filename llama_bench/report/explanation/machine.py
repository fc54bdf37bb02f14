"""What the machine was like in a row's slots, in words."""

from __future__ import annotations

from collections.abc import Iterator

from llama_bench.report.explanation.section import Section, bare, signed
from llama_bench.report.table import DASH, Table, plural
from llama_bench.stats.explained import Explained
from llama_bench.stats.surroundings import Process, Said, Seen

NAMES = {
    "sm_mhz": ("GPU clock (MHz)", 1.0, 0),
    "cpu_mhz": ("CPU clock (MHz)", 1.0, 0),
    "power_w": ("GPU power (W)", 1.0, 0),
    "temperature_c": ("GPU temperature (°C)", 1.0, 0),
    "steal": ("Stolen CPU time (%)", 100.0, 1),
    "cpu_pressure": ("Waiting for a CPU (%)", 100.0, 0),
    "memory_pressure": ("Waiting for memory (%)", 100.0, 1),
    "load_1m": ("Load", 1.0, 1),
}
"""Column → what it is called, its factor and digits."""

WORDS = {
    ("throttle", "block"): "reasons for not clocking higher",
    ("foreign", "block"): "other processes on the GPU",
    ("throttle", "restart"): "reasons for not clocking higher, as a restart began",
    ("busy", "restart"): "busy processes beside, since the last restart",
}

PROCESS = {
    "niceness": "niceness",
    "threads": "threads",
    "provider": "provider",
    "node": "Ray node",
    "hostname": "host",
    "cpu": "CPU",
    "gpu": "GPU",
}

SUSPICIOUS = 0.01
"""A correlation is named below this p: there are a dozen of them."""

MOST_WORDS = 3


def machine(found: Explained) -> Section | None:
    """Return the section about clocks, power, stolen time and pressure; None where nothing was timed."""
    if not any(one.arm for one in found.processes) and not found.restarts:
        return None
    is_base = found.name.recipe == found.name.baseline
    known = [one for one in found.seen if one.values]
    missing = [one for one in found.seen if not one.values]
    sentences = [*_shared(known, is_base), *_along(known), *_said(found.said), *_set_up(found.processes, is_base)]
    if missing:
        sentences.append(f"Not measured here: {', '.join(_of_what(missing))}.")
    tables = (Table("", ("", "", "This arm", "Baseline", "ρ with y", "p"), tuple(map(_row, known))),) if known else ()
    if tables and is_base:
        rows = tuple((*row[:3],) for row in tables[0].rows)
        tables = (Table("", ("", "", "Median [least, most]"), rows),)
    elif tables:
        notes = ("Medians [least, most]; ρ is Spearman's rank correlation with y = ln(arm / baseline).",)
        tables = (Table("", tables[0].columns, tables[0].rows, notes),)
    return Section("Clocks and the machine", tuple(sentences), tables)


def _of_what(missing: list[Seen]) -> list[str]:
    """`GPU clock (of blocks and restarts)`, each name once."""
    of: dict[str, list[str]] = {}
    for one in missing:
        of.setdefault(NAMES[one.what][0].partition(" (")[0], []).append(f"{one.of}s")
    return [f"{name} (of {' and '.join(which)})" for name, which in of.items()]


def _row(one: Seen) -> tuple[str, ...]:
    name, _, digits = NAMES[one.what]
    factor = NAMES[one.what][1]

    def range_of(low: float | None, median: float | None, high: float | None) -> str:
        if low is None or median is None or high is None:
            return DASH
        low, median, high = (value * factor for value in (low, median, high))
        return f"{median:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"

    return (
        name,
        plural(one.values, one.of),
        range_of(one.low, one.median, one.high),
        range_of(one.baseline_low, one.baseline_median, one.baseline_high),
        DASH if one.rho is None else signed(one.rho, 2),
        DASH if one.p is None else bare(one.p),
    )


def _shared(known: list[Seen], is_base: bool) -> Iterator[str]:
    if known and not is_base:
        yield (
            "Blocks are looked at whole, so what was seen of one holds for this arm and its baseline alike. What can "
            "be asked is whether the ratio went along with it."
        )


def _along(known: list[Seen]) -> Iterator[str]:
    asked = [one for one in known if one.p is not None]
    if not asked:
        return
    with_it = [one for one in asked if one.p is not None and one.p < SUSPICIOUS]
    for one in with_it:
        more = "longer" if (one.rho or 0) > 0 else "less long"
        yield (
            f"{NAMES[one.what][0].partition(' (')[0]} and the ratio went together over {plural(one.values, one.of)} "
            f"(ρ = {signed(one.rho or 0.0, 2)}, p = {bare(one.p or 0.0)}): the higher it was, the {more} the arm took "
            "against its baseline."
        )
    if not with_it:
        yield "The ratio went along with none of them that one could tell (p < 0.01)."


def _said(said: tuple[Said, ...]) -> Iterator[str]:
    for one in said:
        if not one.words:
            continue
        told = "; ".join(f"{words} ({plural(n, one.of)})" for words, n in one.words[:MOST_WORDS])
        more = "; …" if len(one.words) > MOST_WORDS else ""
        yield f"In {plural(one.values, one.of)}, {WORDS[one.what, one.of]}: {told}{more}."
    if quiet := [WORDS[one.what, one.of] for one in said if one.values and not one.words]:
        yield f"Looked for and not there: {'; '.join(quiet)}."


def _set_up(processes: tuple[Process, ...], is_base: bool) -> Iterator[str]:
    by_name = {one.what: one for one in processes}
    same = [
        f"{name} {', '.join(one.arm)}"
        for key, name in PROCESS.items()
        if key != "node" and (one := by_name.get(key)) and one.arm and (is_base or one.arm == one.baseline)
    ]
    if same:
        yield f"Its processes{'' if is_base else ', as those of the baseline'}: {'; '.join(same)}."
    for key, name in PROCESS.items():
        one = by_name.get(key)
        if one and not is_base and one.arm and one.arm != one.baseline:
            yield f"Unlike the baseline's: {name} {', '.join(one.arm)}, there {', '.join(one.baseline) or 'unknown'}."
    for key, name in (("peak_bytes", "memory of the host"), ("device_bytes", "memory of the GPU")):
        one = by_name.get(key)
        if one and one.arm:
            beside = f", the baseline {int(one.baseline[0]) / 1e6:,.0f} MB" if one.baseline and not is_base else ""
            yield f"It took {int(one.arm[0]) / 1e6:,.0f} MB of {name} at most (median of its restarts){beside}."
