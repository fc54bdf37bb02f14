"""Distillation: it brings a pruned model nearer to the original, keeps what was pruned, and survives being killed."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from llama_bench import graph, passes
from llama_bench.errors import WorkError
from llama_bench.model import inputs, llama, weights
from llama_bench.passes import checkpoint
from llama_bench.passes.checkpoint import Checkpoint
from llama_bench.passes.distill import Distill, training
from llama_bench.passes.info import Work
from llama_bench.passes.prune import Channels, importance, masks, slices
from llama_bench.sweep import Model, Pass, Workload

MODEL = Model(
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    vocab_size=96,
    max_position_embeddings=64,
    seed=1,
)
WORKLOAD = Workload(kind="prefill", batch=2, sequence=8, outputs="logits", kv_out=False)
SHORT: dict[str, Any] = {"steps": 20, "batch": 4, "sequence": 16, "learning_rate": 1e-3, "checkpoint_steps": 3}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(weights, "STANDARD_DEVIATION", 0.1)  # so large that every layer matters


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A folder with the checkpoint of a model that lost half its channels."""
    folder = tmp_path / "pruned"
    folder.mkdir()
    before = Checkpoint(MODEL)
    windows = checkpoint.windows(MODEL, Channels(), 16, 64)
    checkpoint.save(folder, *slices.cut(before, importance.choose("channels", Channels(keep=0.5), before, windows)))
    return folder


def given(source: Path, destination: Path, state: Path, model: Model = MODEL, **options: Any) -> Work:
    destination.mkdir(exist_ok=True)
    return Work("logits", Distill(**SHORT | options), source, destination, model, WORKLOAD, state)


def trained(source: Path, state: Path, **options: Any) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    work = given(source, state.with_name(f"{state.name}-made"), state, **options)
    return training.train(work, checkpoint.read(source, MODEL))


