"""What shapes a result besides the sweep: versions of libraries, and hashes of our own source by what it is for.

Editing a chart or a message must not throw away a night of timings, so a hash covers only the packages it names.
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llama_bench import __version__
from llama_bench.errors import WorkError

ROOT = Path(__file__).parent

SHAPING = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxoptimizer", "gguf", "tokenizers", "numpy", "ray")
"""Distributions whose version may change a graph, a number or its timing; ONNX Runtime goes by two names."""

ENGINE = ("onnxruntime-gpu", "onnxruntime")

MEASURING = (
    "model", "own", "passes", "engines", "bench", "graph",
    "cluster.actors", "cluster.arm", "cluster.cell", "cluster.ceilings", "cluster.deadline", "cluster.examine",
    "cluster.gpu", "cluster.job", "cluster.launch", "cluster.processes", "cluster.restart", "cluster.rows",
    "cluster.texts",
)  # fmt: skip
"""The parts of this package that decide what is timed and how."""

_NETWORK = ("model.llama", "model.layers", "model.export", "model.dynamo", "model.streamed", "model.inputs")
_WEIGHTS = (
    "model.weights", "model.source", "model.checkpoint", "model.huggingface", "model.huggingface_config",
    "model.gguf_file", "model.gguf_config", "threads",
)  # fmt: skip

STAGES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "export": ((*_NETWORK, *_WEIGHTS), ("torch", "onnx", "onnxscript", "gguf")),
    "reference": (("model", "threads"), ("torch", "gguf", "tokenizers")),
    "own export": (("own", "graph", "external_data"), ("onnx",)),
    "own reference": (("own", "model.inputs", "model.weights"), ("onnxruntime", "numpy")),
    "prune": (("passes.prune", "passes.checkpoint", "model"), ("torch", "onnx", "onnxscript", "tokenizers")),
    "distill": (
        ("passes.distill", "passes.prune", "passes.checkpoint", "model"),
        ("torch", "onnx", "onnxscript", "tokenizers"),
    ),
    "onnxoptimizer": (
        ("passes.onnxoptimizer", "passes.onnxoptimizer_child", "passes.files", "passes.made", "threads", "graph"),
        ("onnxoptimizer", "onnx"),
    ),
    "onnxruntime": (
        (
            "passes.onnxruntime_offline",
            "passes.onnxruntime_offline_child",
            "passes.optimizers",
            "passes.files",
            "passes.made",
            "threads",
        ),
        ("onnxruntime",),
    ),
    "onnxscript": (("passes.onnxscript_pass", "passes.files", "passes.made", "threads"), ("onnxscript", "onnx-ir")),
    "transformers": (
        ("passes.transformers_pass", "passes.files", "passes.made", "threads"),
        ("onnxruntime", "onnx-ir"),
    ),
    "fuse": (("passes.fuse", "passes.files", "passes.made", "threads"), ("onnxruntime", "onnxscript", "onnx-ir")),
    "precision": (("passes.precision", "passes.files", "passes.made", "threads"), ("onnx-ir",)),
    "quantize": (
        ("passes.quantize", "passes.files", "passes.made", "threads", "model.text", "model.tokenizer"),
        ("onnxruntime", "onnx-ir", "tokenizers"),
    ),
}
"""Build stage → the parts of this package and the distributions that shape the bytes of what it builds."""


def libraries() -> dict[str, str]:
    """Return name → version of what shapes results: libraries, this package, Python.

    Raises WorkError when both builds of ONNX Runtime are installed: they overwrite each other's files.
    """
    engines = {name: found for name in ENGINE if (found := _version(name))}
    if len(engines) > 1:
        raise WorkError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "pip uninstall --yes both, then install one"
        )
    others = {name: _version(name) or "missing" for name in SHAPING}
    return {**others, **engines, "llama_bench": __version__, "python": platform.python_version()}


def code(*parts: str) -> str:
    """Return the SHA-256 of the source of `parts`: sub-packages or modules of this package (`model`, `cluster.arm`).

    Line ends are normalised, so that a checkout on another system has the same hash. Raises FileNotFoundError for a
    part that does not exist.
    """
    digest = hashlib.sha256()
    for part in sorted(set(parts)):
        for path in _sources(part):
            text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
            digest.update(f"{path.relative_to(ROOT).as_posix()}\0{text}\0".encode())
    return digest.hexdigest()


def stages() -> dict[str, str]:
    """Return, for :func:`llama_bench.plan.make`, build stage → what shapes its output besides the spec."""
    return {
        stage: " ".join([code(*parts), *(f"{name}={_build_version(name)}" for name in distributions)])
        for stage, (parts, distributions) in STAGES.items()
    }


def measuring() -> str:
    """Return the hash of the code that decides what is timed and how; reports and messages are no part of it."""
    return code(*MEASURING)


def _sources(part: str) -> list[Path]:
    folder = ROOT.joinpath(*part.split("."))
    if folder.is_dir():
        return sorted(folder.rglob("*.py"))
    module = folder.with_suffix(".py")
    if not module.is_file():
        raise FileNotFoundError(f"llama_bench has no part {part!r}")
    return [module]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _build_version(distribution: str) -> str:
    """Return the version of what builds with `distribution`; ONNX Runtime goes by either of its names."""
    names = ENGINE if distribution == "onnxruntime" else (distribution,)
    return next((found for name in names if (found := _version(name))), "missing")
