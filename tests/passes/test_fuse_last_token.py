"""The last token alone where only its logits come out: how far up the cut moves, and that outputs stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from llama_bench.model import export, llama
from llama_bench.sweep import Model, Workload

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 128}
LAST = Workload(kind="prefill", batch=2, sequence=16, outputs="last_logits")


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Model, Workload, Path]]:
    """Return a maker of models that put out the logits of the last token."""

    def make(**changed: Any) -> tuple[Model, Workload, Path]:
        model, folder = Model(**{**SIZES, **changed}), tmp_path_factory.mktemp("last")
        export.write(llama.build(model, LAST), model, LAST, folder / "model.onnx")
        return model, LAST, folder

    return make


def lengths(proto: onnx.ModelProto, op_type: str) -> list[Any]:
    """Return how many tokens the results of the operators of one kind have, where the graph says so."""
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*proto.graph.value_info, *proto.graph.output)}
    known = [
        shapes[node.output[0]] for node in proto.graph.node if node.op_type == op_type and node.output[0] in shapes
    ]
    return [dims[1].dim_value or dims[1].dim_param for dims in known]


@pytest.mark.parametrize(
    "changed", [{}, {"exporter": "torchscript", "opset": 17}, {"attention_bias": True, "mlp_bias": True}]
)
def test_all_after_the_last_attention_is_for_one_token(
    changed: dict[str, Any], last: Callable[..., Any], static: Any, tmp_path: Path
) -> None:
    before = type(static)(*last(**changed))
    after = before.applied(tmp_path, {"fuse": "all"})
    packed, through, down, head = [16], [16, 16, 16], [1, 1, 1], [1]
    assert lengths(after.proto, "MatMul") == [*packed, *through, 16, *packed, 1, *down, *head]
    assert lengths(after.proto, "SkipSimplifiedLayerNormalization") == [16, 16, 1, 1]
    assert len(after.nodes("Slice")) == 2
    expected, found = before.run(), after.run()
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("step", [{"fuse": "all"}, {"fuse": "last_token"}])
def test_a_cached_model_makes_the_same_steps(
    step: dict[str, str], last: Callable[..., Any], static: Any, tmp_path: Path
) -> None:
    before = type(static)(*last(cache=True, num_key_value_heads=2, max_position_embeddings=64))
    after = before.applied(tmp_path, step)
    assert [name for node in after.nodes("Slice") for name in node.output if name.endswith(".last")] != []
    for steps in ([16], [13, 1, 1, 1], [1, 1]):
        expected, found = before.run(steps=steps), after.run(steps=steps)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=2e-6, err_msg=name)


def test_where_all_logits_come_out_nothing_is_cut(static: Any, tmp_path: Path) -> None:
    after = static.applied(tmp_path, {"fuse": "last_token"})
    assert lengths(after.proto, "SkipSimplifiedLayerNormalization") == [16] * 4


def test_another_cut_is_left_where_it_is(last: Callable[..., Any], static: Any, tmp_path: Path) -> None:
    """The first token's logits are not made from the last one."""
    model, workload, folder = last()
    proto = onnx.load(folder / "model.onnx")
    cut = next(node for node in reversed(proto.graph.node) if node.op_type == "Slice")
    names = {"first": [0], "second": [1]}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array(numbers, np.int64), name) for name, numbers in names.items()
    )
    cut.input[1:3] = list(names)
    (tmp_path / "edited").mkdir()
    onnx.save(proto, tmp_path / "edited" / "model.onnx")
    before = type(static)(model, workload, tmp_path / "edited")
    after = before.applied(tmp_path / "after", {"fuse": "all"})
    assert lengths(after.proto, "SkipSimplifiedLayerNormalization") == [16] * 4
    np.testing.assert_allclose(after.run()["logits"], before.run()["logits"], rtol=1e-5, atol=2e-6)
