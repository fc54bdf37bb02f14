"""What a calibration measures: many small cells of which the truth is known, as a sweep like any other. Pure, no I/O.

Every cell times `original` against `control`, the same program a second time (A/A). Every `slowed_every`-th cell has
further arms whose runs end in a busy loop of a known share: `slower_1` is 1 % slower, and the loop's own clock says
by how much exactly. Cells have processes of their own, so no process is part of two A/A pairs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_bench.errors import InputError

if TYPE_CHECKING:
    from llama_bench.sweep import Sweep  # takes a tenth of a second, and the command line needs no more than `Design`

NAME, TARGET, BASELINE = "calibrate", "here", "original"
"""Name of the sweep, its one target, its baseline."""

MOST_CELLS = 9999
HEADS, VOCABULARY, MLP = 2, 1000, 2.75  # MLP: width of the feed-forward network over hidden size, Llama's 11008 / 4096

_MODEL = "h{hidden}-l{layers}-slowed-every-{every}"
_MODEL_READ = re.compile(r"h\d+-l\d+-slowed-every-(\d+)")
_CELL_READ = re.compile(r"cell-(\d{4})")


@dataclass(frozen=True, slots=True)
class Design:
    """How large a calibration is; fixed before it starts, so that no result decides when to stop.

    `slowdowns` are shares (0.01 is 1 %) that every `slowed_every`-th cell has as arms (0: none). `restarts`, `blocks`,
    `runs`, `half_width`, `budget_s` (seconds a cell) and `seed` are a sweep's `measure`. One thread by default: that
    the runs are quick and steady matters here, and another core is left to whatever else the machine does. A run is
    short (a millisecond) beside what a busy machine takes a core away for, so a slot has many.

    Raises InputError, naming the option of `calibrate`, for values out of range.
    """

    cells: int = 60
    slowed_every: int = 3
    slowdowns: tuple[float, ...] = (0.01, 0.03)
    restarts: int = 6
    blocks: int = 4
    runs: int = 30
    half_width: float = 0.01
    budget_s: float = 60.0
    threads: int = 1
    provider: str = "CPUExecutionProvider"
    seed: int = 7
    hidden_size: int = 128
    layers: int = 2
    sequence: int = 128

    def __post_init__(self) -> None:
        _whole("--cells", self.cells, 1, MOST_CELLS)
        _whole("--slowed-every", self.slowed_every, 0, self.cells, ", the number of cells; 0: none is slowed")
        # an interval needs two restarts, and the other procedures two runs of a process
        _whole("--restarts", self.restarts, 2)
        _whole("--blocks", self.blocks, 1)
        _whole("--runs", self.runs, 2)
        _whole("--threads", self.threads, 1)
        _whole("--seed", self.seed, 0, 2**63 - 1)
        _between("--half-width", self.half_width, 1)
        _between("--budget", self.budget_s, math.inf)
        for share in self.slowdowns:
            _between("--slowdown", share, 10)
        if len({slowed(share) for share in self.slowdowns}) < len(self.slowdowns):
            raise InputError(f"--slowdown: {', '.join(f'{share:g}' for share in self.slowdowns)} has a share twice")
        if self.slowed_every and not self.slowdowns:
            raise InputError("--slowdown: at least one share, or --slowed-every 0")
        _whole("hidden size", self.hidden_size, 2 * HEADS)
        if self.hidden_size % (2 * HEADS):
            raise InputError(f"hidden size {self.hidden_size}: a multiple of {2 * HEADS} is needed")
        _whole("layers", self.layers, 1)
        _whole("sequence", self.sequence, 1)


def slowed(share: float) -> str:
    """Return the name of the recipe that is slower by `share`: `slower_3` for 0.03."""
    return f"slower_{100 * share:g}"


def workload(number: int) -> str:
    """Return the name of the workload of cell `number`, counted from 1: `cell-0001`."""
    return f"cell-{number:04d}"


def number(workload: str) -> int:
    """Return the number of the cell with this workload; InputError when it is no calibration's."""
    found = _CELL_READ.fullmatch(workload)
    if found is None:
        raise InputError(f"workload {workload!r} is not a cell of a calibration")
    return int(found[1])


