from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from llama_bench import sweep_schema, sweep_tree
from llama_bench.errors import InputError, WorkError
from llama_bench.sweep import RopeScaling
from llama_bench.sweep_file import Catalogue, json_schema, load
from llama_bench.sweep_tree import Described

CATALOGUE = Catalogue(passes={}, providers=("CPUExecutionProvider",), engines=("onnxruntime",))

BASE = """\
name: tiny
models:
  defaults: {num_attention_heads: 2, vocab_size: 64}
  sizes:
    - {hidden_size: 16}
    - {hidden_size: 32, vocab_size: 128}
recipes:
  original: {}
workloads:
  prefill: {batch: 1, sequence: 8}
targets:
  cpu: {tag: bench_cpu, provider: CPUExecutionProvider}
measure: {restarts: 2}
"""


def write(folder: Path, text: str | bytes, name: str = "x.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path, catalogue: Catalogue = CATALOGUE) -> str:
    """Return the message with which `path` is refused, without the folder it lies in."""
    with pytest.raises(InputError) as caught:
        load(path, catalogue)
    message = str(caught.value).replace(f"{path.parent}/", "")
    assert len(message.splitlines()) == 1
    return message


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────

SIZES = {
    "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
    "intermediate_size": 64, "vocab_size": 80, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "rope_theta": 5e5, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
}  # fmt: skip
SHA256 = "5" * 64


def described(source: str, base: Path) -> Described:
    """Stands for `llama_bench.model.source.describe`."""
    path = base / source
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.stat().st_size == 0:
        raise WorkError(f"{path}: tensor model.norm.weight is missing; the model needs it as [48]")
    return Described(str(path), path, path.stem, SIZES, SHA256, "as stored in F32 (GGUF, 1 kB)")


SOURCES = replace(CATALOGUE, describe=described)


def with_source(folder: Path, keys: str, defaults: str = "vocab_size: 64, head_dim: 6") -> Path:
    """Write a sweep of one model with a source and `keys` of its own, and the file that it names."""
    write(folder, "weights", "My model (v2).gguf")
    text = BASE.replace("num_attention_heads: 2, vocab_size: 64", defaults)
    text = text.replace("{hidden_size: 16}", f"{{source: My model (v2).gguf{keys}}}")
    return write(folder, text.replace("    - {hidden_size: 32, vocab_size: 128}\n", ""))


def test_a_model_with_a_source_has_its_sizes_whatever_the_defaults_say(tmp_path: Path) -> None:
    [model] = load(with_source(tmp_path, ", cache: true"), SOURCES).models
    sizes = {**SIZES, "rope_scaling": RopeScaling(rope_type="linear", factor=2.0), "head_dim": None}
    assert {key: getattr(model, key) for key in sizes} == sizes
    assert model.source == str(tmp_path / "My model (v2).gguf")
    assert model.source_sha256 == SHA256
    assert model.name == "My-model-v2" and model.cache


def test_a_given_name_and_sizes_that_agree_are_kept(tmp_path: Path) -> None:
    keys = ", name: mine, hidden_size: 48, head_dim: 12, rope_scaling: {rope_type: linear, factor: 2}"
    [model] = load(with_source(tmp_path, f"{keys}, rms_norm_eps: 9.999999747378752e-06"), SOURCES).models
    assert (model.name, model.hidden_size, model.head_size, model.rms_norm_eps) == ("mine", 48, 12, 1e-5)


def test_a_source_among_the_defaults_is_that_of_all_sizes(tmp_path: Path) -> None:
    write(tmp_path, "weights", "a.gguf")
    text = BASE.replace("num_attention_heads: 2, vocab_size: 64", "source: a.gguf")
    text = text.replace("{hidden_size: 16}", "{name: a}").replace("{hidden_size: 32, vocab_size: 128}", "{opset: 20}")
    found = refusal(write(tmp_path, text), SOURCES)
    assert found.endswith("models.sizes[1]: the models 0 and 1 (counted from 0) are both called 'a'; give one a name")
    text = text.replace("opset: 20", "opset: 20, name: b")
    assert [(m.label, m.hidden_size) for m in load(write(tmp_path, text), SOURCES).models] == [("a", 48), ("b", 48)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (", hidden_size: 16", "hidden_size: 16 here, but 48 in My model (v2)"),
        (", vocab_size: big", "vocab_size: 'big' here, but 80 in My model (v2)"),
        (", head_dim: 8", "head_dim: 8 here, but 12 in My model (v2)"),
        (", tie_word_embeddings: false", "tie_word_embeddings: false here, but true in My model (v2)"),
        (
            ", rope_scaling: {rope_type: linear, factor: 3}",
            "rope_scaling: {rope_type: linear, factor: 3} here, but {rope_type: linear, factor: 2.0} in My model (v2)",
        ),
        (", source_sha256: abc", f"source_sha256: 'abc' here, but '{SHA256}' in My model (v2)"),
    ],
)
def test_a_size_that_is_not_the_checkpoints_is_named_with_both_values(tmp_path: Path, keys: str, message: str) -> None:
    assert refusal(with_source(tmp_path, keys), SOURCES) == f"x.yaml:5: models.sizes[0].{message}"


