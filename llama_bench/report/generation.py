"""Tables of what was generated: how long the first token and the later ones take, and what the text says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from llama_bench.report.table import DASH, Table
from llama_bench.report.tradeoffs import source_notes
from llama_bench.stats.ratios import name_arms

Row = Mapping[str, Any]

SHOWN = 200
"""Characters of a text that are shown."""

COLUMNS = (
    "Recipe",
    "First token (ms) [low, high]",
    "Each later one (ms) [low, high]",
    "p50 (ms)",
    "p90 (ms)",
    "p99 (ms)",
    "Tokens/s",
    "Tokens/s after the first",
    "As torch's",
)


def generation(times: pl.DataFrame, generations: pl.DataFrame, run: Row) -> list[Table]:
    """Return one table of times and one of texts a cell that generates, from the view and the dataset."""
    named = name_arms(generations.lazy()).collect()
    tables = []
    for cell in times["cell"].unique(maintain_order=True):
        rows = times.filter(pl.col("cell") == cell).to_dicts()
        texts = named.filter(pl.col("cell") == cell).sort("restart", "sequence", maintain_order=True).to_dicts()
        where = f"target {rows[0]['target']} · {rows[0]['model']} · {rows[0]['workload']}"
        tables += [_times(rows, texts, where, run), *_texts(texts, [row["recipe"] for row in rows], where)]
    return tables


def _times(rows: Sequence[Row], texts: Sequence[Row], where: str, run: Row) -> Table:
    first = rows[0]
    lines = tuple(
        (
            row["recipe"],
            _milliseconds(row["first_s"], row["first_low_s"], row["first_high_s"]),
            _milliseconds(row["token_s"], row["token_low_s"], row["token_high_s"]),
            *(_milliseconds(row[f"token_p{share}_s"]) for share in (50, 90, 99)),
            *(_number(row[rate]) for rate in ("tokens_per_s", "decode_tokens_per_s")),
            _agreed(_named(texts, row)),
        )
        for row in rows
    )
    notes = (
        f"{first['new_tokens']} new tokens after a prompt of {first['prompt']}, batch {first['batch']}, greedy. The "
        "first token waits for the whole prompt. Means are geometric, with 95 % t intervals over restarts; percentiles "
        "are of all later tokens. “As torch's” counts the tokens before the first one that torch in fp32 did not make.",
        *source_notes(first["cell"], run),
    )
    return Table(f"Generating: {where}", COLUMNS, lines, notes)


def _texts(texts: Sequence[Row], order: Sequence[str], where: str) -> list[Table]:
    """What each arm generates for the first prompt; arms that say the same are told together."""
    first = [row for row in texts if row["sequence"] == 0 and not row["control"]]
    first.sort(key=lambda row: order.index(row["recipe"]) if row["recipe"] in order else len(order))
    said: dict[tuple[int, ...], list[Row]] = {}
    for row in first:
        said.setdefault(tuple(row["tokens"] or ()), []).append(row)
    if not said:
        return []
    lines = tuple((", ".join(row["recipe"] for row in rows), _in_words(rows[0])) for rows in said.values())
    prompt = first[0]["prompt"]
    notes = (f"After the prompt: {_shown(prompt, end=True)}",) if prompt else ()
    return [Table(f"Generated text: {where}", ("Recipe", "Text"), lines, notes, text=True)]


def _in_words(row: Row) -> str:
    """The text, or the tokens where the model has no tokenizer."""
    return _shown(row["text"]) if row["text"] is not None else _shown(f"tokens {', '.join(map(str, row['tokens']))}")


def _shown(text: str, end: bool = False) -> str:
    flat = " ".join(text.split())
    if len(flat) <= SHOWN:
        return flat or "(nothing but white space)"
    return f"…{flat[-SHOWN:]}" if end else f"{flat[:SHOWN]}…"


def _named(texts: Sequence[Row], arm: Row) -> list[Row]:
    return [row for row in texts if row["recipe"] == arm["recipe"]]


def _agreed(texts: Sequence[Row]) -> str:
    """How many tokens of all sequences agree with torch's, of how many."""
    if not texts:
        return DASH
    return f"{sum(row['agreed'] or 0 for row in texts)} of {sum(len(row['tokens'] or ()) for row in texts)}"


def _milliseconds(seconds: float | None, low: float | None = None, high: float | None = None) -> str:
    text = _number(seconds, 1e3)
    return text if low is None or high is None else f"{text} [{_number(low, 1e3)}, {_number(high, 1e3)}]"


def _number(value: float | None, factor: float = 1.0) -> str:
    """Three digits, and all before the point."""
    if value is None:
        return DASH
    scaled = value * factor
    return f"{scaled:,.0f}" if scaled >= 100 else f"{scaled:#.3g}".removesuffix(".")
