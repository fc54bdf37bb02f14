"""Does the method keep its promises? Cells with a known truth, through the functions that judge real ones.

What answers is not a copy of the method but the method: `stein_total`, `aa_test`, `estimate`, `equivalent`, `judge`,
`best` and `headlines`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llama_bench.stats.controls import VOID_P, aa_test
from llama_bench.stats.headline import ALPHA, CONFIRM_LEVEL, best, headlines
from llama_bench.stats.ratios import LEVEL, Estimate, estimate
from llama_bench.stats.simulated import Arm, Array, Setting, log_seconds, measure, ratios
from llama_bench.stats.verdicts import Comparison, Q, Verdict, equivalent, fcr_level, judge
from llama_bench.sweep import CONTROL

Method = Callable[[Array, int], list[Estimate]]
"""From y (restarts × arms) and the number of pilot restarts to one estimate an arm."""

TOLERANCE = 3.3
"""Standard errors of the simulation that a rate may lie from its promise: of 1000 kept promises one looks broken."""

SLACK_OF_POWER = 0.05
"""Power is exact for normal noise only; under spikes this much less is still called kept."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of the cells: measured, promised (`sign` is "=", "≤" or "≥"), and the simulation's standard error."""

    setting: str
    what: str
    measured: float
    sign: str
    promised: float
    cells: int

    @property
    def standard_error(self) -> float:
        """Return √(p(1 − p)/cells) at the promise; for means of shares within a cell it is an upper bound."""
        return math.sqrt(self.promised * (1 - self.promised) / self.cells)

    @property
    def within(self) -> bool:
        """Return whether the promise is kept within the simulation's error."""
        above = self.measured - self.promised
        worst = {"=": abs(above), "≤": above, "≥": -above}[self.sign]
        return worst <= TOLERANCE * self.standard_error + 1e-12


@dataclass(slots=True)
class Outcome:
    """What was said of each cell, one row a cell and one column an arm (`called` −1 is faster, 1 slower)."""

    y: list[Array] = field(default_factory=list)
    estimates: list[list[Estimate]] = field(default_factory=list)
    called: list[list[int]] = field(default_factory=list)
    printed: list[list[tuple[float, float]]] = field(default_factory=list)
    voided: list[bool] = field(default_factory=list)


def own_variance(y: Array, pilot: int) -> list[Estimate]:
    """Return the method's estimates: each arm from its own values alone."""
    return [estimate(column, pilot) for column in _columns(y)]


def _columns(y: Array) -> list[list[float]]:
    """Return the values of each arm in the restarts that it has."""
    return [[value for value in column if not math.isnan(value)] for column in y.T.tolist()]


def simulate(setting: Setting, cells: int, seed: int, method: Method = own_variance) -> list[Rate]:
    """Draw `cells` cells and return the rates of what was said of them beside what is promised.

    `method` makes the estimates behind the rates before multiplicity; another than the tool's own shows what it would
    do. Verdicts and printed intervals are those of `judge`.
    """
    # the name keeps two settings from sharing their random numbers, and their luck
    rng, outcome = np.random.default_rng([seed, *setting.name.encode()]), Outcome()
    for y in measure(setting, cells, rng):
        _judge(setting, y, method, outcome)
    found = [*_before_multiplicity(setting, outcome), *_as_printed(setting, outcome)]
    rates = [Rate(setting.name, what, measured, sign, promised, cells) for what, measured, sign, promised in found]
    return [*rates, *(_confirmed(setting, outcome, rng) if setting.headline else ())]


def _judge(setting: Setting, y: Array, method: Method, outcome: Outcome) -> None:
    """Add what is said of one cell: the tool's functions in the order in which a report calls them."""
    columns = _columns(y)
    test = aa_test([{CONTROL: dict(enumerate(columns.pop()))}] if setting.control else [])
    compared = {str(i): Comparison(tuple(column)) for i, column in enumerate(columns)}
    verdicts = judge(
        compared,
        pilot=setting.restarts,
        margin=setting.margin,
        inflation=test.inflation,
        void=test.words(setting.name) if test.void else None,
    ).values()
    outcome.y.append(y)
    estimates = method(y[:, : len(columns)], setting.restarts)
    outcome.estimates.append([replace(found, inflation=test.inflation) for found in estimates])
    outcome.called.append([_CALLED.get(verdict.word, 0) for verdict in verdicts])
    outcome.printed.append([_interval(verdict) for verdict in verdicts])
    outcome.voided.append(test.void)


_CALLED = {"faster": -1, "slower": 1}
_Found = tuple[str, float, str, float]


def _interval(verdict: Verdict) -> tuple[float, float]:
    """The printed interval as one of y: a verdict prints it as one of the speedup, and none where it is void."""
    if verdict.word == "void":
        return -math.inf, math.inf
    if verdict.interval is None:
        raise ValueError(f"a simulated arm has no interval: {verdict.evidence}")
    low, high = verdict.interval
    return -math.log(high), -math.log(low)


