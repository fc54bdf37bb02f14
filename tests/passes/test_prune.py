"""Pruning: what goes, what stays, and that the smaller model runs and is still the same network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from llama_bench import graph, passes
from llama_bench.errors import WorkError
from llama_bench.model import inputs, llama, weights
from llama_bench.passes import checkpoint, prune
from llama_bench.passes.checkpoint import Checkpoint
from llama_bench.passes.info import Work
from llama_bench.passes.prune import importance, masks, slices
from llama_bench.sweep import Model, Pass, Workload

Tensors = dict[str, np.ndarray[Any, Any]]

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 64,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
WORKLOAD = Workload(kind="prefill", batch=2, sequence=8, outputs="logits", kv_out=False)
TEXT = {"window": 16, "calibration_tokens": 64}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def work(step: Pass, model: Model, source: Path, destination: Path) -> Checkpoint:
    """Apply one pass, without the comparison of graphs, and return the checkpoint that it left."""
    destination.mkdir()
    given = Work(
        passes.name_of(step), passes.options_of(step), source, destination, model, WORKLOAD, destination / "state"
    )
    passes.APPLY[step.family](given)
    return checkpoint.read(destination, model)


def step(name: str, **options: Any) -> Pass:
    return Pass(family="prune", name=name, options=options)


def planted(folder: Path, model: Model, change: Callable[[str, np.ndarray[Any, Any]], None]) -> Checkpoint:
    """Write a checkpoint of the model's own weights after `change` and return it."""
    tensors = {name: tensor.copy() for name, tensor in Checkpoint(model).tensors()}
    for name, tensor in tensors.items():
        change(name, tensor)
    folder.mkdir(parents=True)
    checkpoint.save(folder, model, tensors)
    return checkpoint.read(folder, model)


def choose(name: str, before: Checkpoint, **options: Any) -> slices.Chosen:
    checked = prune.PASSES[name].options.model_validate(TEXT | options)
    windows = np.random.default_rng(0).integers(0, before.model.vocab_size, (4, 16))
    return importance.choose(name, checked, before, windows)


def logits(made: Checkpoint) -> np.ndarray[Any, Any]:
    network = checkpoint.network(made, 8, "logits")
    given = inputs.make_inputs(made.model, WORKLOAD)
    plain = made.model.model_copy(update={"attention_mask": False, "flatten_tokens": False, "cache": False})
    return llama.run(network, plain, WORKLOAD, given)["logits"]


# ── zeros ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.97])
def test_magnitude_sets_just_the_smallest_weights_of_each_linear_layer_to_zero(sparsity: float) -> None:
    own = dict(Checkpoint(Model(**SIZES)).tensors())
    made = masks.magnitude(Checkpoint(Model(**SIZES)), sparsity)
    assert list(made) == list(own)
    for name, tensor in made.items():
        if not name.endswith("_proj.weight"):
            np.testing.assert_array_equal(tensor, own[name])
            continue
        gone = tensor == 0
        assert gone.sum() == int(sparsity * tensor.size)
        np.testing.assert_array_equal(tensor[~gone], own[name][~gone])
        assert np.abs(own[name][gone]).max() <= np.abs(tensor[~gone]).min()


def test_equal_weights_do_not_change_how_many_become_zero() -> None:
    made = masks.smallest(np.array([[1, -1, 1, 2], [1, -1, 3, 1]], np.float32), 0.5)
    assert made.tolist() == [[0, 0, 0, 2], [0, -1, 3, 1]]


def test_two_of_four_keeps_the_two_largest_of_every_four_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "ROWS", 7)  # the work is cut into pieces that do not divide it
    own = dict(Checkpoint(Model(**SIZES)).tensors())
    for name, tensor in masks.two_of_four(Checkpoint(Model(**SIZES))).items():
        if not name.endswith("_proj.weight"):
            np.testing.assert_array_equal(tensor, own[name])
            continue
        fours, sizes = tensor.reshape(-1, 4), np.abs(own[name].reshape(-1, 4))
        assert ((fours != 0).sum(1) == 2).all()
        np.testing.assert_array_equal(np.abs(fours).sum(1), np.sort(sizes, axis=1)[:, 2:].sum(1))
    assert masks.halved(np.array([[1, -1, 1, 1]], np.float32)).tolist() == [[1, -1, 0, 0]]


