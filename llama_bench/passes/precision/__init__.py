"""Half precision: weights, products and the KV cache in fp16 or bf16, the border of the graph as it was.

The libraries' converters (`onnxruntime.transformers.float16`, onnxconverter-common) know fp16 alone, hold the whole
model several times and put Casts round every single operator that they leave alone. This one treats both types alike,
looks up in each operator's schema what it can compute in, and converts a weight when it is written.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llama_bench.passes.info import PassInfo, Work
from llama_bench.sweep import Model
from llama_bench.sweep_part import Part


class Keep(Part):
    """Options of both precisions."""

    keep: Annotated[
        tuple[str, ...], Field(description="What stays in fp32 too: operators, or parts of nodes' names.")
    ] = ()


def _info(summary: str) -> PassInfo:
    return PassInfo(summary, kind="approximate", options=Keep, leaves=("half",), not_after=("half", "quantised"))


PASSES: dict[str, PassInfo] = {
    "fp16": _info("Weights, products and KV cache in fp16; norms' statistics and RoPE's angles stay in fp32."),
    "bf16": _info("The same in bf16, of which ONNX Runtime has no products on a CPU."),
}
"""Numbers of half the size."""


def work(given: Work) -> None:
    """Convert the source's graph; weights are converted one at a time while they are written.

    Inputs and outputs keep their types, but for a Llama's past and present keys and values. Raises WorkError for a
    graph with subgraphs, an operator that nobody knows, and a name in `keep` that no node has.
    """
    from llama_bench.passes import files
    from llama_bench.passes.precision.convert import convert

    model = files.read(given.source)
    convert(model, given.name, given.options.keep, cache=isinstance(given.of, Model))
    files.write(model, given.destination)
