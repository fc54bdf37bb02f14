"""A variant as a folder that can be served: the graph, its weights, its tokenizer, and a card that says what it is."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_bench.errors import InputError
from llama_bench.model import source, tokenizer
from llama_bench.own import describe
from llama_bench.store import Store
from llama_bench.sweep import AnyModel, Model, OwnModel, Recipe

GRAPH, WEIGHTS, CARD, FACTS = "model.onnx", "model.onnx.data", "README.md", "llama_bench.json"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The variant to write: its id in the store, what made it, and what was measured of it.

    `numbers` are (what, value) pairs for the card, `run` is the run that they come from, if there is one.
    """

    variant: str
    name: str
    model: AnyModel
    recipe: Recipe
    numbers: Sequence[tuple[str, str]] = ()
    run: str | None = None


def write(store: Store, chosen: Chosen, out: Path) -> list[Path]:
    """Write `chosen` into the new or empty folder `out`; return the files.

    `model.onnx` and `model.onnx.data` (one file, memory-mapped when it is loaded), `config.json` in Hugging Face's
    words, the tokenizer's files where the source has one, the card, and the card's facts for programs; of an own model
    neither config nor tokenizer. Raises InputError when `out` holds something, WorkError when the store lacks the
    variant.
    """
    check(out)
    out.mkdir(parents=True, exist_ok=True)
    _write_graph(store, chosen.variant, out)
    model: AnyModel = chosen.model
    if isinstance(model, OwnModel):
        origin: str | None = describe.summary(model)
    else:
        origin, model = source.summary(model), _about_llama(store, chosen.variant, model, out)
    hashes = {path.name: _sha256(path) for path in sorted(out.iterdir())}
    facts = {
        "name": chosen.name,
        "model": chosen.model.model_dump(mode="json"),
        "source": origin,
        "recipe": chosen.recipe.model_dump(mode="json"),
        "variant": chosen.variant,
        "graph_sha256": store.manifest(chosen.variant)["graph_sha256"],
        "run": chosen.run,
        "numbers": dict(chosen.numbers),
        "files": hashes,
    }
    _write_json(out / FACTS, facts)
    (out / CARD).write_text(card(chosen, model, facts), encoding="utf-8")
    return sorted(out.iterdir())


def check(out: Path, *, ours: bool = False) -> None:
    """Raise InputError when `out` holds something; with `ours` what :func:`write` wrote, for any variant, may be there.

    So a long search asks before it begins: what it finds may have been written already.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())) or (ours and (out / FACTS).is_file()):
        return
    raise InputError(f"{out}: there is something already; name a new or empty folder")


def holds(out: Path, variant: str) -> bool:
    """Whether `out` is a folder that was written for this variant."""
    facts = out / FACTS
    return facts.is_file() and json.loads(facts.read_text(encoding="utf-8")).get("variant") == variant


def config(model: Model) -> dict[str, Any]:
    """Return `model` in the words of Hugging Face's LlamaConfig."""
    keys = (
        "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "vocab_size",
        "max_position_embeddings", "rms_norm_eps", "rope_theta", "attention_bias", "mlp_bias", "tie_word_embeddings",
    )  # fmt: skip
    scaling = model.rope_scaling and model.rope_scaling.model_dump()
    return {
        "architectures": ["LlamaForCausalLM" if model.head == "lm" else "LlamaModel"],
        "model_type": "llama",
        "hidden_act": "silu",
        **{key: getattr(model, key) for key in keys},
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "rope_scaling": scaling,
    }


def _about_llama(store: Store, variant: str, model: Model, out: Path) -> Model:
    """Write what a Llama has besides its graph, config and tokenizer, and return its sizes."""
    sizes = _sizes(store, variant, model)
    _write_json(out / "config.json", config(sizes))
    found = tokenizer.load(model)
    if found is not None:
        found.save(out)
    return sizes


