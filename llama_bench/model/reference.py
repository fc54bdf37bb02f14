"""What every arm answers to: its inputs, torch's fp32 outputs for them, and torch's predictions on a text."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from llama_bench.errors import InputError
from llama_bench.model import inputs as model_inputs
from llama_bench.model import text as texts
from llama_bench.model.tensor_file import Stream, save
from llama_bench.sweep import Model, Text, Workload

if TYPE_CHECKING:
    from llama_bench.model.llama import Llama

Array: TypeAlias = np.ndarray[Any, Any]

INPUTS, OUTPUTS, TEXT, ABOUT = "inputs.safetensors", "reference.safetensors", "text.safetensors", "text.json"
"""The files of a reference: see `make`."""

WINDOW = 128
"""Tokens of a window, at most, where neither the text nor the workload says how many."""

GROUP_BYTES = 1 << 28
"""Logits that torch makes in one run over windows; a window whose logits are larger is a run of its own."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text in windows of tokens [N, W]; of each, the last `scored` [N] of its W − 1 predictions count."""

    windows: Array
    scored: Array
    stride: int
    source: str


def make(model: Model, workload: Workload, text: Text | None, folder: Path) -> dict[str, Any]:
    """Write into `folder` what an arm is given and what torch makes of it in fp32, and return the facts.

    `inputs.safetensors` are the inputs by name, `reference.safetensors` the outputs: all of a prefill, `logits`
    [B, 1, V] of a decode step, the greedy `tokens` [B, m] of a generation. Where text can be scored (`window_length`)
    `text.safetensors` holds `windows` int64 [N, W], `scored` int64 [N] and torch's `logits` of the predictions that
    count, fp32 [sum(scored), V], by window and position; `text.json` says how the windows were cut.

    The facts are ready for JSON: `seconds` and, of a text, `reference_perplexity` (exp of the mean −ln p of the next
    token, in nats), `tokens` scored, `window`, `stride`. Raises InputError when the workload asks for what the model
    does not have, or the text for other windows than the session takes or is too short; WorkError when the weights
    cannot be read.
    """
    from llama_bench.model import streamed

    started = time.perf_counter()
    given = inputs(model, workload, text)
    passage = cut(model, workload, text)
    folder.mkdir(parents=True, exist_ok=True)
    network = streamed.build(model, workload)
    save(folder / INPUTS, given)
    save(folder / OUTPUTS, outputs(network, model, workload, given))
    facts = {} if passage is None else score(network, model, passage, folder)
    return {**facts, "seconds": time.perf_counter() - started}


def inputs(model: Model, workload: Workload, text: Text | None) -> dict[str, Array]:
    """Return what a run is given by name: random tokens, or of a trained model those at the beginning of the text.

    Each sequence is another piece of it; a sweep without a text has the default one here.
    """
    given = model_inputs.make_inputs(model, workload)
    if model.source is not None:
        tokens = texts.tokens(model, text or Text(), workload.batch * workload.given)
        given["input_ids"] = tokens.reshape(workload.batch, workload.given)
    return given


def outputs(network: Llama, model: Model, workload: Workload, given: Mapping[str, Array]) -> dict[str, Array]:
    """Return torch's outputs for `given`, by the names that an arm answers with."""
    from llama_bench.model import llama

    if workload.kind == "generate":
        assert workload.new_tokens is not None
        return {"tokens": greedy(network, model, given["input_ids"], workload.new_tokens)}
    found = llama.run(network, model, workload, given)
    return {"logits": found["logits"]} if workload.kind == "decode" else found


def greedy(network: Llama, model: Model, prompt: Array, new: int) -> Array:
    """Return the `new` tokens that follow `prompt` [B, n] when each is the most likely one, int64 [B, new].

    `network` is that of a model with a cache, through which every token runs once.
    """
    import torch

    from llama_bench.model import llama

    past, step, cache, made = 0, prompt, llama.empty_cache(model, len(prompt)), []
    with torch.inference_mode():
        for _ in range(new):
            positions = model_inputs.positions(len(step), past, step.shape[1])
            given = {"input_ids": step, "position_ids": positions}
            logits, *kept = network(*llama.arguments(model, given, cache))
            past, cache = past + step.shape[1], list(zip(kept[::2], kept[1::2], strict=True))
            step = logits[:, -1:].argmax(-1).numpy()
            made.append(step)
    return np.concatenate(made, axis=1)


