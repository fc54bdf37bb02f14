from __future__ import annotations

import re
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from llama_bench.errors import InputError, LlamaBenchError, WorkError
from llama_bench.model import gguf_config, gguf_file, source, weights
from llama_bench.sweep import Model

pytestmark = pytest.mark.usefixtures("cache")


def described(path: Path) -> Model:
    found = source.describe(str(path), Path())
    return Model(**found.config, source=found.source, source_sha256=found.sha256, name="tiny")


def stored_as(network, kind: str) -> dict[str, np.ndarray]:
    """Return the network's parameters as numbers of the type `kind` hold them; vectors stay as they are."""
    quantized = gguf.GGMLQuantizationType[kind]
    found = {}
    for name, tensor in network.state_dict().items():
        values = tensor.numpy()
        if values.ndim > 1:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, quantized), quantized)
        found[name] = values
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_every_tensor_comes_back_in_hugging_faces_order(llama_of, gguf_of, kind):
    network = llama_of(intermediate_size=64)
    model = described(gguf_of(network, {"": kind}))
    expected = stored_as(network, kind)
    found = dict(weights.load(model))
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
        {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ],
    ids=["grouped heads", "tied", "wide heads, biases", "linear"],
)
def test_a_gguf_file_gives_the_logits_of_hugging_face(llama_of, gguf_of, differs, config):
    network = llama_of(**config)
    scaled = {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": 4.0}
    path = gguf_of(network, **(scaled if "rope_parameters" in config else {}))
    assert differs(network, described(path)) < 2e-5


def test_four_bit_weights_give_the_logits_of_hugging_face_with_the_same_weights(llama_of, gguf_of, differs):
    network = llama_of(intermediate_size=64)
    model = described(gguf_of(network, {"token_embd": "Q8_0", "": "Q4_1"}))
    untouched = differs(network, model)
    for name, tensor in network.named_parameters():
        kind = "Q8_0" if "embed" in name else "Q4_1"
        tensor.data = torch.from_numpy(stored_as(network, kind)[name])
    assert differs(network, model) < 2e-5 < untouched


def test_k_quants_are_dequantised_a_few_rows_at_a_time(llama_of, gguf_of, monkeypatch):
    """The package cannot make K-quants, so the bytes of one are drawn, with sane scales."""
    blocks = np.random.default_rng(1).integers(0, 256, (40, 210), dtype=np.uint8)
    blocks[:, 208:] = np.full((40, 1), 0.01, np.float16).view(np.uint8)
    kind = gguf.GGMLQuantizationType.Q6_K
    network = llama_of(hidden_size=256, vocab_size=40)
    quantize = gguf.quants.quantize
    monkeypatch.setattr(gguf.quants, "quantize", lambda x, t: blocks if t == kind else quantize(x, t))
    path = gguf_of(network, {"token_embd": "Q6_K"})
    monkeypatch.setattr(gguf_file, "ROWS_BYTES", 7 * 4 * 256)
    found = dict(weights.load(described(path)))["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found, gguf.quants.dequantize(blocks, kind))
    assert found.std() > 0.1


def test_llama3s_rope_scaling_is_known_from_its_divisors(llama_of, gguf_of, differs):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192}
    network = llama_of(rope_parameters={**scaling, "rope_theta": 500000.0}, head_dim=64)
    plain = 500000.0 ** -(np.arange(0, 64, 2) / 64)
    divisors = (plain / network.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
    network.register_buffer("rope_freqs", torch.from_numpy(divisors))
    names = {"rope_freqs": "rope_freqs.weight"}
    map_of = gguf.get_tensor_name_map
    with pytest.MonkeyPatch.context() as patch:

        def with_frequencies(*given):
            known = map_of(*given)
            plain_name = known.get_name
            known.get_name = lambda name, **more: names.get(name) or plain_name(name, **more)
            return known

        patch.setattr(gguf, "get_tensor_name_map", with_frequencies)
        path = gguf_of(network)
        model = described(path)
        assert model.rope_scaling is not None and model.rope_scaling.model_dump() == scaling
        assert differs(network, model) < 2e-5
        network.rope_freqs *= torch.linspace(1, 1.5, 32)
        with pytest.raises(InputError, match=r"rope_freqs.weight is not the RoPE scaling of Llama 3"):
            described(gguf_of(network, name="other.gguf"))


def test_numbers_of_the_metadata_are_read_as_they_were_meant(llama_of, gguf_of):
    model = described(gguf_of(llama_of(rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e5})))
    assert (model.rms_norm_eps, model.rope_theta) == (1e-5, 1e5)


def test_the_summary_names_the_type_of_most_weights_and_the_files_size(llama_of, gguf_of):
    for kinds, words in (
        ({"token_embd": "Q8_0", "output.": "Q8_0", "": "Q4_1"}, "dequantised from Q4_1"),
        ({"": "F16"}, "converted from F16"),
        ({}, "as stored in F32"),
    ):
        path = gguf_of(llama_of(intermediate_size=64), kinds)
        assert source.describe(path.name, path.parent).summary == f"{words} (GGUF, {path.stat().st_size / 1e3:.0f} kB)"


# ── what may be wrong with a file ────────────────────────────────────────────────────────────────────────────────────


def refusal(path: Path, kind: type[LlamaBenchError] = WorkError) -> str:
    with pytest.raises(kind) as caught:
        source.describe(str(path), Path())
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_file_that_is_cut_off_is_told_by_its_first_lost_tensor(llama_of, gguf_of):
    path = gguf_of(llama_of(), {"": "F16"})
    last = max(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    end = int(last.data_offset + last.n_bytes)
    with path.open("r+b") as stream:
        stream.truncate(end - 2)
    shape = list(reversed(last.shape.tolist()))
    words = f"tensor {last.name} {last.tensor_type.name} {shape} is truncated"
    assert refusal(path) == f"{words}: it ends at byte {end}, the file at {end - 2}"


@pytest.mark.parametrize("length", [4, 20, 24, 100, 700])
def test_a_file_that_is_cut_off_in_its_header_says_so(llama_of, gguf_of, length):
    path = gguf_of(llama_of())
    path.write_bytes(path.read_bytes()[:length])
    assert refusal(path).startswith("truncated, or not a GGUF file that can be read: ")


@pytest.mark.parametrize("content", [b"", b"hello", b"GGML" + bytes(40)])
def test_another_file_is_not_a_gguf_file(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    assert refusal(tmp_path / "x.gguf", InputError) == "not a GGUF file"


def test_a_tensor_that_is_missing_wrong_or_too_many_has_its_own_name(llama_of, gguf_of):
    path = gguf_of(llama_of())
    model = described(path)
    with pytest.raises(WorkError) as caught:
        next(weights.load(model.model_copy(update={"num_hidden_layers": 3})))
    assert str(caught.value) == f"{path}: tensor blk.2.attn_q.weight is missing; the model needs it as [32, 32]"
    with pytest.raises(WorkError, match=r"tensor blk.1.attn_q.weight F32 \[32, 32\] has no place in the model"):
        next(weights.load(model.model_copy(update={"num_hidden_layers": 1})))
    with pytest.raises(
        WorkError, match=r"tensor blk.0.ffn_gate.weight F32 \[48, 32\] has the wrong shape; .* \[50, 32\]"
    ):
        next(weights.load(model.model_copy(update={"intermediate_size": 50})))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "qwen2"}, "the architecture qwen2 is not llama (Llama and Mistral)"),
        ({"llama__expert_count": 8}, "a mixture of 8 experts is not a plain Llama"),
        ({"llama__attention__sliding_window": 4096}, "attention with a sliding window is not built here"),
        ({"llama__logit_scale": 0.5}, "llama.logit_scale is not known here, so this may be another network"),
        ({"llama__rope__scaling__type": "yarn"}, "RoPE scaling 'yarn' is not one of these: linear, llama3"),
        (
            {"llama__attention__key_length": 16},
            "heads whose keys, values and RoPE differ in width are not built here",
        ),
        ({"split__count": 3}, "one of 3 parts; join them with llama.cpp's `llama-gguf-split --merge`"),
    ],
)
def test_another_network_is_refused_with_its_name(llama_of, gguf_of, metadata, message):
    assert refusal(gguf_of(llama_of(), **metadata), InputError) == message