def test_a_pruned_model_comes_nearer_to_the_original_and_is_exported(pruned: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    passes.APPLY["distill"](given(pruned, made, tmp_path / "state", steps=40))
    record = json.loads((made / "distill.json").read_text())
    assert record["steps"] == len(record["losses"]) == 40
    assert 0 < record["kl_after"] < 0.7 * record["kl_before"]
    assert record["losses"][-1] < record["losses"][0]

    after = checkpoint.read(made, MODEL)
    assert after.model == checkpoint.read(pruned, MODEL).model
    session = onnxruntime.InferenceSession(made / graph.MODEL, providers=["CPUExecutionProvider"])
    [found] = session.run(["logits"], inputs.make_inputs(MODEL, WORKLOAD))
    wanted = llama.run(llama.build(after.model, WORKLOAD, dict(after.tensors())), after.model, WORKLOAD)["logits"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert distance(found) < distance(logits(pruned))


def logits(folder: Path) -> np.ndarray[Any, Any]:
    made = checkpoint.read(folder, MODEL)
    return llama.run(checkpoint.network(made, 8, "logits"), made.model, WORKLOAD)["logits"]


def distance(found: np.ndarray[Any, Any]) -> float:
    original = llama.run(llama.build(MODEL, WORKLOAD), MODEL, WORKLOAD)["logits"]
    return float(np.abs(found - original).mean())


@pytest.mark.parametrize("killed_at", [2, 7, 19])
def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    killed_at: int, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, record = trained(pruned, tmp_path / "whole")
    learn, calls = training.Student.learn, []

    def dying(self: training.Student, *args: Any) -> float:
        if len(calls) == killed_at:
            raise KeyboardInterrupt
        calls.append(1)
        return learn(self, *args)

    monkeypatch.setattr(training.Student, "learn", dying)
    with pytest.raises(KeyboardInterrupt):
        trained(pruned, tmp_path / "state")
    calls.clear()
    monkeypatch.setattr(training.Student, "learn", lambda self, *args: calls.append(1) or learn(self, *args))
    found, again = trained(pruned, tmp_path / "state")

    assert len(calls) == 20 - killed_at // 3 * 3  # from its last checkpoint on, one every three steps
    assert again == record
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_a_finished_training_that_lost_its_export_trains_no_more(pruned: Path, tmp_path: Path) -> None:
    first, record = trained(pruned, tmp_path / "state")
    before = (tmp_path / "state" / training.STATE).stat().st_mtime_ns
    second, again = trained(pruned, tmp_path / "state")
    assert again == record
    np.testing.assert_array_equal(second["model.norm.weight"], first["model.norm.weight"])
    assert (tmp_path / "state" / training.STATE).stat().st_mtime_ns == before


def test_a_checkpoint_of_other_options_or_a_broken_one_is_not_gone_on_from(pruned: Path, tmp_path: Path) -> None:
    wanted, _ = trained(pruned, tmp_path / "fresh", steps=3)
    trained(pruned, tmp_path / "state", steps=6)
    other, _ = trained(pruned, tmp_path / "state", steps=3)
    np.testing.assert_array_equal(other["model.norm.weight"], wanted["model.norm.weight"])
    (tmp_path / "state" / training.STATE).write_bytes(b"half of it")
    broken, _ = trained(pruned, tmp_path / "state", steps=3)
    np.testing.assert_array_equal(broken["model.norm.weight"], wanted["model.norm.weight"])


def test_the_moments_go_when_the_training_ends(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    class Watched(training.Student):
        def save(self, *given: Any) -> None:
            super().save(*given)
            seen.extend(weakref.ref(m) for one in self.optimizers.values() for m in _moments(one))

    monkeypatch.setattr(training, "Student", Watched)
    gc.disable()  # what only the collector frees is there when the model is exported
    try:
        made = trained(pruned, tmp_path / "state", steps=3)
        assert len(seen) > 20
        assert not [one for one in seen if one() is not None]
    finally:
        gc.enable()
    assert made[1]["steps"] == 3


def _moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [state[name] for state in optimizer.state.values() for name in training.MOMENTS]


def test_whoever_looks_sees_where_training_is(pruned: Path, tmp_path: Path) -> None:
    _, record = trained(pruned, tmp_path / "state", steps=5)
    said = json.loads((tmp_path / "state" / training.PROGRESS).read_text())
    assert said == {"step": 5, "steps": 5, "loss": record["losses"][-1], "kl_before": record["kl_before"]}
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [training.PROGRESS, training.STATE]


@pytest.mark.parametrize("make", [lambda before: masks.magnitude(before, 0.5), masks.two_of_four])
def test_what_was_pruned_to_zero_stays_zero_and_the_rest_learns(make: Any, tmp_path: Path) -> None:
    folder = tmp_path / "zeros"
    folder.mkdir()
    checkpoint.save(folder, MODEL, make(Checkpoint(MODEL)))
    before = load_file(folder / checkpoint.WEIGHTS)
    found, record = trained(folder, tmp_path / "state")
    linear = [name for name in found if masks.is_linear(name)]
    assert record["zeros_kept"] == sum(before[name].size // 2 for name in linear)
    for name in linear:
        np.testing.assert_array_equal(found[name] == 0, before[name] == 0)
        assert (found[name] != before[name]).any()
    assert record["kl_after"] < record["kl_before"]


def test_a_tied_embedding_is_learnt_once(tmp_path: Path) -> None:
    tied = MODEL.model_copy(update={"tie_word_embeddings": True})
    folder = tmp_path / "tied"
    folder.mkdir()
    checkpoint.save(folder, tied, masks.magnitude(Checkpoint(tied), 0.5))
    work = given(folder, tmp_path / "made", tmp_path / "state", tied)
    found, record = training.train(work, checkpoint.read(folder, tied))
    assert "lm_head.weight" not in found
    assert record["kl_after"] < record["kl_before"]


def test_the_loss_is_hintons() -> None:
    teacher, student = torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 3.0):
        p, q = ((x / temperature).softmax(-1) for x in (teacher, student))
        wanted = temperature**2 * (p * (p / q).log()).sum(-1).mean()
        assert training.softened(teacher, student, temperature).item() == pytest.approx(wanted.item(), rel=1e-5)
    assert training.softened(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-7)


def test_every_epoch_has_all_windows_once_in_an_order_of_the_seed() -> None:
    lessons, options = torch.arange(10)[:, None], Distill(batch=4, seed=5)
    taken = torch.cat([training.batch(lessons, options, step) for step in range(5)]).flatten().tolist()
    assert sorted(taken[:10]) == sorted(taken[10:]) == list(range(10))
    assert taken[:10] != taken[10:]
    other = Distill(batch=4, seed=6)
    assert taken != torch.cat([training.batch(lessons, other, step) for step in range(5)]).flatten().tolist()


def test_what_divergence_is_measured_on_is_not_learnt_from(tmp_path: Path) -> None:
    work = given(tmp_path, tmp_path / "made", tmp_path / "state", steps=50)
    held_out, lessons = training.divided(work, 16)
    assert len(held_out) == training.HELD_OUT
    assert len(lessons) == 200
    everything = checkpoint.windows(MODEL, work.options, 16, 208 * 16)
    np.testing.assert_array_equal(torch.cat((held_out, lessons)).numpy(), everything)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    options = Distill(steps=100, learning_rate=1.0)
    rates = [training.rate(options, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] > 0.97
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[99] < 1e-3


def test_the_original_has_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"the source is the original model, its own teacher: put a prune before it"):
        passes.APPLY["distill"](given(tmp_path, tmp_path / "made", tmp_path / "state"))


def test_text_too_short_to_learn_from_is_refused(pruned: Path, tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    for words, message in (("few words", "fewer than a window of 16"), ("a" * 31, "has one window of 16 tokens")):
        file.write_text(words)
        with pytest.raises(
            WorkError, match=f"^distill: the text {'has 9 tokens, ' if len(words) < 16 else ''}{message}"
        ):
            passes.APPLY["distill"](given(pruned, tmp_path / "made", tmp_path / "state", file=str(file)))


def test_a_training_that_diverges_says_at_which_step(pruned: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"^distill: step \d+: the loss is (nan|inf); lower learning_rate 1e\+30$"):
        passes.APPLY["distill"](given(pruned, tmp_path / "made", tmp_path / "state", learning_rate=1e30))


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ({}, {"head": "none"}, "it learns from logits, and the model has head: none"),
        ({"sequence": 65}, {}, "a window of 65 tokens is longer than max_position_embeddings 64"),
        ({"step": 5}, {}, "unknown option 'step'; did you mean 'steps'?"),
        ({"temperature": 0}, {}, "temperature: input should be greater than 0"),
    ],
)
def test_what_cannot_be_distilled_is_refused_before_anything_is_built(
    options: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    step = Pass(family="distill", options=options)
    found = passes.misfit([step], MODEL.model_copy(update=changed))
    assert found is not None
    assert message in found[1]
