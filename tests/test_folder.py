"""A variant as a folder that can be served."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from llama_bench import folder
from llama_bench.cluster.build import build
from llama_bench.cluster.building import closure
from llama_bench.errors import InputError
from llama_bench.folder import Chosen
from llama_bench.model import llama
from llama_bench.plan import make
from llama_bench.store import Store
from llama_bench.sweep import Sweep

SWEEP: dict[str, Any] = {
    "name": "folder",
    "models": [
        {
            "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": 96, "vocab_size": 64, "cache": True, "name": "tiny",
        }
    ],
    "recipes": {
        "original": {},
        "fused": {"passes": [{"fuse": "all"}]},
        "pruned": {"passes": [{"prune": {"name": "layers", "keep": 0.5, "calibration_tokens": 64, "window": 16}}]},
    },
    "workloads": {"decode": {"kind": "decode", "context": 8}},
    "targets": {"cpu": {"tag": "bench_cpu"}},
}  # fmt: skip


def chosen(store: Store, recipe: str, **more: Any) -> Chosen:
    """Build a recipe's variant and return it as it is chosen to be written."""
    plan = make(Sweep.model_validate(SWEEP), {})
    arm = next(arm for arm in plan.cells[0].arms if arm.name == recipe)
    for artifact in closure(plan, [arm.variant]).values():
        if not store.has(artifact.id):
            build(artifact, store)
    return Chosen(arm.variant, recipe, plan.cells[0].model, arm.recipe, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_the_folder_holds_graph_weights_config_card_and_facts(store: Store, tmp_path: Path) -> None:
    written = folder.write(store, chosen(store, "fused"), tmp_path / "out")
    names = {path.name for path in written}
    assert names == {"model.onnx", "model.onnx.data", "config.json", "README.md", "llama_bench.json"}
    facts = json.loads((tmp_path / "out/llama_bench.json").read_text())
    for name, sha in facts["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == sha
    assert facts["recipe"]["passes"][0]["family"] == "fuse"


def test_the_written_model_answers_as_torch_does(store: Store, tmp_path: Path) -> None:
    found = chosen(store, "original")
    folder.write(store, found, tmp_path / "out")
    session = onnxruntime.InferenceSession(tmp_path / "out/model.onnx")
    plan = make(Sweep.model_validate(SWEEP), {})
    reference = llama.build(found.model, plan.cells[0].workload)
    tokens = np.array([[5, 6, 7]])
    given = {"input_ids": tokens, "position_ids": np.arange(3)[None]}
    cache = llama.empty_cache(found.model, 1)
    expected = reference(*llama.arguments(found.model, given, cache))[0].detach().numpy()
    flat = [tensor.numpy() for pair in cache for tensor in pair]
    names = [value.name for value in session.get_inputs()][2:]
    actual = session.run(["logits"], {**given, **dict(zip(names, flat, strict=True))})[0]
    assert np.abs(actual - expected).max() < 1e-5


def test_the_config_says_the_sizes_that_pruning_left(store: Store, tmp_path: Path) -> None:
    folder.write(store, chosen(store, "pruned"), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["num_hidden_layers"], config["num_key_value_heads"], config["head_dim"]) == (1, 2, 16)


def test_the_card_says_recipe_numbers_and_where_they_come_from(store: Store, tmp_path: Path) -> None:
    numbers = [("speedup, decode on cpu", "1.500× [1.450, 1.550]")]
    folder.write(store, chosen(store, "fused", numbers=numbers, run="tune-x/1"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "# tiny, fused" in card
    assert "`fuse: all`" in card
    assert "| speedup, decode on cpu | 1.500× [1.450, 1.550] |" in card
    assert "`tune-x/1`" in card
    assert "seeded weights" in card


@pytest.mark.parametrize("recipe", ["original", "fused"])
def test_the_program_on_the_card_writes_text(store: Store, tmp_path: Path, recipe: str) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    folder.write(store, chosen(store, recipe), tmp_path / "out")
    words = Tokenizer(
        WordLevel({"The": 1, "capital": 2, "of": 3, "France": 4, "is": 5, **{f"w{i}": i for i in range(6, 64)}})
    )
    words.pre_tokenizer = Whitespace()
    words.save(str(tmp_path / "out/tokenizer.json"))
    card = (tmp_path / "out/README.md").read_text()
    program = card.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "out", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) >= 5 + 15  # of twenty new tokens some may be in no word


def test_a_folder_that_holds_something_is_left_alone(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="something already"):
        folder.write(store, chosen(store, "original"), tmp_path / "out")
    with pytest.raises(InputError, match="something already"):
        folder.check(tmp_path / "out", ours=True)
    folder.check(tmp_path / "new")
    (tmp_path / "out/llama_bench.json").write_text("{}")
    folder.check(tmp_path / "out", ours=True)
    with pytest.raises(InputError, match="something already"):
        folder.check(tmp_path / "out")


def test_what_was_written_for_a_variant_is_known_again(store: Store, tmp_path: Path) -> None:
    found = chosen(store, "original")
    assert not folder.holds(tmp_path / "out", found.variant)
    folder.write(store, found, tmp_path / "out")
    assert folder.holds(tmp_path / "out", found.variant)
    assert not folder.holds(tmp_path / "out", "another")