def test_biases_on_some_projections_are_refused():
    shapes = {f"blk.0.{name}.bias": (8,) for name in ("attn_q", "attn_k", "attn_v")}
    with pytest.raises(InputError, match="x: biases in attn_q, attn_k, attn_v alone are not built here"):
        gguf_config._biases(shapes, "x")


def test_a_type_that_the_package_cannot_dequantise_is_named(llama_of, gguf_of, monkeypatch):
    model = described(gguf_of(llama_of(), {"": "F16"}))

    def refuse(data, kind):
        raise NotImplementedError(f"Dequantization for {kind.name} is not yet implemented")

    monkeypatch.setattr(gguf.quants, "dequantize", refuse)
    with pytest.raises(WorkError, match=r"token_embd.weight F16 \[96, 32\]: Dequantization for F16 is not yet"):
        next(weights.load(model))


# ── archives ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def archive(path: Path, **members: Path | bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content if isinstance(content, bytes) else content.read_bytes())
    return path


@pytest.mark.parametrize("name", ["package.whl", "package.zip"])
def test_the_one_gguf_file_of_an_archive_is_the_model(tmp_path, llama_of, gguf_of, differs, cache, name):
    network = llama_of()
    path = gguf_of(network)
    packed = archive(tmp_path / name, **{"pkg/__init__.py": b"", "pkg/tiny.gguf": path})
    inside, alone = source.describe(name, tmp_path), source.describe(path.name, tmp_path)
    assert (inside.source, inside.name, inside.sha256) == (str(packed), "tiny", alone.sha256)
    assert (inside.config, inside.summary) == (alone.config, alone.summary)
    assert inside.path == cache / "gguf" / alone.sha256 / "tiny.gguf"
    assert differs(network, described(packed)) < 2e-5


