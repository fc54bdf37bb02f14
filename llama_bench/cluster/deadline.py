"""How long one call of an arm's process may take: far longer than the plan expects, and not for ever."""

from __future__ import annotations

import polars as pl

from llama_bench import results
from llama_bench.bench import machine
from llama_bench.cluster.job import Job
from llama_bench.cluster.launch import DEADLINE_S
from llama_bench.counts import flops, model_bytes, moved_bytes, scored
from llama_bench.estimate import ON_CPU
from llama_bench.store import Store

LEAST_S = 120.0  # imports, a compiler, and a machine that does something else for a while
MARGIN = 50.0  # an engine may be ten times as slow as the node's ceilings allow, and the node five times as busy
WARM_UP_RUNS = 20


def deadline_s(job: Job, store: Store) -> float:
    """Return the seconds after which a call in this cell counts as hanging, by the node's measured ceilings.

    The longest calls load the model, warm it up, time a slot, or score the text. Where the ceilings are not known, it
    is DEADLINE_S.
    """
    cell = job.cell
    hardware, target = machine.fingerprint(dict(job.node)), cell.target_name
    rows = results.scan(store.url(job.run), cell.id)["ceilings"].collect()
    mine = rows.filter(pl.col("hardware") == hardware, pl.col("target") == target)
    most = {
        what: mine.filter(pl.col("what") == what, pl.col("dtype").fill_null("").is_in(dtypes))["per_second"].max()
        for what, dtypes in (("matmul", ["fp32"]), ("read", [""]))
    }
    if not all(most.values()):
        return DEADLINE_S
    size = model_bytes(cell.model)
    run_s = flops(cell.model, cell.workload) / float(most["matmul"])  # type: ignore[arg-type]
    run_s += moved_bytes(cell.model, cell.workload, size) / float(most["read"])  # type: ignore[arg-type]
    text = None if job.measure.text is None else job.measure.text.model_dump()
    windows = scored(cell.model, cell.workload, text) / cell.workload.given
    runs = max(WARM_UP_RUNS, 1 + job.measure.runs, 1 + windows)
    return LEAST_S + MARGIN * (size / ON_CPU.load_bytes_per_s + runs * run_s)
