"""Why the verdict is what it is, in words: the rule and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llama_bench.report.explanation.section import Section, bare, chance, interval, share, signed, times
from llama_bench.report.table import Table, plural
from llama_bench.stats.controls import VOID_P
from llama_bench.stats.decision import Decision, Rule
from llama_bench.stats.verdicts import Q

SHOWN = 12
"""Rows of the family that are shown whole; of a larger one those around this arm and around the last that differs."""


def why(found: Decision, recipe: str) -> Section:
    """Return the section about the verdict."""
    sentences = [*WORDS[found.rule](found, recipe), *_target(found), *_confirmed(found)]
    return Section("Why this verdict", tuple(sentences), tuple(_tables(found, recipe)))


def _baseline(found: Decision, recipe: str) -> Iterator[str]:
    yield (
        f"{recipe} is the baseline: every other arm of its cell is compared with it, and its own speedup is 1 by "
        "definition, without an interval."
    )
    yield "How well it repeats is what its control shows: the same program a second time, under another name."


def _control(found: Decision, recipe: str) -> Iterator[str]:
    yield (
        f"The control is {found.baseline} a second time, in processes of its own: whatever it seems to gain or lose is "
        "noise. It is no member of the family and is never called faster or slower."
    )
    yield from _estimate(found)


def _no_op(found: Decision, recipe: str) -> Iterator[str]:
    yield f"It does what {found.baseline} does: {found.evidence}."
    yield (
        "So there is nothing to compare, and it is no member of the family. Its ratio is one more look at the noise, "
        "as the control's is."
        if found.tested
        else "So there is nothing to compare."
    )
    yield from _estimate(found)


def _wrong(found: Decision, recipe: str) -> Iterator[str]:
    yield f"Its answer is wrong, whatever its speed is: {found.evidence}."
    yield "A wrong arm is never ranked; its ratio is shown in brackets, if at all."
    yield from _estimate(found)


def _no_number(found: Decision, recipe: str) -> Iterator[str]:
    said = {
        "unserved": "No node of the run serves its target, so nothing was timed",
        "skipped": "It was left out",
        "failed": "It failed, so there is no number that could be believed",
    }
    yield f"{said[found.word]}: {found.evidence}."
    yield {
        "unserved": "What nodes there are and what they lack: `python -m llama_bench targets`.",
        "skipped": "The same `run` command goes on with what can be timed and was not.",
        "failed": "With `--retry-failed` the same `run` command tries again what failed.",
    }[found.word]


def _no_interval(found: Decision, recipe: str) -> Iterator[str]:
    yield f"There is no ratio that a test could be made of: {found.evidence}."


def _machines(found: Decision, recipe: str) -> Iterator[str]:
    yield f"It was timed, and nothing can be said of it: {found.evidence}."


def _too_fast(found: Decision, recipe: str) -> Iterator[str]:
    yield f"It was timed, and its time cannot be true: {found.evidence}."


def _equal_programs(found: Decision, recipe: str) -> Iterator[str]:
    yield f"Its own ratios are not at fault: {found.evidence}."
    yield (
        "Its control, explained, shows by how much, and whether the order in the blocks or a drift has a part in it."
    )
    yield f"Below p = {VOID_P} nothing that hangs on a ratio is said of any arm of a target, and no number is shown."


def _discovery(found: Decision, recipe: str) -> Iterator[str]:
    yield from _estimate(found)
    yield from _ranked(found, recipe)
    if found.evidence:
        yield f"It is {found.evidence}."


def _margin(found: Decision, recipe: str) -> Iterator[str]:
    yield from _estimate(found)
    yield from _ranked(found, recipe)
    if found.tested:
        yield (
            f"Its 90 % interval {interval(found.tested.margin_low, found.tested.margin_high)} lies inside "
            f"±{share(found.tested.margin, 0)}, the difference that counts as none on this kind of target (two "
            "one-sided tests at 5 %), so it is equivalent."
        )


def _neither(found: Decision, recipe: str) -> Iterator[str]:
    yield from _estimate(found)
    yield from _ranked(found, recipe)
    if found.tested:
        yield (
            f"Nor is it equivalent: its 90 % interval {interval(found.tested.margin_low, found.tested.margin_high)} "
            f"reaches beyond ±{share(found.tested.margin, 0)}, the difference that counts as none here."
        )
        yield (
            "The smallest effect that would have been seen with a chance of 80 %: "
            f"{share(found.tested.smallest_effect)}. A smaller one may well be there."
        )


WORDS: dict[Rule, Callable[[Decision, str], Iterator[str]]] = {
    "baseline": _baseline,
    "control": _control,
    "no-op": _no_op,
    "wrong": _wrong,
    "no number": _no_number,
    "no interval": _no_interval,
    "machines": _machines,
    "too fast": _too_fast,
    "A/A": _equal_programs,
    "discovery": _discovery,
    "margin": _margin,
    "neither": _neither,
}
"""Rule → what is said of it."""


def _estimate(found: Decision) -> Iterator[str]:
    """The estimate and its test."""
    one = found.tested
    if one is None:
        return
    more, less = share(1 / one.speedup - 1), share(1 - 1 / one.speedup)
    effect = f"{less} less time than" if one.speedup > 1 else f"{more} more time than"
    yield (
        f"{times(one.speedup)} {interval(one.low, one.high)} at {share(one.level)}: over {one.restarts} restarts the "
        f"mean of y = ln(its time / {found.baseline}'s) is {signed(one.mean, 4)}, and the speedup is e to the minus "
        f"that. It took {effect} {found.baseline}."
    )
    pilot = f"the {one.df + 1} pilot restarts" if one.df + 1 < one.restarts else "all of them"
    widened = f" × {one.inflation:.3f}, by which the A/A pairs of the target widen everything" * (one.inflation > 1)
    yield (
        f"The standard deviation of y over {pilot} is {one.sd:.4f} ({plural(one.df, 'degree')} of freedom), the "
        f"standard error {one.sd:.4f} / √{one.restarts}{widened} = {one.standard_error:.4f}; so t = "
        f"{signed(one.t, 2)} and {chance(one.p)}."
    )


def _ranked(found: Decision, recipe: str) -> Iterator[str]:
    """Its place in the family, and the level of the interval."""
    me = next((one for one in found.family if one.recipe == recipe), None)
    if me is None or found.tested is None:
        return
    m, rejected = len(found.family), sum(one.rejected for one in found.family)
    if m == 1:
        yield f"It is the only arm of its cell's family, so p may be {Q:g}: it is {_called(me.rejected)} different."
    else:
        yield (
            f"It is number {me.rank} of the {m} arms of its cell that are tested together, by p. Benjamini–Hochberg "
            f"lets rank k have a p of k · {share(Q, 0)} / {m}, and calls all up to the last that has it different: "
            f"{_counted(rejected, m)}. Rank {me.rank} may have {me.allowed:.2g}, so it is {_called(me.rejected)} "
            "different" + (", because an arm after it may be." if me.rejected and me.p > me.allowed else ".")
        )
    yield (
        f"The interval is at 1 − max({rejected}, 1) · {share(Q, 0)} / {m} = {share(found.tested.level)}, the level at "
        "which an arm's interval leaves out 1 exactly when it is called different."
    )


def _called(rejected: bool) -> str:
    return "called" if rejected else "not called"


def _counted(rejected: int, m: int) -> str:
    return {0: "here none", m: f"here all {m}"}.get(rejected, f"here {rejected}")


def _target(found: Decision) -> Iterator[str]:
    """What the A/A pairs of the target say."""
    if found.rule in ("no number", "A/A"):
        return
    test = found.aa
    if not test.pairs:
        yield "No control or no-op of this target was timed well enough to ask whether equal programs differ here."
        return
    programs = f"Equal programs (controls and no-ops of this target, {plural(test.pairs, 'pair')})"
    told = f"χ² = {test.chi2:.1f} with {plural(test.pairs, 'degree')} of freedom, {chance(test.p)}"
    if test.void:
        yield f"{programs} differ here by more than chance: {told}."
    elif test.inflation > 1:
        yield (
            f"{programs} do not differ by more than chance explains ({told}). As χ² is above its degrees of freedom "
            f"all the same, every standard error of the target is √({test.chi2:.1f} / {test.pairs}) = "
            f"{test.inflation:.3f} times as large as its own spread says."
        )
    else:
        yield f"{programs} do not differ by more than chance explains ({told}), so nothing is widened."


def _confirmed(found: Decision) -> Iterator[str]:
    one = found.headline
    if one is None:
        return
    if one.speedup is None or one.low is None or one.high is None:
        yield f"It was the fastest of its cell and timed again on fresh restarts, and is not confirmed: {one.reason}."
        return
    reason = f" ({one.reason})" if one.reason else ""
    yield (
        f"As the fastest of its cell it was timed again on {one.restarts} fresh restarts, which it was not chosen by: "
        f"{times(one.speedup)} {interval(one.low, one.high)} at 90 %, {chance(one.p)} (one-sided, Holm over the "
        f"target's cells). It is {one.word}{reason}."
    )


def _tables(found: Decision, recipe: str) -> Iterator[Table]:
    if found.tested is None and found.rule != "A/A":
        return
    if any(one.recipe == recipe for one in found.family) and len(found.family) > 1:
        shown = _around(found, recipe)
        rows = tuple(
            (
                f"{one.rank}",
                f"{one.recipe} ←" if one.recipe == recipe else one.recipe,
                bare(one.p),
                f"{one.allowed:.2g}",
                "yes" if one.rejected else "no",
            )
            for one in (found.family[i] for i in shown)
        )
        left = len(found.family) - len(rows)
        notes = (f"{left} others are left out here.",) if left else ()
        yield Table("Its family, by p", ("Rank", "Recipe", "p", "Allowed", "Different"), rows, notes)
    if found.pairs:
        lines = tuple(
            (one.recipe, f"{times(one.speedup)} {interval(one.low, one.high)}", f"{one.restarts}")
            for one in found.pairs
        )
        title = f"What {found.baseline} shows against itself in this cell"
        yield Table(title, ("Control, no-ops", "Speedup [low, high]", "Restarts"), lines)


def _around(found: Decision, recipe: str) -> list[int]:
    """Places of the family's rows that are shown."""
    family = found.family
    if len(family) <= SHOWN:
        return list(range(len(family)))
    me = next(i for i, one in enumerate(family) if one.recipe == recipe)
    last = sum(one.rejected for one in family) - 1
    near = {0, *range(me - 2, me + 3), *range(last - 1, last + 3)}
    return sorted(i for i in near if 0 <= i < len(family))
