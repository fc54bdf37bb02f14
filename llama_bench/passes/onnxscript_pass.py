"""onnxscript's optimiser and its fusions for ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_bench.errors import WorkError
from llama_bench.passes.info import PassInfo, Work
from llama_bench.sweep import Model

if TYPE_CHECKING:
    import onnx_ir as ir

DROPS_MASK = "it leaves attention_mask of a model with grouped KV heads out, so padding would be read"


def _keeps_mask(options: Any, model: Model) -> str | None:
    """Say why the padding mask of `model` would be lost: onnxscript's rule for grouped heads expects no padding."""
    grouped = model.kv_heads != model.num_attention_heads
    return DROPS_MASK if model.attention_mask and grouped and model.exporter == "dynamo" else None


PASSES: dict[str, PassInfo] = {
    "optimize_for_ort": PassInfo(
        "onnxscript's fusions for ONNX Runtime: norms, rotary embedding, attention.",
        leaves=("fused",),
        not_after=("half", "quantised"),
        fits=_keeps_mask,
    ),
    "optimize": PassInfo("onnxscript's optimiser: constants folded, what is equal or not read dropped."),
}
"""onnxscript's optimisations; the first is the family's default."""


def work(given: Work) -> None:
    """Do one piece of work of this family; a graph that stays as it is is given back byte for byte.

    Raises WorkError when weights are missing, or when the result no longer reads an input that it read before.
    """
    import onnxscript.optimizer
    from onnxscript.rewriter import ort_fusions

    from llama_bench.passes import files

    model = files.read(given.source)
    read = _inputs_read(model)
    if given.name == "optimize":
        onnxscript.optimizer.optimize(model)
    else:
        model, _fired = ort_fusions.optimize_for_ort(model)
    if lost := sorted(read - _inputs_read(model)):
        raise WorkError(f"onnxscript pass {given.name}: its result does not read the input {lost[0]!r} any more")
    with files.result(f"onnxscript pass {given.name}", given.source, given.destination) as folder:
        files.write(model, folder)


def _inputs_read(model: ir.Model) -> set[str]:
    return {str(value.name) for value in model.graph.inputs if value.uses()}