def _before_multiplicity(setting: Setting, outcome: Outcome) -> Iterator[_Found]:
    """Each kind of arm by itself: error or power of the 5 % test, coverage of the 95 % interval, equivalence."""
    error = Q if setting.at_most is None else setting.at_most
    sign, complement = ("=", "=") if setting.at_most is None else ("≤", "≥")
    column = 0
    for arm in setting.arms:
        effect = setting.true_effect(arm)
        mine = [found for row in outcome.estimates for found in row[column : column + arm.count]]
        column += arm.count
        seen = [found.p_value() < Q and (effect == 0 or found.mean * effect > 0) for found in mine]
        if setting.equivalence:
            said = _share(equivalent(found, setting.margin) for found in mine)
            edge = effect != 0
            yield f"{arm.name}: equivalent", said, "≤" if edge else "=", Q if edge else setting.equivalence_rate(arm)
        elif effect == 0:
            yield f"{arm.name}: false alarms at 5 %", _share(seen), sign, error
        else:
            yield f"{arm.name}: seen at 5 %", _share(seen), *_power(setting, arm, LEVEL)
        covered = (low <= effect <= high for low, high in (found.interval() for found in mine))
        yield f"{arm.name}: 95 % interval covers", _share(covered), complement, 1 - error
        if setting.half_width is not None and setting.budget is None:
            reached = ((high - low) / 2 <= setting.half_width for low, high in (found.interval() for found in mine))
            yield f"{arm.name}: wanted half-width reached", _share(reached), "=", 1.0


def _as_printed(setting: Setting, outcome: Outcome) -> Iterator[_Found]:
    """A cell as a family: false discoveries, false coverage of the arms called different, all printed intervals.

    False discoveries are at most q·(share of unchanged arms) (Benjamini & Hochberg 1995; with a shared baseline,
    whose errors go together: Benjamini & Yekutieli 2001), false coverage of the selected at most q (2005). A printed
    interval is never narrower than the 95 % one. Benjamini-Hochberg sees at least what Bonferroni sees.
    """
    error = Q if setting.at_most is None else setting.at_most
    effects = np.array([setting.true_effect(arm) for arm in setting.each])
    called, printed = np.array(outcome.called), np.array(outcome.printed)
    discoveries = np.maximum((called != 0).sum(axis=1), 1)
    false = ((called != 0) & (effects == 0)).sum(axis=1) / discoveries
    missed = (printed[..., 0] > effects) | (effects > printed[..., 1])
    uncovered = (missed & (called != 0)).sum(axis=1) / discoveries
    yield "cell: false discoveries", float(false.mean()), "≤", error * float((effects == 0).mean())
    yield "cell: intervals of called arms that miss", float(uncovered.mean()), "≤", error
    yield "cell: printed intervals that miss", float(missed.mean()), "≤", error
    if setting.control:
        yield "cell: void", _share(outcome.voided), "=", VOID_P
    column = 0
    for arm in setting.arms:
        mine = called[:, column : column + arm.count]
        column += arm.count
        effect = setting.true_effect(arm)
        if effect != 0 and not setting.equivalence:
            _, promised = _power(setting, arm, fcr_level(1, len(effects)))
            yield f"{arm.name}: called with its sign", float((mine * effect > 0).mean()), "≥", promised


def _confirmed(setting: Setting, outcome: Outcome, rng: np.random.Generator) -> Iterator[Rate]:
    """The fastest arm of each cell on fresh restarts: its 90 % interval, and the 95 % bound that is its lower end."""
    effects = [setting.true_effect(arm) for arm in setting.each]
    again = ratios(log_seconds(setting, len(outcome.y), setting.restarts, rng))
    lower, covered = [], []
    for y, fresh in zip(outcome.y, again, strict=True):
        named = {str(i): column for i, column in enumerate(_columns(y))}
        chosen = best(named, pilot=setting.restarts, margin=setting.margin)
        if chosen is None:
            continue
        headline = headlines({setting.name: (chosen, fresh[:, int(chosen)].tolist())})[setting.name]
        if headline.low is None or headline.high is None:
            raise ValueError(f"a simulated headline has no interval: {headline.sentence}")
        truth = math.exp(-effects[int(chosen)])
        lower.append(headline.low <= truth)
        covered.append(headline.low <= truth <= headline.high)
    yield Rate(setting.name, "headline: 90 % interval covers", _share(covered), "=", CONFIRM_LEVEL, len(covered))
    yield Rate(setting.name, "headline: 95 % lower bound holds", _share(lower), "=", 1 - ALPHA, len(lower))


def _power(setting: Setting, arm: Arm, level: float) -> tuple[str, float]:
    promised = setting.power(arm, level)
    if setting.at_most is not None:
        return "≥", promised - SLACK_OF_POWER
    return "=" if setting.half_width is None else "≥", promised


def _share(said: Iterator[bool] | Sequence[bool]) -> float:
    values = list(said)
    return sum(values) / len(values)