def test_zeros_pass_into_a_graph_of_the_same_size(tmp_path: Path) -> None:
    model = Model(**SIZES)
    made = work(step("magnitude", sparsity=0.75), model, tmp_path, tmp_path / "made")
    assert made.model == model
    zeros = [(tensor == 0).mean() for tensor in stored(tmp_path / "made") if tensor.ndim == 2 and tensor.size > 100]
    assert sorted(set(np.round(zeros, 3))) == [0, 0.75]


# ── smaller graphs ───────────────────────────────────────────────────────────────────────────────────────────────────

SMALLER: dict[str, tuple[Pass, dict[str, int]]] = {
    "groups": (
        step("heads", keep=0.5, **TEXT),
        {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 4},
    ),
    "heads": (
        step("heads", keep=0.5, unit="head", **TEXT),
        {"num_key_value_heads": 4, "num_attention_heads": 4, "head_dim": 4},
    ),
    "channels": (step("channels", keep=0.5, **TEXT), {"intermediate_size": 32}),
    "layers": (step("layers", keep=0.7, **TEXT), {"num_hidden_layers": 2}),
}


def stored(folder: Path) -> list[np.ndarray[Any, Any]]:
    return [onnx.numpy_helper.to_array(t) for t in graph.load(folder / graph.MODEL, weights=True).graph.initializer]


def multiplied(folder: Path) -> int:
    """Return the numbers of all matrices that the graph in `folder` multiplies by: a token's operations, halved."""
    proto = graph.load(folder / graph.MODEL)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in proto.graph.initializer}
    products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")]
    return sum(sizes.get(node.input[1], 0) for node in products)


def matrices(model: Model) -> int:
    shapes = weights.shapes(model)
    return sum(int(np.prod(shapes[name])) for name in shapes if name.endswith(("_proj.weight", "lm_head.weight")))


@pytest.mark.parametrize("what", SMALLER)
def test_a_smaller_model_exports_runs_and_is_torchs(what: str, tmp_path: Path) -> None:
    model, (given, sizes) = Model(**SIZES), SMALLER[what]
    made = work(given, model, tmp_path, tmp_path / "made")
    assert made.model == model.model_copy(update=sizes)
    assert {name: t.shape for name, t in made.tensors()} == weights.shapes(made.model)

    folder = tmp_path / "made"
    assert multiplied(folder) == matrices(made.model) < matrices(model)
    assert 0 <= graph.model_bytes(folder / graph.MODEL) - weights.weight_bytes(made.model) < 150_000
    session = onnxruntime.InferenceSession(folder / graph.MODEL, providers=["CPUExecutionProvider"])
    [found] = session.run(["logits"], inputs.make_inputs(made.model, WORKLOAD))
    np.testing.assert_allclose(found, logits(made), rtol=0, atol=1e-5)
    assert np.abs(found - logits(Checkpoint(model))).max() > 1e-4


@pytest.mark.parametrize("what", ["groups", "layers"])
def test_a_smaller_model_with_a_cache_runs_step_by_step(what: str, tmp_path: Path) -> None:
    model = Model(**SIZES, cache=True)
    made = work(SMALLER[what][0], model, tmp_path, tmp_path / "made")
    session = onnxruntime.InferenceSession(tmp_path / "made" / graph.MODEL, providers=["CPUExecutionProvider"])
    names = inputs.cache_names(made.model, "past")
    assert [value.name for value in session.get_inputs()] == ["input_ids", "position_ids", *names]

    tokens = inputs.make_inputs(made.model, WORKLOAD)["input_ids"]
    empty = np.zeros((2, made.model.kv_heads, 0, made.model.head_size), np.float32)
    past, found = dict.fromkeys(names, empty), []
    for start, end in ((0, 5), (5, 6), (6, 8)):
        step_inputs = {"input_ids": tokens[:, start:end], "position_ids": inputs.positions(2, start, end - start)}
        first, *present = session.run(None, {**step_inputs, **past})
        past = dict(zip(names, present, strict=True))
        found.append(first)
    np.testing.assert_allclose(np.concatenate(found, axis=1), logits(made), rtol=0, atol=1e-5)


