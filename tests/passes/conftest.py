"""Tiny real models as graphs, what goes into them, and what comes out of ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from llama_bench import graph, passes
from llama_bench.model import export, inputs, llama
from llama_bench.sweep import Model, Pass, Workload

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 128}


@dataclass(frozen=True)
class Graph:
    """A model's graph in a folder: exported, or what passes made of it."""

    model: Model
    workload: Workload
    folder: Path

    @property
    def proto(self) -> onnx.ModelProto:
        return graph.load(self.folder / "model.onnx", weights=True)

    def nodes(self, op_type: str) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.op_type == op_type]

    def constants(self) -> dict[str, np.ndarray]:
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in self.proto.graph.initializer}

    def size(self) -> int:
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def applied(self, folder: Path, *steps: Mapping[str, Any]) -> Graph:
        """Apply passes one after another, each written as in YAML."""
        result = self
        for i, said in enumerate(steps):
            step, made, state = Pass.model_validate(said), folder / f"made-{i}", folder / f"state-{i}"
            passes.apply(step, result.folder, made, self.model, self.workload, state)
            result = Graph(self.model, self.workload, made)
        return result

    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        # without VNNI a CPU's sums of int8 products saturate at 16 bits: this is for what the graph says, on any CPU
        options.add_session_config_entry("session.x64quantprecision", "1")
        return onnxruntime.InferenceSession(self.folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def run(self, tokens: np.ndarray | None = None, steps: Sequence[int] = ()) -> dict[str, np.ndarray]:
        """Return the outputs for `tokens` [B, S], from an empty cache; of a cached graph one step after another.

        `steps` are how many of the tokens each step takes, all in one when left out; the last step's are returned.
        """
        session = self.session()
        names = [output.name for output in session.get_outputs()]
        tokens = self.tokens() if tokens is None else tokens
        wanted = {value.name: value for value in session.get_inputs()}
        cache = {name: _empty(value, len(tokens)) for name, value in wanted.items() if name.startswith("past.")}
        past, outputs = 0, {}
        for step in steps or [tokens.shape[1]]:
            given = inputs.step_inputs(tokens[:, past : past + step], past)
            given |= {"attention_mask": np.ones_like(tokens), **cache}
            results = session.run(None, {name: given[name] for name in wanted})
            outputs = dict(zip(names, results, strict=True))
            cache = {name: outputs[name.replace("past.", "present.")] for name in cache}
            past += step
        return outputs

    def tokens(self) -> np.ndarray:
        return inputs.make_inputs(self.model, self.workload)["input_ids"]


def _empty(value: Any, batch: int) -> np.ndarray:
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
    _, heads, _, size = value.shape
    return np.zeros((batch, heads, 0, size), types.get(value.type, np.uint8))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Graph]:
    """Return a maker of exported tiny models; what is given replaces or adds a key. Each is exported once."""
    made: dict[str, Graph] = {}

    def make(**changed: Any) -> Graph:
        key = json.dumps(changed, sort_keys=True)
        if key not in made:
            model = Model(**{**SIZES, "max_position_embeddings": 64, **changed})
            outputs = "logits" if model.head == "lm" else "hidden"
            workload = Workload(kind="prefill", batch=2, sequence=16, outputs=outputs)
            folder = tmp_path_factory.mktemp("exported")
            export.write(llama.build(model, workload), model, workload, folder / "model.onnx")
            made[key] = Graph(model, workload, folder)
        return made[key]

    return make


CACHED = {"cache": True, "num_key_value_heads": 2, "tie_word_embeddings": True}
"""What makes a tiny model one with a KV cache, grouped heads and tied embeddings."""


@pytest.fixture
def static(exported: Callable[..., Graph]) -> Graph:
    return exported()


@pytest.fixture
def cached(exported: Callable[..., Graph]) -> Graph:
    return exported(**CACHED)


@pytest.fixture
def fused(cached: Graph, tmp_path: Path) -> Graph:
    """The cached model as our fusions leave it: GroupQueryAttention and ONNX Runtime's norms."""
    return cached.applied(tmp_path / "fused", {"fuse": "all"})


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))


@pytest.fixture
def near() -> Callable[[np.ndarray, np.ndarray], float]:
    """The cosine between two outputs."""
    return cosine
