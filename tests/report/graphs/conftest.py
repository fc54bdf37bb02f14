"""Tiny real models as graphs: exported, with passes applied, with their names taken away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from llama_bench import graph as files
from llama_bench import passes
from llama_bench.model import export, llama
from llama_bench.report.graphs.read import Graph, build, read
from llama_bench.sweep import Model, Pass, Workload

WORKLOAD = Workload(kind="prefill", batch=2, sequence=16, outputs="hidden")

STUDY = {"exporter": "torchscript", "opset": 17, "attention_mask": True}
"""As `sweeps/report.yaml` exports: names with a path, shapes written down."""

GEMM = {
    "exporter": "dynamo",
    "opset": 18,
    "attention_bias": True,
    "mlp_bias": True,
    "flatten_tokens": True,
    "constant_folding": False,
}
"""As `sweeps/gemm.yaml` exports: biases, flattened tokens, a Transpose before each product, an Identity a layer."""

CACHED = {"exporter": "dynamo", "opset": 18, "cache": True, "head": "lm"}
"""As `sweeps/optimizations.yaml` exports: a KV cache, sizes that are known only when it runs."""

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a maker of folders with a model: `made(STUDY, passes…, num_hidden_layers=8)`. Each is made once."""
    there: dict[str, Path] = {}

    def make(kind: dict[str, Any], *steps: dict[str, Any], **changed: Any) -> Path:
        sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 64}
        rest = {"num_hidden_layers": 2, "head": "none", "max_position_embeddings": 64}
        model = Model.model_validate({**sizes, **rest, **kind, **changed})
        folder = None
        for i in range(len(steps) + 1):
            key = json.dumps([model.model_dump(), steps[:i]], sort_keys=True)
            if key not in there:
                there[key] = tmp_path_factory.mktemp("graph")
                if folder is None:
                    export.write(llama.build(model, WORKLOAD), model, WORKLOAD, there[key] / "model.onnx")
                else:
                    state = tmp_path_factory.mktemp("state")
                    passes.apply(Pass.model_validate(steps[i - 1]), folder, there[key], model, WORKLOAD, state)
            folder = there[key]
        assert folder is not None
        return folder

    return make


@pytest.fixture(scope="session")
def nameless() -> Callable[[Path], Graph]:
    """Return a reader that takes away every name that is not an input's, an output's or an initialiser's."""

    def rename(folder: Path) -> Graph:
        model = files.load(folder / "model.onnx")
        kept = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
        names: dict[str, str] = {}

        def new(name: str) -> str:
            return name if name in kept or not name else names.setdefault(name, f"t{len(names)}")

        for node in model.graph.node:
            node.name = ""
            del node.metadata_props[:]
            renamed = onnx.NodeProto(input=map(new, node.input), output=map(new, node.output))
            del node.input[:], node.output[:]
            node.input.extend(renamed.input)
            node.output.extend(renamed.output)
        return build(model, folder)

    return rename


@pytest.fixture(scope="session")
def study(made: Make) -> Graph:
    return read(made(STUDY))