def test_passes_on_checkpoints_go_on_from_each_other_and_those_on_graphs_from_them(tmp_path: Path) -> None:
    model = Model(**SIZES)
    work(SMALLER["channels"][0], model, tmp_path, tmp_path / "first")
    second = work(SMALLER["groups"][0], model, tmp_path / "first", tmp_path / "second")
    assert (second.model.intermediate_size, second.model.num_attention_heads) == (32, 4)
    given = Pass(family="quantize", options={"bits": 8, "block_size": 16})
    effect = passes.apply(given, tmp_path / "second", tmp_path / "third", model, WORKLOAD, tmp_path / "state")
    assert effect.histogram_difference == {"MatMul": -22, "MatMulNBits": 22}  # 3 layers of 7, and lm_head
    session = onnxruntime.InferenceSession(tmp_path / "third" / graph.MODEL, providers=["CPUExecutionProvider"])
    [found] = session.run(["logits"], inputs.make_inputs(model, WORKLOAD))
    wanted = logits(second)
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.abs(wanted).max()


# ── what goes ────────────────────────────────────────────────────────────────────────────────────────────────────────

DEAD = {0: [1, 3], 1: [0, 2], 2: [2, 3]}
"""Layer → KV groups that nothing reads."""


@pytest.mark.parametrize("changed", [{}, {"attention_bias": True, "mlp_bias": True, "flatten_tokens": True}])
def test_taking_out_groups_that_nothing_reads_changes_nothing(changed: dict[str, Any], tmp_path: Path) -> None:
    def change(name: str, tensor: np.ndarray[Any, Any]) -> None:
        if name.endswith("o_proj.weight"):
            for group in DEAD[int(name.split(".")[2])]:
                tensor[:, 8 * group : 8 * group + 8] = 0  # two query heads of four

    before = planted(tmp_path / "planted", Model(**SIZES, **changed), change)
    chosen = choose("heads", before, keep=0.5)
    assert chosen.groups is not None
    assert [list(kept) for kept in chosen.groups] == [[0, 2], [1, 3], [0, 1]]
    same(before, chosen, tmp_path / "cut")


def test_taking_out_query_heads_that_nothing_reads_changes_nothing(tmp_path: Path) -> None:
    def change(name: str, tensor: np.ndarray[Any, Any]) -> None:
        if name.endswith("o_proj.weight"):
            for head in (1, 2, 5, 6):  # the second, first, second and first of its group
                tensor[:, 4 * head : 4 * head + 4] = 0

    before = planted(tmp_path / "planted", Model(**SIZES), change)
    chosen = choose("heads", before, keep=0.5, unit="head")
    assert chosen.heads is not None
    assert [list(kept) for kept in chosen.heads] == [[0, 3, 4, 7]] * 3
    same(before, chosen, tmp_path / "cut")


@pytest.mark.parametrize("changed", [{}, {"mlp_bias": True}])
def test_taking_out_channels_that_nothing_reads_changes_nothing(changed: dict[str, Any], tmp_path: Path) -> None:
    dead = np.random.default_rng(1).permutation(64)[:32]

    def change(name: str, tensor: np.ndarray[Any, Any]) -> None:
        if name.endswith("down_proj.weight"):
            tensor[:, dead] = 0

    before = planted(tmp_path / "planted", Model(**SIZES, **changed), change)
    chosen = choose("channels", before, keep=0.5)
    assert chosen.channels is not None
    assert all(set(kept) == set(range(64)) - set(dead) for kept in chosen.channels)
    same(before, chosen, tmp_path / "cut")


def test_taking_out_a_layer_that_adds_nothing_changes_nothing(tmp_path: Path) -> None:
    def change(name: str, tensor: np.ndarray[Any, Any]) -> None:
        if name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            tensor[:] = 0

    before = planted(tmp_path / "planted", Model(**SIZES), change)
    chosen = choose("layers", before, keep=0.67)
    assert chosen.layers is not None
    assert list(chosen.layers) == [0, 2]
    same(before, chosen, tmp_path / "cut")


def same(before: Checkpoint, chosen: slices.Chosen, folder: Path) -> None:
    """Cut, and hold the smaller network against the whole one."""
    folder.mkdir()
    checkpoint.save(folder, *slices.cut(before, chosen))
    after = checkpoint.read(folder, before.model)
    assert weights.weight_bytes(after.model) < weights.weight_bytes(before.model)
    np.testing.assert_allclose(logits(after), logits(before), rtol=0, atol=2e-6)


