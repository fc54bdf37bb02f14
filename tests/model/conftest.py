"""Tiny real models: every part of a Llama, in milliseconds; those of Hugging Face's and as GGUF files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llama_bench.sweep import Model, Workload


@pytest.fixture
def tiny() -> Callable[..., Model]:
    """Return a maker of small models; what is given replaces or adds a key."""

    def make(**changed: Any) -> Model:
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}
        return Model(**{**sizes, "max_position_embeddings": 64, **changed})

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    monkeypatch.setenv("LLAMA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def llama_of() -> Callable[..., Any]:
    """Return a maker of Hugging Face's small `LlamaForCausalLM` with random weights; a `kind` may say another class."""

    def make(kind: str = "LlamaForCausalLM", **changed: Any) -> Any:
        import torch
        import transformers

        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
        sizes |= {"intermediate_size": 48, "vocab_size": 96, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
        torch.manual_seed(7)
        made = getattr(transformers, kind)
        network = made(made.config_class(**{**sizes, "initializer_range": 0.2, **changed}))
        for name, parameter in network.named_parameters():  # norms of ones and biases of zeros would hide mistakes
            if name.endswith(("norm.weight", "bias")):
                torch.nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2)
        return network.eval()

    return make


@pytest.fixture
def differs() -> Callable[[Any, Model], float]:
    """Return what says how far our network is from Hugging Face's `network`, by the largest difference of logits."""

    def measure(network: Any, model: Model) -> float:
        import torch

        from llama_bench.model import llama

        workload = Workload(sequence=24, batch=2, outputs="hidden" if model.head == "none" else "logits")
        ids = np.random.default_rng(5).integers(0, model.vocab_size, (2, 24))
        given = {"input_ids": ids, "position_ids": np.tile(np.arange(24), (2, 1))}
        with torch.inference_mode():
            ours = llama.build(model, workload)(*llama.arguments(model, given, []))[0]
            theirs = network(torch.from_numpy(ids))
        return float((ours - (theirs.last_hidden_state if model.head == "none" else theirs.logits)).abs().max())

    return measure


@pytest.fixture
def gguf_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a writer of Hugging Face's network as llama.cpp's converter would write it."""

    def write(network: Any, kinds: Mapping[str, str] | None = None, name: str = "tiny.gguf", **more: Any) -> Path:
        """`kinds`: part of a GGUF name → the type to store it as, F32 where there is none; `more`: other metadata."""
        import gguf

        config = network.config
        writer = gguf.GGUFWriter(tmp_path / name, more.pop("architecture", "llama"))
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        for key, value in more.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(key.replace("__", "."), value)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        for given, tensor in network.state_dict().items():
            values, own = tensor.float().numpy(), names.get_name(given, try_suffixes=(".weight", ".bias"))
            if given in tied:
                continue
            for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
                if part in given:  # convert_hf_to_gguf.py: LlamaModel.permute
                    pairs = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
                    values = pairs.swapaxes(1, 2).reshape(values.shape)
            kind = next((kind for part, kind in (kinds or {}).items() if part in own and values.ndim > 1), "F32")
            stored = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(own, gguf.quants.quantize(values, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    return write
