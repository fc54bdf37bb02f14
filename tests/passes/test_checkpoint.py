"""What passes on checkpoints start from and leave, and the text that they learn from."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llama_bench.errors import InputError, WorkError
from llama_bench.model import llama, text, weights
from llama_bench.passes import checkpoint
from llama_bench.passes.checkpoint import Checkpoint, OnText
from llama_bench.sweep import Model, Text, Workload

MODEL = Model(
    hidden_size=32, num_attention_heads=4, intermediate_size=48, vocab_size=96, max_position_embeddings=64, seed=3
)
WORKLOAD = Workload(kind="prefill", batch=2, sequence=8, outputs="logits", kv_out=False)


def test_a_pass_starts_from_the_models_own_weights_and_goes_on_from_what_another_left(tmp_path: Path) -> None:
    own = dict(checkpoint.read(tmp_path, MODEL).tensors())
    assert list(own) == list(weights.shapes(MODEL))
    np.testing.assert_array_equal(own["model.norm.weight"], weights.draw("model.norm.weight", (32,), 3))

    changed = own | {"model.norm.weight": own["model.norm.weight"] * 2}
    checkpoint.save(tmp_path, MODEL, changed)
    found = checkpoint.read(tmp_path, MODEL)
    assert found.model == MODEL
    np.testing.assert_array_equal(dict(found.tensors())["model.norm.weight"], changed["model.norm.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.safetensors", "model.json"]


def test_the_sizes_that_count_are_the_checkpoints_and_not_the_sweeps(tmp_path: Path) -> None:
    smaller = MODEL.model_copy(update={"num_hidden_layers": 1})
    checkpoint.save(tmp_path, smaller, dict(Checkpoint(smaller).tensors()))
    found = checkpoint.read(tmp_path, MODEL)
    assert found.model.num_hidden_layers == 1
    assert len(list(found.tensors())) == len(weights.shapes(smaller))


def test_hard_linked_and_read_only_checkpoints_are_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, MODEL, dict(Checkpoint(MODEL).tensors()))
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in (checkpoint.SIZES, checkpoint.WEIGHTS):
        (tmp_path / name).chmod(0o444)
        os.link(tmp_path / name, linked / name)
    assert dict(checkpoint.read(linked, MODEL).tensors()).keys() == weights.shapes(MODEL).keys()


def test_a_checkpoint_that_is_not_the_models_names_the_tensor(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, MODEL, dict(Checkpoint(MODEL).tensors()))
    whole = load_file(tmp_path / checkpoint.WEIGHTS)
    short = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    save_file(short, tmp_path / checkpoint.WEIGHTS)
    with pytest.raises(WorkError, match=r"model\.norm\.weight"):
        list(checkpoint.read(tmp_path, MODEL).tensors())
    save_file(short | {"model.norm.weight": np.ones(31, np.float32)}, tmp_path / checkpoint.WEIGHTS)
    with pytest.raises(WorkError, match=r"model\.norm\.weight has shape \[31\], not \[32\]"):
        list(checkpoint.read(tmp_path, MODEL).tensors())


def test_a_truncated_checkpoint_and_wrong_sizes_are_said_in_one_line(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, MODEL, dict(Checkpoint(MODEL).tensors()))
    data = (tmp_path / checkpoint.WEIGHTS).read_bytes()
    (tmp_path / checkpoint.WEIGHTS).write_bytes(data[:-4])
    with pytest.raises(WorkError, match=r"checkpoint\.safetensors: not a readable checkpoint") as error:
        list(checkpoint.read(tmp_path, MODEL).tensors())
    assert "\n" not in str(error.value)
    (tmp_path / checkpoint.SIZES).write_text('{"hidden_size": 32}')
    with pytest.raises(WorkError, match=r"model\.json: not the sizes of a model"):
        checkpoint.read(tmp_path, MODEL)


@pytest.mark.parametrize("changed", [{"flatten_tokens": True, "attention_mask": True}, {"cache": True}])
def test_the_network_for_text_makes_the_same_logits_however_the_model_is_exported(changed: dict[str, bool]) -> None:
    tokens = np.arange(16, dtype=np.int64).reshape(2, 8)
    expected = llama.run(
        llama.build(MODEL, WORKLOAD),
        MODEL,
        WORKLOAD,
        {"input_ids": tokens, "position_ids": np.tile(np.arange(8), (2, 1))},
    )
    plain = checkpoint.network(Checkpoint(MODEL.model_copy(update=changed)), 8, "logits")
    found = llama.run(plain, MODEL, WORKLOAD, {"input_ids": tokens, "position_ids": np.tile(np.arange(8), (2, 1))})
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=0, atol=1e-6)


def test_no_pass_learns_from_the_text_that_accuracy_is_scored_on() -> None:
    all_of_it = text.tokens(MODEL, Text(), checkpoint.SCORED_TOKENS + 64)
    np.testing.assert_array_equal(
        checkpoint.windows(MODEL, OnText(), 16, 64), all_of_it[checkpoint.SCORED_TOKENS :].reshape(4, 16)
    )
    np.testing.assert_array_equal(checkpoint.windows(MODEL, OnText(skip=0), 16, 16), all_of_it[:16].reshape(1, 16))


def test_a_file_is_read_from_its_start_and_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("abcdefghij")
    found = checkpoint.windows(MODEL, OnText(file=str(file)), 4, 4096)
    assert found.tolist() == [[ord(c) % 96 for c in "abcd"], [ord(c) % 96 for c in "efgh"]]


def test_text_shorter_than_a_window_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("abcdefghij")
    with pytest.raises(WorkError, match=r"^the text has 10 tokens, fewer than a window of 16$"):
        checkpoint.windows(MODEL, OnText(file=str(file)), 16, 64)
    with pytest.raises(WorkError, match=r"^the text has 2 tokens after the first 8, fewer than a window of 4$"):
        checkpoint.windows(MODEL, OnText(file=str(file), skip=8), 4, 64)
    with pytest.raises(InputError, match=r"none\.txt"):
        checkpoint.windows(MODEL, OnText(file=str(tmp_path / "none.txt")), 4, 64)
