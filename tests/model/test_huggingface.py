from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llama_bench.errors import InputError, LlamaBenchError, WorkError
from llama_bench.model import huggingface, huggingface_config, source, weights
from llama_bench.sweep import Model

pytestmark = pytest.mark.usefixtures("cache")

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16, "rope_theta": 10000.0}


def described(path: Path) -> Model:
    found = source.describe(str(path), Path())
    return Model(**found.config, source=found.source, source_sha256=found.sha256, name="tiny")


@pytest.mark.parametrize(
    ("config", "dtype", "shard"),
    [
        ({}, torch.float32, "5GB"),
        ({}, torch.bfloat16, "20KB"),
        ({"tie_word_embeddings": True}, torch.float16, "20KB"),
        ({"head_dim": 16, "attention_bias": True, "mlp_bias": True}, torch.float32, "5GB"),
        ({"num_key_value_heads": 4, "rope_parameters": LLAMA3}, torch.float32, "5GB"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}, torch.float32, "5GB"),
        ({"kind": "MistralForCausalLM", "sliding_window": None, "head_dim": 16}, torch.bfloat16, "5GB"),
    ],
    ids=["fp32", "bf16 in shards", "fp16 tied", "wide heads, biases", "llama3", "linear", "mistral"],
)
def test_a_folder_gives_the_logits_of_hugging_face(tmp_path, llama_of, differs, config, dtype, shard):
    network = llama_of(**config).to(dtype)
    network.save_pretrained(tmp_path / "hf", max_shard_size=shard)
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == (shard != "5GB")
    theirs = type(network).from_pretrained(tmp_path / "hf", dtype=torch.float32)
    assert differs(theirs, described(tmp_path / "hf")) < 2e-5


def test_a_decoder_stack_alone_is_a_model_without_a_head(tmp_path, llama_of, differs):
    network = llama_of("LlamaModel")
    network.save_pretrained(tmp_path / "hf")
    model = described(tmp_path / "hf").model_copy(update={"head": "none"})
    assert differs(network, model) < 2e-5


def test_bf16_is_widened_to_the_very_same_numbers():
    values = torch.tensor([1.5, -3.140625, 1e-38, 6e4, float("inf")]).to(torch.bfloat16)
    bits = values.view(torch.uint16).numpy()
    np.testing.assert_array_equal(huggingface.widened(bits), values.float().numpy())


def test_the_summary_says_what_the_numbers_were(tmp_path, llama_of):
    for dtype, words in ((torch.bfloat16, "converted from bf16"), (torch.float32, "as stored in fp32")):
        llama_of().to(dtype).save_pretrained(tmp_path / words)
        size = (tmp_path / words / "model.safetensors").stat().st_size
        assert source.describe(words, tmp_path).summary == f"{words} (safetensors, {size / 1000:.0f} kB)"


# ── config.json ──────────────────────────────────────────────────────────────────────────────────────────────────────

SIZES = {"hidden_size": 64, "num_attention_heads": 8, "num_hidden_layers": 2}
SIZES |= {"intermediate_size": 96, "vocab_size": 100}


def config(**changed: Any) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SIZES, **changed}


def test_what_a_config_leaves_out_is_what_hugging_face_takes():
    from transformers import LlamaConfig, MistralConfig

    for kind, made in (("llama", LlamaConfig(**SIZES)), ("mistral", MistralConfig(**SIZES, sliding_window=None))):
        given = {"model_type": kind, "sliding_window": None, **SIZES}
        if kind == "llama":
            del given["sliding_window"]
        found = huggingface_config.sizes(given, "x")
        theirs = {key: getattr(made, key, False) for key in found if key not in ("rope_theta", "head_dim")}
        assert {key: found[key] for key in theirs} == theirs
        assert found["rope_theta"] == made.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"rope_scaling": None, "rope_theta": 5e5}, None),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, None),
        ({"rope_scaling": LLAMA3}, {key: value for key, value in LLAMA3.items() if key != "rope_theta"}),
    ],
)
def test_rope_scaling_is_read_as_old_and_new_configs_write_it(said, wanted):
    found = huggingface_config.sizes(config(**said), "x")
    assert found.get("rope_scaling") == wanted
    Model(**found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, "the architecture Qwen2ForCausalLM is not"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is not one of these"),
        ({"architectures": None, "model_type": "gemma"}, "the architecture gemma is not one of these"),
        ({"architectures": None, "model_type": ""}, "the architecture without a name is not one of these"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2}},
            "RoPE scaling 'yarn' is not one of these: linear, llama3",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "RoPE scaling 'dynamic' is not"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, "RoPE scaling llama3 needs low_freq_factor, a number"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not the silu of a Llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, "weights quantised by gptq cannot be read"),
        ({"hidden_size": None}, "hidden_size must be a whole number, not None"),
        (
            {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096},
            "attention with a sliding window of 4096 tokens is not built here",
        ),
    ],
)
def test_another_network_is_refused_with_its_name(changed, message):
    with pytest.raises(InputError, match=r"^here/config\.json: ") as caught:
        huggingface_config.sizes(config(**changed), "here/config.json")
    assert message in str(caught.value)


def test_a_sliding_window_that_no_text_is_longer_than_is_none():
    mistral = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 4096}
    assert huggingface_config.sizes(config(**mistral, max_position_embeddings=4096), "x")["num_key_value_heads"] == 8


# ── what may be wrong with a folder ──────────────────────────────────────────────────────────────────────────────────

Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"


@pytest.fixture
def folder(tmp_path, llama_of) -> Path:
    """A whole checkpoint in one file."""
    llama_of().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def shards(tmp_path, llama_of) -> Path:
    """A whole checkpoint in several files."""
    llama_of().save_pretrained(tmp_path / "hf", max_shard_size="20KB")
    return tmp_path / "hf"


