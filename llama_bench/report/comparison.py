"""Two runs side by side: what every format of a comparison is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from llama_bench import results
from llama_bench.errors import InputError
from llama_bench.report.table import plural
from llama_bench.stats import comparing, environment
from llama_bench.stats.cells import table as cells_view
from llama_bench.stats.environment import Difference
from llama_bench.stats.matching import Side, cells, side

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Both runs (`name`, the place `at` which it is, when it `began`), the frames of :class:`comparing.Compared` as
    rows, what differs in the environment, and `notes` about what makes the comparison doubtful as a whole.
    """

    a: Row
    b: Row
    rows: Sequence[Row]
    drift: Sequence[Row]
    differences: Sequence[Difference]
    notes: Sequence[str]

    @property
    def regressions(self) -> list[Row]:
        """The rows that are a regression."""
        return [row for row in self.rows if row["regression"]]


def load(path_a: str, path_b: str, *, by: str | None = None, threshold: float | None = None) -> Comparison:
    """Compare the run at `path_b` with that at `path_a` (:func:`comparing.compare`).

    Raises InputError for what is no result, for one run named twice, and for two runs without a common cell.
    """
    places = [results.locate(path) for path in (path_a, path_b)]
    names = [store.url(run) for store, run in places]
    if names[0] == names[1]:
        raise InputError(
            f"{path_a} and {path_b} are one run, {names[0]}: name two (a sweep's or a store's folder means its newest)"
        )
    read = [results.read_run(store, run) for store, run in places]
    datasets = [results.scan(name) for name in names]
    a, b = (side(letter, run, frames) for letter, run, frames in zip("AB", read, datasets, strict=True))
    _have_common_cells(a, b, names)
    found = comparing.compare(a, b, by=by, threshold=threshold)
    named = [
        {"name": run, "at": name, "began": str(info.get("created_at", ""))}
        for (_, run), name, info in zip(places, names, read, strict=True)
    ]
    return Comparison(
        a=named[0],
        b=named[1],
        rows=found.rows.to_dicts(),
        drift=found.drift.to_dicts(),
        differences=environment.differences((read[0], datasets[0]), (read[1], datasets[1])),
        notes=_notes(a, b),
    )


def _have_common_cells(a: Side, b: Side, names: Sequence[str]) -> None:
    in_a, in_b = (["/".join(key) for key in cells(one)] for one in (a, b))
    if set(in_a) & set(in_b):
        return
    first = in_a[0] if in_a else ""
    close = get_close_matches(first, in_b, 1, cutoff=0.0)
    raise InputError(
        f"{names[0]} and {names[1]} have no cell (model/workload/target) in common: "
        f"A has {_counted(first, in_a)}, B has {_counted(close[0] if close else '', in_b)}"
    )


def _counted(one: str, all_of_them: Sequence[str]) -> str:
    return f"{one or 'no cell'}{f' and {len(all_of_them) - 1} more' if len(all_of_them) > 1 else ''}"


def _notes(a: Side, b: Side) -> list[str]:
    notes = []
    for one in (a, b):
        view = cells_view(one.judged)
        left = view.filter(view["ended_by"] == "unfinished").height
        if left:
            notes.append(
                f"{one.name} is unfinished, or a part of its sweep: {left} of {plural(view.height, 'cell')} "
                f"{'has' if left == 1 else 'have'} fewer restarts than asked for; what is there is compared"
            )
    began = [str(one.run.get("created_at", "")) for one in (a, b)]
    if began[0] == began[1] and a.run.get("fingerprint") == b.run.get("fingerprint"):
        notes.append("A and B are copies of one run: they began at the same moment")
    elif all(began) and began[1] < began[0]:
        notes.append("B began before A: what is called slower here was slower earlier")
    return notes