def test_what_is_wrong_with_a_checkpoint_is_said_at_its_line(tmp_path: Path) -> None:
    path = with_source(tmp_path, "")
    (tmp_path / "My model (v2).gguf").write_bytes(b"")
    missing = "tensor model.norm.weight is missing; the model needs it as [48]"
    assert refusal(path, SOURCES) == f"x.yaml:5: models.sizes[0].source: My model (v2).gguf: {missing}"
    (tmp_path / "My model (v2).gguf").unlink()
    assert refusal(path, SOURCES).endswith("models.sizes[0].source: My model (v2).gguf: no such file or folder")
    assert "5: models.sizes[0].source: a checkpoint cannot be read here" in refusal(path)
    text = path.read_text().replace("My model (v2).gguf", "5")
    assert "models.sizes[0].source: must be a text, not 5" in refusal(write(tmp_path, text), SOURCES)


def test_a_source_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    base = with_source(tmp_path / "parts", "")
    text = f"name: mine\ninclude: parts/{base.name}\n"
    [model] = load(write(tmp_path, text, "top.yaml"), SOURCES).models
    assert model.source == str(tmp_path / "parts" / "My model (v2).gguf")


@pytest.mark.parametrize(
    ("words", "name"),
    [("Llama-3.2-1B", "Llama-3.2-1B"), ("a b/c", "a-b-c"), ("__x", "x"), ("ü", "model"), ("x" * 99, "x" * 80)],
)
def test_the_name_of_a_file_becomes_a_name_of_a_model(words: str, name: str) -> None:
    assert sweep_tree.safe_name(words) == name


# ── grids of workloads ───────────────────────────────────────────────────────────────────────────────────────────────


def grid(folder: Path, workload: str) -> Path:
    return write(folder, BASE.replace("{batch: 1, sequence: 8}", workload))


def test_a_grid_is_one_workload_for_each_combination(tmp_path: Path) -> None:
    sweep = load(grid(tmp_path, "{batch: [1, 2], sequence: [8, 16], kv_out: false}"), CATALOGUE)
    found = {name: (one.batch, one.sequence, one.kv_out) for name, one in sweep.workloads.items()}
    assert found == {
        "prefill-b1-s8": (1, 8, False),
        "prefill-b1-s16": (1, 16, False),
        "prefill-b2-s8": (2, 8, False),
        "prefill-b2-s16": (2, 16, False),
    }


def test_the_schema_takes_a_grid(tmp_path: Path) -> None:
    path = grid(tmp_path, "{batch: [1, 2], sequence: [8, 16]}")
    assert Draft202012Validator(json_schema(CATALOGUE)).is_valid(YAML(typ="safe", pure=True).load(path))


