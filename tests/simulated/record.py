"""Record the timings that are replayed, from a real run on ONNX Runtime: `python tests/simulated/record.py`."""

from __future__ import annotations

import json
import tempfile

import polars as pl
from sweep import RECORDING, SWEEP

import llama_bench
from llama_bench.cluster import driver
from llama_bench.store import Store
from llama_bench.sweep import Sweep


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        result = driver.run(Sweep.model_validate(SWEEP), store, on_event=lambda event: print(event.kind, event.label))
        timings = llama_bench.load(store.url(result.run)).timings.filter(pl.col("kept")).collect()
    keys = ["model", "workload", "arm", "restart"]
    named = timings.with_columns(pl.when("control").then(pl.lit("control")).otherwise("recipe").alias("arm"))
    found: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    for (model, workload, arm, _), rows in named.sort(*keys, "block", "run_index").group_by(keys, maintain_order=True):
        runs = [round(seconds, 9) for seconds in rows["seconds"]]
        found.setdefault(str(model), {}).setdefault(str(workload), {}).setdefault(str(arm), []).append(runs)
    RECORDING.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
