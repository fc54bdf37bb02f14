"""The fusions that ONNX Runtime ships as Python, `onnxruntime.transformers`: none is for Llama, some of them fit."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_bench.errors import WorkError
from llama_bench.passes.info import PassInfo, Work
from llama_bench.sweep import Model

if TYPE_CHECKING:
    from onnx import ModelProto

_INFO: dict[str, Any] = {"leaves": ("fused",), "not_after": ("half", "quantised")}

PASSES: dict[str, PassInfo] = {
    name: PassInfo(f"ONNX Runtime's Python fusions for {model}: of a Llama, its norms.", **_INFO)
    for name, model in {
        "gpt2": "GPT-2",
        "bert": "BERT",
        "qwen3": "Qwen3",
        "t5": "T5",
        "bart": "BART",
        "conformer": "Conformer",
    }.items()
}
"""Model types of `onnxruntime.transformers` that change a Llama (1.31: `phi` fails on it, the others do nothing)."""


SMALL_BYTES = 1 << 18
"""Room for a vector of 65,536 numbers in fp32: every norm's scale and every bias."""


def work(given: Work) -> None:
    """Do one piece of work of this family; a graph that stays as it is is given back byte for byte.

    ONNX Runtime's own optimisation, which the library would do first, is left out: it is a family of its own. Raises
    WorkError when weights are missing, a library that the fusions need, or when the fusions fail.
    """
    from llama_bench import graph
    from llama_bench.passes import files

    before = graph.load(given.source / graph.MODEL)
    _load_what_fusions_read(before, given.source)
    after = _optimise(given, before)
    with files.result(f"transformers pass {given.name}", given.source, given.destination) as folder:
        files.write(files.from_proto(after, given.source), folder)


def _load_what_fusions_read(model: ModelProto, folder: Path) -> None:
    """Put what fusions look at into `model`: small weights such as the scale of a norm, and those that are transposed.

    Other matrices stay outside. A fusion that wanted one would fail to open its file, and take no wrong one.
    """
    from llama_bench import graph

    transposed = {node.input[0] for node in graph.nodes(model) if node.op_type == "Transpose"}
    for tensor in graph.tensors(model):
        looked_at = graph.tensor_bytes(tensor) <= SMALL_BYTES or tensor.name in transposed
        if graph.is_external(tensor) and looked_at:
            where = graph.external(tensor, folder)
            with where.path.open("rb") as file:
                file.seek(where.offset)
                tensor.raw_data = file.read(where.length)
            tensor.ClearField("external_data")
            tensor.data_location = tensor.DEFAULT


def _optimise(given: Work, model: ModelProto) -> ModelProto:
    llama = given.of if isinstance(given.of, Model) else None  # of any other graph the library looks for them
    sizes = {"num_heads": llama.num_attention_heads, "hidden_size": llama.hidden_size} if llama else {}
    try:
        with _own_path(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            from onnxruntime.transformers import optimizer

            made: ModelProto = optimizer.optimize_model(model, given.name, opt_level=0, **sizes).model
    except ImportError as error:
        raise WorkError(
            f"transformers pass {given.name}: onnxruntime.transformers needs {error.name}: {error}"
        ) from None
    except Exception as error:  # a library of scripts, which raise whatever their parts raise
        raise WorkError(f"transformers pass {given.name}: {type(error).__name__}: {str(error)[:300]}") from error
    return made


@contextlib.contextmanager
def _own_path() -> Iterator[None]:
    """Put the import path back: the library adds its folder of scripts, whose names (`metrics`, …) are anybody's."""
    before = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = before