def test_quiet_channels_with_large_weights_go_before_loud_ones_with_small_weights(tmp_path: Path) -> None:
    def change(name: str, tensor: np.ndarray[Any, Any]) -> None:
        if name.endswith("up_proj.weight"):
            tensor[:32] *= 1e-3
        if name.endswith("down_proj.weight"):
            tensor[:, :32] *= 10

    chosen = choose("channels", planted(tmp_path / "planted", Model(**SIZES), change), keep=0.5)
    assert chosen.channels is not None
    assert all(list(kept) == list(range(32, 64)) for kept in chosen.channels)


def test_a_blocks_importance_is_the_norm_of_what_it_adds_to_the_residual_stream() -> None:
    network = checkpoint.network(Checkpoint(Model(**SIZES)), 16, "hidden")
    windows = np.random.default_rng(0).integers(0, 96, (3, 16))
    seen: list[torch.Tensor] = []
    projection = network.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda module, args: seen.append(args[0].reshape(-1, 32)))
    [scores] = importance.contributions(network, windows, "self_attn.o_proj", 8)[1:2]
    handle.remove()
    x, weight = torch.cat(seen), projection.weight
    wanted = [torch.linalg.norm(x[:, i : i + 8] @ weight[:, i : i + 8].T).item() for i in range(0, 32, 8)]
    np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    assert not projection._forward_pre_hooks


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "changed", "message"),
    [
        (step("two_of_four"), {"intermediate_size": 50}, "in fours, and intermediate_size 50 is not divisible by 4"),
        (step("two_of_four"), {"hidden_size": 30, "head_dim": 4}, "and hidden_size 30 is not divisible by 4"),
        (step("layers", keep=0.1), {}, "keep 0.1 of 3 layers leaves none"),
        (step("layers", keep=0.9), {}, "keep 0.9 of 3 layers leaves all, so nothing would be pruned"),
        (step("heads", keep=0.1), {}, "keep 0.1 of 4 KV heads leaves none"),
        (step("heads", unit="head", keep=0.5), {"num_key_value_heads": 8}, "of 1 query heads of each KV head"),
        (step("channels", keep=0.2), {}, "keep 0.2 of 64 channels in steps of 32 leaves none"),
        (step("channels", keep=0.5, window=65), {}, "a window of 65 tokens is longer than max_position_embeddings 64"),
        (step("channels", keep=0.5, calibration_tokens=10), {}, "10 are fewer than a window of 64"),
        (step("magnitude", sparsity=1.0), {}, "sparsity: input should be less than 1"),
        (step("magnitude", sparsty=0.5), {}, "unknown option 'sparsty'; did you mean 'sparsity'?"),
    ],
)
def test_what_cannot_be_pruned_is_refused_before_anything_is_built(
    given: Pass, changed: dict[str, Any], message: str
) -> None:
    found = passes.misfit([given], Model(**SIZES | changed))
    assert found is not None
    assert message in found[1]
    assert passes.misfit([step("two_of_four"), *(fitting for fitting, _ in SMALLER.values())], Model(**SIZES)) is None


def test_a_pass_on_graphs_cannot_come_first() -> None:
    steps = [Pass(family="onnxoptimizer", name="default"), step("magnitude")]
    assert passes.misfit(steps, Model(**SIZES)) == (
        1,
        "prune: magnitude changes the checkpoint and exports again, so it must come before passes on graphs",
    )


def test_what_an_earlier_pass_left_too_small_is_refused_when_it_is_built(tmp_path: Path) -> None:
    model = Model(**SIZES)
    planted(tmp_path / "one", model.model_copy(update={"num_hidden_layers": 1}), lambda name, tensor: None)
    with pytest.raises(WorkError, match=r"^prune layers: keep 0.6 of 1 layers leaves all, so nothing would be pruned$"):
        work(step("layers", keep=0.6), model, tmp_path / "one", tmp_path / "made")


def test_calibration_text_shorter_than_a_window_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("few words")
    given = step("channels", keep=0.5, file=str(file), **TEXT)
    with pytest.raises(WorkError, match=r"^prune channels: the text has 9 tokens, fewer than a window of 16$"):
        work(given, Model(**SIZES), tmp_path, tmp_path / "made")
