"""Whether the method keeps its promises: `python benchmarks/simulate.py` prints measured and promised rates."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

from llama_bench.stats.simulated import SETTINGS
from llama_bench.stats.simulation import Rate, simulate


def table(rates: Iterable[Rate]) -> str:
    """Return the rates as a Markdown table; a setting's name stands in its first row."""
    lines = [
        "| setting | rate | measured | promised | standard error | kept |",
        "| --- | --- | --: | --: | --: | --- |",
    ]
    before = ""
    for rate in rates:
        name, before = "" if rate.setting == before else rate.setting, rate.setting
        numbers = f"{rate.measured:.2%} | {rate.sign} {rate.promised:.2%} | {rate.standard_error:.2%}"
        lines.append(f"| {name} | {rate.what} | {numbers} | {'yes' if rate.within else '**no**'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000, help="simulated cells a setting")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    start = time.perf_counter()
    found = [rate for setting in SETTINGS for rate in simulate(setting, options.cells, options.seed)]
    print(table(found))
    kept = sum(rate.within for rate in found)
    print(f"\n{kept} of {len(found)} promises kept; {options.cells} cells a setting, seed {options.seed}, ", end="")
    print(f"{time.perf_counter() - start:.0f} s.")