def window_length(model: Model, workload: Workload, text: Text) -> int | None:
    """Return how many tokens each window of the text has; None where there is nothing to score.

    Logits of all tokens, or a KV cache and a head, predict a text; other outputs do not. A session without a cache
    takes the workload's sequence and no other, so its windows have that length, as those of any prefill of all logits
    unless the text says otherwise. Raises InputError where the text's window does not fit.
    """
    if workload.outputs == "hidden" or (workload.outputs == "last_logits" and not model.cache):
        return None
    length = workload.sequence if workload.outputs == "logits" else None
    if not model.cache and text.window not in (None, length):
        raise InputError(
            f"model {model.label}: its sessions take {length} tokens and nothing else, so the text's window must be "
            f"{length}, not {text.window}; a model with cache: true takes any"
        )
    window = text.window or length or min(WINDOW, model.max_position_embeddings)
    if window > model.max_position_embeddings:
        raise InputError(
            f"model {model.label}: the text's window of {window} tokens is longer than max_position_embeddings "
            f"{model.max_position_embeddings}"
        )
    return window if window > 1 else None  # of one token nothing is predicted


def cut(model: Model, workload: Workload, text: Text | None) -> Passage | None:
    """Return the text in windows, just enough to score `text.tokens` predictions; None where nothing is scored."""
    window = None if text is None else window_length(model, workload, text)
    if text is None or window is None:
        return None
    stride = text.stride or window - 1
    tokens = texts.tokens(model, text, texts.needed(text.tokens, window, stride))
    windows, scored = texts.windows(tokens, window, stride)
    return Passage(windows, scored, stride, Path(text.file).name if text.file else texts.DEFAULT)


def score(network: Llama, model: Model, passage: Passage, folder: Path) -> dict[str, Any]:
    """Write torch's predictions on `passage` into `folder`, and return how well they foresee it."""
    surprise: list[float] = []

    def predictions() -> Iterator[Array]:
        every = zip(passage.windows, passage.scored, predict(network, model, passage.windows), strict=True)
        for window, scored, logits in every:
            made = logits[-1 - scored : -1]  # the last position's is about a token after the window
            surprise.append(negative_log_likelihood(made, window[-scored:]))
            yield made

    count, window = int(passage.scored.sum()), passage.windows.shape[1]
    logits = Stream((count, model.vocab_size), predictions())
    save(folder / TEXT, {"windows": passage.windows, "scored": passage.scored, "logits": logits})
    about = {"window": window, "stride": passage.stride, "source": passage.source}
    (folder / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")
    perplexity = math.exp(math.fsum(surprise) / count)
    return {"reference_perplexity": perplexity, "tokens": count, "window": window, "stride": passage.stride}


def predict(network: Llama, model: Model, windows: Array) -> Iterator[Array]:
    """Yield torch's logits [W, V] of each window; as many windows as GROUP_BYTES allow go through torch at once."""
    import torch

    from llama_bench.model import llama

    count, length = windows.shape
    everything = network.returning("logits")
    group = max(1, GROUP_BYTES // (4 * length * model.vocab_size))
    for start in range(0, count, group):
        ids = windows[start : start + group]
        workload = Workload(kind="prefill", batch=len(ids), sequence=length)
        given = model_inputs.make_inputs(model, workload) | {"input_ids": ids}
        with torch.inference_mode():
            logits, *_ = everything(*llama.arguments(model, given, llama.empty_cache(model, len(ids))))
        yield from logits.numpy()


def negative_log_likelihood(logits: Array, targets: Array) -> float:
    """Return the sum of −ln p(target), in nats, of logits [n, V] and the tokens [n] that came next."""
    import torch

    each = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets), reduction="none")
    return float(each.double().sum())
