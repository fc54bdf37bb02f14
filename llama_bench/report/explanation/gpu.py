"""Where a row's time goes on the GPU, in words."""

from __future__ import annotations

from collections.abc import Iterator

from llama_bench.report.explanation.section import Section, share
from llama_bench.report.gpu_time import CLASS_COLUMNS, class_row, longest
from llama_bench.report.table import Table, duration
from llama_bench.stats.explained import Explained
from llama_bench.stats.kernels import IDLE, GpuTime


def gpu(found: Explained) -> Section | None:
    """Return the section about its kernels; None where they were not seen."""
    one = found.gpu
    if one is None:
        return None
    by_class = Table("Kernels by class", CLASS_COLUMNS, tuple(class_row(row) for row in one.classes))
    kernels = longest(one.kernels, found.name.recipe, one.time_s)
    return Section("Where the time goes on the GPU", tuple(_sentences(one)), (by_class, kernels))


def _sentences(one: GpuTime) -> Iterator[str]:
    idle = next(row for row in one.classes if row["class"] == IDLE)
    kernels = "Its kernels" if one.launches is None else f"The {one.launches:,.0f} kernels of a run"
    took = "" if one.busy_s is None else f" are busy for {duration(one.busy_s, 'ms')} ms"
    yield (
        f"{kernels}, and its copies,{took or ' were seen'}; a timed run takes {duration(one.time_s, 'ms')} ms, so that "
        f"nothing runs on the GPU for {duration(idle['seconds'], 'ms')} ms of it ({share(idle['share'])})."
    )
    if one.cpu_nodes is not None and one.memcpy_nodes is not None:
        yield f"Nodes of its graph that run on the CPU: {one.cpu_nodes}; that copy between the two: {one.memcpy_nodes}."
    floors = [row["floor_s"] for row in one.classes if row["floor_s"]]
    if floors:
        yield f"The floor of all classes together is {duration(sum(floors), 'ms')} ms, by the machine's own ceilings."