def test_only_the_keys_that_are_lists_are_in_the_names(tmp_path: Path) -> None:
    text = BASE.replace("{num_attention_heads", "{cache: true, num_attention_heads")
    more = "\n  g: {kind: generate, batch: 2, prompt: [4], new_tokens: [1, 2]}\n  d: {kind: decode, context: [3]}"
    text = text.replace("{batch: 1, sequence: 8}", "{sequence: [8, 9]}" + more)
    names = ["prefill-s8", "prefill-s9", "g-p4-n1", "g-p4-n2", "d-c3"]
    assert list(load(write(tmp_path, text), CATALOGUE).workloads) == names


def test_the_schema_and_the_loader_know_the_same_keys_of_a_grid() -> None:
    assert tuple(sweep_tree.GRID) == tuple(sweep_schema.GRID)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("{sequence: [8, big]}", "10: workloads.prefill.sequence[1]: must be a whole number, not 'big'"),
        ("{sequence: [8, true]}", "10: workloads.prefill.sequence[1]: must be a whole number, not true"),
        ("{sequence: [8, [9]]}", "10: workloads.prefill.sequence[1]: must be a whole number, not a list"),
        ("{sequence: []}", "10: workloads.prefill.sequence: empty; a grid needs at least one number"),
        ("{sequence: [8, 8]}", "10: workloads.prefill.sequence: the same number is here twice"),
        ("{sequence: [8, 4096]}", "10: workloads.prefill.sequence[1]: sequence 4096 is longer than"),
        ("{batch: [0, 1], sequence: 8}", "10: workloads.prefill.batch[0]: must be greater than 0, not 0"),
        ("{batch: [1], sequnce: 8}", "10: workloads.prefill: unknown key 'sequnce'; did you mean 'sequence'?"),
        ("{outputs: [logits], sequence: 8}", "10: workloads.prefill.outputs: "),
        (
            "{sequence: [8]}\n  prefill-s8: {sequence: 9}",
            "10: workloads.prefill: the workload 'prefill-s8' is here twice",
        ),
        (
            f"{{batch: {list(range(1, 102))}, sequence: {list(range(1, 102))}}}",
            "10: workloads.prefill: a grid of 10201 workloads; 10000 are the most",
        ),
    ],
)
def test_what_is_wrong_in_a_grid_is_said_at_its_line(tmp_path: Path, workload: str, message: str) -> None:
    assert message in refusal(grid(tmp_path, workload))


# ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_text_of_a_sweep_is_absolute_and_hashed(tmp_path: Path) -> None:
    content = "Grüße, 世界\n".encode() * 200_000  # longer than what is read at once, characters across the borders
    write(tmp_path, content, "my text.txt")
    text = load(write(tmp_path, BASE.replace("{restarts: 2}", "{text: {file: my text.txt}}")), CATALOGUE).measure.text
    assert text is not None
    assert text.file == str(tmp_path / "my text.txt")
    assert text.file_sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "my.txt: no such file; did you mean 'me.txt'?"),
        (b"abc\xffdef", "my.txt: not UTF-8 text (byte 0xff at 3)"),
        (b"x" * (2**20 - 1) + "é".encode() + b"\xff", "my.txt: not UTF-8 text (byte 0xff at 1048577)"),
        (b"x" * (2**20 - 1) + b"\xc3", "my.txt: not UTF-8 text (byte 0xc3 at 1048575)"),
    ],
)
def test_a_text_that_is_missing_or_no_text_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    write(tmp_path, "near", "me.txt")
    if content is not None:
        write(tmp_path, content, "my.txt")
    path = write(tmp_path, BASE.replace("{restarts: 2}", "{text: {file: my.txt}}"))
    assert refusal(path) == f"x.yaml:13: measure.text.file: {message}"


def test_a_text_may_be_pinned_by_its_hash(tmp_path: Path) -> None:
    write(tmp_path, "near", "me.txt")
    path = write(tmp_path, BASE.replace("{restarts: 2}", "{text: {file: me.txt, file_sha256: abc}}"))
    assert refusal(path).startswith("x.yaml:13: measure.text.file_sha256: 'abc' here, but me.txt has ")