def arms(design: Design, number: int) -> tuple[str, ...]:
    """Return the names of the arms of cell `number`: baseline, control, and in every `slowed_every`-th the slowed."""
    from llama_bench.sweep import CONTROL

    slower = design.slowed_every > 0 and number % design.slowed_every == 0
    return (BASELINE, CONTROL, *(slowed(share) for share in design.slowdowns if slower))


def processes(design: Design) -> int:
    """Return how many processes the pilot restarts start: one an arm, in every restart of every cell."""
    return design.restarts * sum(len(arms(design, cell)) for cell in range(1, design.cells + 1))


def sweep(design: Design) -> Sweep:
    """Return the sweep that `design` is: one small model, one workload a cell (all alike: one export serves them).

    A sweep has every recipe in every cell; :func:`arms` says which of them a cell of a calibration has. The model's
    name says how often, so that all of the design is part of the sweep, and with it of what a run is known by.
    """
    from llama_bench.sweep import Measure, Model, Recipe, Session, Sweep, Target, Workload

    shares = design.slowdowns if design.slowed_every else ()
    name = _MODEL.format(hidden=design.hidden_size, layers=design.layers, every=design.slowed_every)
    model = Model(
        name=name,
        hidden_size=design.hidden_size,
        num_attention_heads=HEADS,
        num_hidden_layers=design.layers,
        intermediate_size=round(design.hidden_size * MLP),
        vocab_size=VOCABULARY,
        max_position_embeddings=max(2048, design.sequence),
        head="none",
        exporter="dynamo",
    )
    tag = "bench_cpu" if design.provider == "CPUExecutionProvider" else "bench_gpu"
    cell = Workload(sequence=design.sequence, outputs="hidden")
    return Sweep(
        name=NAME,
        models=(model,),
        recipes={BASELINE: Recipe(), **{slowed(share): Recipe(session=Session(slowdown=share)) for share in shares}},
        workloads={workload(number): cell for number in range(1, design.cells + 1)},
        targets={TARGET: Target(tag=tag, provider=design.provider, threads=design.threads)},
        measure=Measure(
            baseline=BASELINE,
            restarts=design.restarts,
            blocks=design.blocks,
            runs=design.runs,
            half_width=design.half_width,
            budget_s=design.budget_s,
            confirm=False,
            seed=design.seed,
        ),
    )


def design_of(sweep: Sweep) -> Design:
    """Return the design that `sweep` was made from; InputError when it is no calibration."""
    from llama_bench.sweep import Model

    model, measure = sweep.models[0], sweep.measure
    every = _MODEL_READ.fullmatch(model.name or "")
    if (
        sweep.name != NAME
        or every is None
        or TARGET not in sweep.targets
        or measure.half_width is None
        or not isinstance(model, Model)
    ):
        raise InputError(f"{sweep.name!r} is a sweep and no calibration; python -m llama_bench report shows it")
    target, first = sweep.targets[TARGET], next(iter(sweep.workloads.values()))
    slowdowns = tuple(recipe.session.slowdown for name, recipe in sweep.recipes.items() if name != BASELINE)
    return Design(
        cells=len(sweep.workloads),
        slowed_every=int(every[1]),
        slowdowns=slowdowns,
        restarts=measure.restarts,
        blocks=measure.blocks,
        runs=measure.runs,
        half_width=measure.half_width,
        budget_s=measure.budget_s,
        threads=target.threads or 1,
        provider=target.provider,
        seed=measure.seed,
        hidden_size=model.hidden_size,
        layers=model.num_hidden_layers,
        sequence=first.given,
    )


def _whole(option: str, value: int, least: int, most: int = 2**31 - 1, note: str = "") -> None:
    if not least <= value <= most:
        range_ = f"at least {least}" if value < least else f"at most {most}"
        raise InputError(f"{option} {value}: {range_}{note}")


def _between(option: str, value: float, most: float) -> None:
    """Refuse what is not above 0 and below `most`; .nan is neither."""
    if not 0 < value < most:
        raise InputError(f"{option} {value:g}: above 0" + ("" if math.isinf(most) else f" and below {most:g}"))