def card(chosen: Chosen, model: AnyModel, facts: Mapping[str, Any]) -> str:
    """Return the card: what this is, how fast and how right, how to run it, and hashes to check it by."""
    passes = ", ".join(f"`{step.label}`" for step in chosen.recipe.passes) or "none: the export as it is"
    session = chosen.recipe.session.model_dump(exclude_defaults=True, mode="json")
    where = facts["source"] or f"seeded weights (seed {chosen.model.seed}): for timing, they write no text"
    lines = [
        f"# {chosen.model.label}, {chosen.name}",
        "",
        f"An ONNX graph for ONNX Runtime, made by llama_bench. Weights: {where}.",
        "",
        f"* Passes: {passes}",
        f"* Session options that belong to it: `{json.dumps(session)}`",
        _sizes_in_words(model),
        "",
        "## Measured" if chosen.numbers else "",
        "",
        *(["| what | value |", "| --- | --- |"] if chosen.numbers else []),
        *(f"| {what} | {value} |" for what, value in chosen.numbers),
        ""
        if not chosen.run
        else f"\nFrom the run `{chosen.run}`; a ratio holds on the machine that it was measured on.",
        *(["", "## Run it", "", "```python", USAGE.strip(), "```"] if isinstance(model, Model) and model.cache else []),
        "",
        "## Files",
        "",
        "| file | SHA-256 |",
        "| --- | --- |",
        *(f"| {name} | `{sha}` |" for name, sha in facts["files"].items()),
        "",
    ]
    text = "\n".join(lines)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text


def _sizes_in_words(model: AnyModel) -> str:
    if isinstance(model, OwnModel):
        each = (
            f"`{name}` {given.dtype} [{', '.join(map(str, given.shape or ()))}]" for name, given in model.inputs.items()
        )
        return f"* Inputs: {', '.join(each)}"
    return (
        f"* Sizes: {model.num_hidden_layers} layers, hidden {model.hidden_size}, {model.num_attention_heads} heads "
        f"({model.kv_heads} for keys and values), vocabulary {model.vocab_size}"
    )


USAGE = """
# pip install onnxruntime numpy tokenizers; run in this folder
import numpy as np, onnxruntime as ort
from tokenizers import Tokenizer

session, words = ort.InferenceSession("model.onnx"), Tokenizer.from_file("tokenizer.json")
kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
cache = {
    value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), kinds[value.type])
    for value in session.get_inputs()
    if value.name.startswith("past.")
}
tokens, past, new = np.array([words.encode("The capital of France is").ids]), 0, 20
wanted = {value.name for value in session.get_inputs()}
for _ in range(new):
    step = tokens[:, past:]
    total = past + step.shape[1]
    given = {
        "input_ids": step,
        "position_ids": np.arange(past, total)[None],
        "seqlens_k": np.array([total - 1], np.int32),
        "total_sequence_length": np.array(total, np.int32),
    }
    given = {name: value for name, value in given.items() if name in wanted}
    logits, *present = session.run(None, {**given, **cache})
    cache, past = dict(zip(cache, present)), total
    tokens = np.append(tokens, logits[:, -1:].argmax(-1), axis=1)
print(words.decode(tokens[0].tolist()))
"""
"""How to generate text with a folder whose graph has a KV cache; a test runs it."""


def _write_graph(store: Store, variant: str, out: Path) -> None:
    """Write the graph and all its weights in one file, tensor by tensor."""
    import onnx_ir

    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        fetched = store.fetch(variant, into=Path(scratch) / "variant")
        onnx_ir.save(onnx_ir.load(fetched / GRAPH), out / GRAPH, external_data=WEIGHTS)
    shutil.copymode(out / GRAPH, out / WEIGHTS)


def _sizes(store: Store, variant: str, model: Model) -> Model:
    """Return the sizes of what is written: pruning leaves them beside the graph, or beside one that it stands on."""
    step: str | None = variant
    while step is not None:
        changed = store.fetch(step) / "model.json"
        if changed.is_file():
            return Model.model_validate_json(changed.read_text(encoding="utf-8"))
        step = store.manifest(step)["parent"]
    return model


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