def test_an_archive_is_unpacked_once(tmp_path, llama_of, gguf_of, monkeypatch):
    packed = archive(tmp_path / "a.zip", **{"tiny.gguf": gguf_of(llama_of())})
    path = source.describe("a.zip", tmp_path).path
    unpacked = path.stat().st_mtime_ns
    assert source.locate(str(packed), tmp_path)[1] == path
    assert path.stat().st_mtime_ns == unpacked
    path.write_bytes(b"cut off")
    assert source.locate(str(packed), tmp_path)[1].stat().st_size > 1000
    assert not list(path.parents[2].glob(".tmp-*"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b"x"}, "must hold exactly one .gguf file, and holds 0"),
        ({"a.gguf": b"x", "b/c.gguf": b"y"}, "must hold exactly one .gguf file, and holds 2: a.gguf, b/c.gguf"),
    ],
)
def test_an_archive_with_none_or_several_is_refused(tmp_path, members, message):
    assert refusal(archive(tmp_path / "a.whl", **members), InputError) == message


def test_an_archive_that_is_cut_off_is_refused(tmp_path, llama_of, gguf_of):
    packed = archive(tmp_path / "a.whl", **{"tiny.gguf": gguf_of(llama_of())})
    content = packed.read_bytes()
    packed.write_bytes(content[:-30])
    assert refusal(packed, InputError).startswith("not a whole zip archive: ")
    packed.write_bytes(content[:400] + b"\0\0\0\0" + content[404:])
    assert re.match("not a whole zip archive: ", refusal(packed, InputError))