def refusal(path: Path, kind: type[LlamaBenchError] = WorkError) -> str:
    """Return the message with which the folder is refused, without where it lies."""
    with pytest.raises(kind) as caught:
        source.describe(str(path), Path())
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).replace(f"{path}/", "").replace(str(path), "the folder")


def changed(folder: Path, **tensors: np.ndarray | None) -> None:
    file = folder / "model.safetensors"
    found = {**load_file(file), **tensors}
    save_file({name: value for name, value in found.items() if value is not None}, file)


def test_a_tensor_that_is_missing_is_named_with_the_shape_it_should_have(folder):
    changed(folder, **{Q: None})
    assert refusal(folder) == f"the folder: tensor {Q} is missing; the model needs it as [32, 32]"


def test_a_tensor_of_another_shape_is_named_with_both(folder):
    changed(folder, **{Q: np.zeros((32, 16), np.float32)})
    message = f"tensor {Q} F32 [32, 16] has the wrong shape; the model needs [32, 32]"
    assert refusal(folder) == f"model.safetensors: {message}"


def test_a_tensor_too_many_is_named(folder):
    changed(folder, **{"model.layers.2.mlp.up_proj.weight": np.zeros((2, 3), np.float16)})
    message = "tensor model.layers.2.mlp.up_proj.weight F16 [2, 3] has no place in the model"
    assert refusal(folder) == f"model.safetensors: {message}"


def test_what_old_checkpoints_carry_along_does_no_harm(folder):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    changed(folder, **extra)
    assert dict(weights.load(described(folder))).keys() == weights.shapes(described(folder)).keys()


def test_a_file_that_is_cut_off_is_told_by_its_first_lost_tensor(folder):
    file = folder / "model.safetensors"
    last = max(huggingface.header(file).values(), key=lambda tensor: tensor.start)
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole - 1)
    place = f"it ends at byte {whole}, the file at {whole - 1}"
    assert refusal(folder) == f"model.safetensors: tensor {last.name} F32 {list(last.shape)} is truncated: {place}"


def test_nothing_is_read_before_all_headers_fit(folder, monkeypatch):
    model = described(folder)
    changed(folder, **{NORM: None})
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: pytest.fail("read before the check"))
    with pytest.raises(WorkError, match=rf"tensor {NORM} is missing"):
        next(weights.load(model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "model.safetensors: truncated, or not safetensors: a header of 0 bytes in a file of 0"),
        (b"\xff" * 40, "model.safetensors: truncated, or not safetensors: a header of"),
        (b"\x04" + bytes(7) + b"nope", "model.safetensors: not safetensors: JSONDecodeError"),
        (b"\x07" + bytes(7) + b'{"a":1}', "model.safetensors: not safetensors: TypeError"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "model.safetensors: a pointer of Git LFS, not the weights: run `git lfs pull`",
        ),
    ],
)
def test_a_file_that_is_no_safetensors_says_so(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    assert message in refusal(folder)


def test_a_shape_that_its_bytes_do_not_fit_is_named(folder):
    said = json.dumps({NORM: {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(said).to_bytes(8, "little") + said + bytes(4))
    assert refusal(folder) == f"model.safetensors: tensor {NORM} F32 [3] cannot take 4 bytes"


def test_a_type_that_cannot_be_read_is_named(folder):
    changed(folder, **{NORM: np.ones(32, np.int8)})
    with pytest.raises(WorkError, match=r"tensor model.norm.weight I8 \[32\]: only fp32, fp16, bf16, fp64 can be read"):
        dict(weights.load(described(folder)))


def test_a_missing_shard_is_told_by_what_it_holds(shards):
    (shards / "model-00002-of-00005.safetensors").unlink()
    message = refusal(shards)
    index = json.loads((shards / huggingface.INDEX).read_text())["weight_map"]
    held = [name for name, file in index.items() if file == "model-00002-of-00005.safetensors"]
    assert message == (
        "model-00002-of-00005.safetensors: missing; model.safetensors.index.json says that it holds "
        f"{len(held)} tensors, {held[0]} first"
    )


def test_an_index_that_is_wrong_is_named(shards):
    index = json.loads((shards / huggingface.INDEX).read_text())
    (shards / huggingface.INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"x": "../y"}}))
    assert "weight_map must map tensors to names of files in this folder" in refusal(shards, InputError)
    moved = index["weight_map"] | {NORM: "model-00001-of-00005.safetensors"}
    (shards / huggingface.INDEX).write_text(json.dumps({"weight_map": moved}))
    assert f"model-00001-of-00005.safetensors: tensor {NORM} is missing; model.safetensors.index" in refusal(shards)


def test_a_folder_without_weights_or_config_says_what_it_lacks(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    hint = "convert pytorch_model.bin with transformers' save_pretrained"
    assert refusal(folder, InputError).endswith(
        f"no safetensors, the one format of Hugging Face weights that is read; {hint}"
    )
    (folder / "config.json").write_text("[]")
    (folder / "pytorch_model.bin").rename(folder / "a.safetensors")
    assert refusal(folder, InputError) == "config.json: must hold a mapping"
    (folder / "config.json").unlink()
    assert refusal(folder, InputError) == "the folder: no config.json, so not a Hugging Face model folder"


def test_several_files_without_an_index_are_refused(shards):
    (shards / huggingface.INDEX).unlink()
    assert "5 files of safetensors and no model.safetensors.index.json" in refusal(shards, InputError)


def test_sizes_that_do_not_fit_each_other_are_one_line(folder):
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | {"num_key_value_heads": 3}))
    assert refusal(folder, InputError) == "the folder: num_key_value_heads 3 does not divide num_attention_heads 4"
