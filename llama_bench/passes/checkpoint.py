"""What passes on checkpoints share: the weights they start from, text to calibrate on, and the model they leave.

Such a pass works on parameters by their Hugging Face names, before any graph: it may change sizes, so it exports
again. Its folder has `model.json` (the sizes now), `checkpoint.safetensors` (every parameter in fp32) and
`model.onnx`. A pass after it goes on from there, the first one from the model's own weights.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import Field, ValidationError

from llama_bench.errors import InputError, WorkError
from llama_bench.passes.info import Work
from llama_bench.sweep import Model, Text, Workload
from llama_bench.sweep_part import Part

if TYPE_CHECKING:
    import numpy as np

    from llama_bench.model.llama import Llama

    Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

SIZES = "model.json"
WEIGHTS = "checkpoint.safetensors"

SCORED_TOKENS = 4096
"""Tokens at the start of the default text that no pass learns from: accuracy is scored there."""


class OnText(Part):
    """Options of a pass that runs the model on text."""

    file: str | None = Field(None, description="A text file; the text that every Python carries when left out.")
    file_sha256: str | None = Field(None, description="Hash of the file.")
    skip: int | None = Field(
        None,
        ge=0,
        strict=True,
        description=f"Tokens left out at the start; of the default text {SCORED_TOKENS}, where accuracy is scored.",
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model and its parameters: those in `path`, or the model's own where that is None."""

    model: Model
    path: Path | None = None

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield every parameter, float32, one at a time. Raises WorkError when one is missing or of another shape."""
        from llama_bench.model import llama

        with self.given() as given:
            yield from llama.parameters(self.model, given)

    def given(self) -> AbstractContextManager[Stored | None]:
        """Return the stored parameters by name, each read when asked for; None for the model's own."""
        return nullcontext(None) if self.path is None else Stored(self.path)


class Stored(Mapping[str, Any]):
    """The tensors of a safetensors file, each read when it is asked for. A context manager, which closes the file."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            self.file = safe_open(path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise WorkError(f"{path}: not a readable checkpoint ({error})") from error
        self.names: list[str] = self.file.keys()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Stored:
        self.file.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.__exit__(*error)  # type: ignore[no-untyped-call]

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise KeyError(name)
        tensor: Array = self.file.get_tensor(name)  # type: ignore[no-untyped-call]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read(folder: Path, model: Model) -> Checkpoint:
    """Return the checkpoint in `folder`, or `model` with its own weights where the folder has none."""
    sizes = folder / SIZES
    if not sizes.is_file():
        return Checkpoint(model)
    try:
        return Checkpoint(Model.model_validate_json(sizes.read_bytes()), folder / WEIGHTS)
    except ValidationError as error:
        raise WorkError(f"{sizes}: not the sizes of a model ({error.errors()[0]['msg']})") from None


def save(folder: Path, model: Model, tensors: Mapping[str, Array]) -> None:
    """Write `model.json` and `checkpoint.safetensors` (float32 arrays by name, none of them copied) into `folder`."""
    from llama_bench.model import tensor_file

    (folder / SIZES).write_text(model.model_dump_json(indent=1) + "\n", encoding="utf-8")
    tensor_file.save(folder / WEIGHTS, tensors)


def export(work: Work) -> None:
    """Export the checkpoint in the destination to its `model.onnx`, as the sweep's model was; the check is the same.

    Raises WorkError when the exporter fails or its graph differs from torch.
    """
    from llama_bench.model.export import export as export_model

    gc.collect()  # what the pass held is about to be loaded again
    made = read(work.destination, work.model)
    with made.given() as weights:
        export_model(made.model, work.workload, work.destination, weights)


def network(checkpoint: Checkpoint, sequence: int, outputs: str) -> Llama:
    """Return the checkpoint's torch network for windows [B, `sequence`] of tokens, without a KV cache.

    `outputs` is `logits` or `hidden`, the one thing that it returns. Holds the weights once, in arrays of its own.
    """
    from llama_bench.model import llama

    plain = {"cache": False, "attention_mask": False, "flatten_tokens": False}
    headless = {"head": "none"} if outputs == "hidden" else {}
    model = checkpoint.model.model_copy(update={**plain, **headless})
    workload = Workload.model_validate({"kind": "prefill", "sequence": sequence, "outputs": outputs, "kv_out": False})
    with checkpoint.given() as given:
        return llama.build(model, workload, given)


def windows(model: Model, options: OnText, length: int, tokens: int) -> np.ndarray[Any, Any]:
    """Return `tokens` tokens of the text as windows, int64 [N, `length`], N ≥ 1; fewer where the text is shorter.

    `model` is the sweep's, whose source has the tokeniser. Raises WorkError when the text is shorter than a window,
    InputError when it cannot be read.
    """
    from llama_bench.model import text

    skip = options.skip if options.skip is not None else 0 if options.file else SCORED_TOKENS
    source = Text(file=options.file, file_sha256=options.file_sha256)
    wanted = skip + max(length, tokens)
    try:
        found = text.tokens(model, source, wanted)[skip:]
    except InputError:  # fewer than wanted; a file that cannot be read says so again
        found = text.tokens(model, source, _count(model, source))[skip:]
    count = len(found) // length
    if not count:
        after = f" after the first {skip}" if skip else ""
        raise WorkError(f"the text has {len(found)} tokens{after}, fewer than a window of {length}")
    return found[: count * length].reshape(count, length)


def _count(model: Model, source: Text) -> int:
    """Return how many tokens the whole text has; of a model without tokeniser its bytes."""
    from llama_bench.model import text, tokenizer

    characters, known = text.read(source), tokenizer.load(model)
    return len(characters.encode()) if known is None else len(known.encode(characters, start=True))


def window_misfit(model: Model, length: int) -> str | None:
    """Return why the model cannot run windows of `length` tokens, None when it can."""
    longest = model.max_position_embeddings
    return f"a window of {length} tokens is longer than max_position_embeddings {longest}" if length > longest else None
